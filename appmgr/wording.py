"""The manager's log lines, all in one place (contract, section 1, "Log").

"The application ended" and "the server cannot be asked" are different states: what is said of the application speaks
of `application`, what is said of the server of `contact` and `node`. Text that comes from the server or from the
application is made printable here, before it can put a line of its own into the log.
"""

from __future__ import annotations

from collections.abc import Sequence

from appmgr.options import ManagerOptions
from appserver.messages import MAX_TAIL_BYTES, Running, Survivors
from appserver.outcome import Exited, Lost, Outcome, describe, signal_name
from appserver.report import printable


def seconds(value: float) -> str:
    """Write a span of time for people: `0.04 s`, `3.5 s`, `12 s`, `3 min 20 s`, `5 h 10 min`, `12 d 3 h`."""
    if value < 1:
        return f"{value:.2f} s"
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 172800:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def could_not_connect(node: str) -> str:
    """Say that the first contact failed; the line after it tells the reason."""
    return f"Could not connect to the node {node}"


def poll_lowered(asked: float, used: float, timeout: float) -> str:
    """Say that the poll interval was too long for the timeout."""
    return f"poll interval lowered from {asked:g} s to {used:.3g} s, a third of the timeout of {timeout:g} s"


def running(options: ManagerOptions, message: Running, *, attached: bool) -> str:
    """Say that the application was started, or was found and attached to."""
    process = f"process {message.pid}" if message.pid is not None else "process id not known yet"
    output = f", output in {printable(message.log)}" if message.log else ""
    if not attached:
        return f"started the application {_service(options)} on the node {options.node}: {process}{output}"
    age = f", running for {seconds(message.ran_seconds)}" if message.ran_seconds is not None else ""
    state = "" if message.state == "running" else f", {message.state}"
    where = f"the application {_service(options)} on the node {options.node}"
    return f"attached to {where}: {process}{age}{state}{output}"


def started_and_ended(options: ManagerOptions) -> str:
    """Say that the application was started, and had ended before the server's answer."""
    return f"started the application {_service(options)} on the node {options.node}: it has ended already"


def waiting_for_stop(options: ManagerOptions) -> str:
    """Say that the application will be started when its earlier run has been stopped."""
    return f"an earlier run of the application {_service(options)} on the node {options.node} is being stopped, waiting"


def ended(options: ManagerOptions, outcome: Outcome) -> str:
    """Say how the application ended, after how long, by whom, and who lives on."""
    if isinstance(outcome, Lost):
        start = f"the application {_service(options)} on the node {options.node} is gone"
    else:
        start = f"the application {_service(options)} on the node {options.node} ended"
    return f"{start}{_how(outcome, survivors=options.survivors)}"


def how(options: ManagerOptions, outcome: Outcome) -> str:
    """Say only how the application ended and after how long, for who has little room."""
    return _how(outcome, survivors=options.survivors).lstrip(": ")


def previous(outcome: Outcome) -> str:
    """Tell the outcome of an earlier run that no manager was there to collect."""
    return f"an earlier run of the application ended without a manager{_how(outcome)}"


def _how(outcome: Outcome, *, survivors: Survivors = "leave") -> str:
    account = outcome.account
    parts = [printable(describe(outcome))]
    if account.killed_for_memory:
        parts.append("killed for memory")
    if account.stopped_by is not None:
        parts.append(f"stopped by {printable(account.stopped_by)}")
    elif isinstance(outcome, Exited):
        parts.append("by itself")
    if account.survivors:
        one = account.survivors == 1
        fate = (
            ("is being stopped" if one else "are being stopped")
            if survivors == "stop"
            else ("lives on" if one else "live on")
        )
        parts.append(f"{account.survivors} {'descendant' if one else 'descendants'} {fate}")
    after = f" after {seconds(account.ran_seconds)}" if account.ran_seconds is not None else ""
    return f"{after}: {', '.join(parts)}"


def tail(lines: Sequence[str], wanted: int) -> list[str]:
    """Give the last lines of the application's output for the log: `wanted` at most, `MAX_TAIL_BYTES` in all."""
    kept: list[str] = []
    room_bytes = MAX_TAIL_BYTES
    for line in reversed(lines[-wanted:] if wanted else ()):
        room_bytes -= len(line.encode("utf-8", "backslashreplace")) + 1
        if room_bytes < 0:
            break
        kept.append(f"output: {printable(line)}")
    return kept[::-1]


def refused(options: ManagerOptions, code: str, text: str) -> str:
    """Say that the server will not do it."""
    return f"the node {options.node} refused {_service(options)}: {printable(text)} ({printable(code)})"


def contact_lost(node: str, reason: str) -> str:
    """Say that the connection is gone. Nothing is known of the application."""
    return f"lost contact with the node {node}, trying to reach it again: {reason}"


def contact_back(node: str, away_seconds: float) -> str:
    """Say that the server answers again."""
    return f"contact with the node {node} is back after {seconds(away_seconds)}"


def no_answer(waited_seconds: float) -> str:
    """Give the reason for dropping a connection on which the server stays silent."""
    return f"no answer for {seconds(waited_seconds)}"


def no_contact_at_all(options: ManagerOptions, reason: str) -> str:
    """Say that the first contact did not come about in time."""
    waited = seconds(options.boot_timeout_seconds)
    return f"no contact with the node {options.node} within {waited}, giving up; last reason: {reason}"


def no_contact_any_more(options: ManagerOptions, reason: str) -> str:
    """Say that the server has not answered for the whole timeout; the application may be well."""
    waited = seconds(options.timeout_seconds)
    return (
        f"no answer from the node {options.node} for {waited}, giving up; the application may still run; "
        f"last reason: {reason}"
    )


def detached(node: str, number: int, *, confirmed: bool, stopping: bool) -> str:
    """Say that the manager leaves the application alone, or to the stop that the server has accepted."""
    fate = "the application goes on" if confirmed else "the application may have been started"
    if stopping:
        fate = "the stop goes on there"
    return f"{signal_name(number)}: detached from the node {node}, {fate}"


def stopping(options: ManagerOptions, number: int) -> str:
    """Say that the application is going to be stopped."""
    limit = seconds(options.stop_timeout_seconds)
    return f"{signal_name(number)}: stopping the application on the node {options.node} (KILL after {limit})"


def too_early(number: int) -> str:
    """Say that a signal ended the manager before it had asked for anything."""
    return f"{signal_name(number)} before the first contact: nothing was started"


def not_running(options: ManagerOptions) -> str:
    """Say that there is nothing to attach to, or to stop."""
    return f"the application {_service(options)} does not run on the node {options.node}, and nothing was started"


def stop_unconfirmed(options: ManagerOptions, *, accepted: bool) -> str:
    """Say that a stop was asked for and its end has not been heard of."""
    if accepted:
        return f"the node {options.node} accepted the stop, but its completion was not heard of in time, giving up"
    limit = seconds(options.stop_timeout_seconds)
    return f"the node {options.node} could not be asked to stop the application within {limit}, giving up"


def _service(options: ManagerOptions) -> str:
    return printable(options.service.describe())
