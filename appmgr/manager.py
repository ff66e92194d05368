"""The manager's policy: from what happens to what to do about it, and in the end to an exit status.

Pure: no socket, no task, no clock of its own. Whoever drives it tells what happened and when (`now`, monotonic
seconds), carries out the actions it gets back in their order, and calls `tick` at `deadline()` at the latest. Nothing
comes after `Finish`.

Two questions are kept apart all the way to the log: *how is the application* (only the server knows), and *can the
server be asked* (only the clock knows). "Contact" is about the second. It is judged by answers: a server that greets
and then answers nothing is no contact, so greetings count the first time only.

A run is named by an id. Until the server has confirmed it (`running`), a new connection asks `run` again with the
same id, which starts nothing twice. From then on it asks to `watch` the run that was confirmed, which may be another
manager's; a watch never starts anything, so an outcome that is lost stays lost instead of becoming a second copy.

A manager that is only to `attach`, or to `stop` what runs, never asks to `run`. The latter is in a halt from its first
moment: nobody has to signal it.
"""

from __future__ import annotations

import errno
import math
import os
from typing import Final, TypeAlias, final

from appmgr import wording
from appmgr.options import ManagerOptions
from appmgr.rhythm import next_poll_at
from appmgr.standing import Cause, Standing, StandingState
from appserver.messages import (
    Ack,
    Attach,
    Ended,
    Error,
    Goodbye,
    ManagerMessage,
    Poll,
    Previous,
    Refused,
    Run,
    Running,
    ServerMessage,
    Status,
    Stop,
    Stopping,
    Watch,
)
from appserver.outcome import Exited, Lost, Outcome, Signaled, exit_status
from appserver.report import Level, printable
from pki.frozen import dataclass, replace

POLL_TIMEOUT_SHARE: Final = 1 / 3
"""No poll interval is longer than this share of the timeout: two polls may get lost before contact counts as lost."""

ANSWER_TIMEOUT_SHARE: Final = 1 / 2
"""A poll unanswered for this share of the timeout: the connection is made anew while there is time to try."""

STOP_ANSWER_SHARE: Final = 1 / 3
"""The same while stopping, as a share of the stop timeout."""

MIN_STOP_ANSWER_SECONDS = 5.0
"""A server that is in contact has at least this long to accept a stop, however short the stop timeout."""

STOP_GRACE_SECONDS = 10.0
"""What a server may take beyond the stop timeout: its KILL goes round until nobody of the tree is left."""

STOP_RETURN_SECONDS = 3.0
"""Where contact is lost after a stop was accepted, the manager tries for the stop timeout and this much longer: the
KILL that ends it comes at the end of the timeout, and the outcome is worth the wait."""

OWN_PAUSE_SECONDS = 2.0
"""A tick later than this means that this process stood still, not the server. What has arrived meanwhile is still to be
read, so the time for one more answer is granted before the silence counts."""

SIGHUP, SIGTERM = 1, 15


@final
@dataclass(frozen=True, slots=True)
class Send:
    """Send this to the server over the connection there is."""

    message: ManagerMessage


@final
@dataclass(frozen=True, slots=True)
class Log:
    """Write this to the log."""

    level: Level
    text: str


@final
@dataclass(frozen=True, slots=True)
class Show:
    """Keep this in the status file. Only for managers that have one."""

    standing: Standing


@final
@dataclass(frozen=True, slots=True)
class Reconnect:
    """Drop the connection and make a new one; `disconnected` is not told in answer to it."""


@final
@dataclass(frozen=True, slots=True)
class Finish:
    """Deliver what was sent, leave, and end with this exit status."""

    status: int


Action: TypeAlias = Send | Log | Show | Reconnect | Finish


@final
class Manager:
    """One manager's life: every input gives the actions to carry out."""

    def __init__(self, options: ManagerOptions, run_id: str, now: float, *, clock_offset_seconds: float = 0.0) -> None:
        """Begin at `now` to look for contact, for a run that will have `run_id` if it has to be started.

        `clock_offset_seconds` is what the host's clock is ahead of the one that `now` is a time of (`rhythm`).
        """
        self._options = options
        self._run_id = run_id
        self._poll_seconds = min(options.poll_seconds, options.timeout_seconds * POLL_TIMEOUT_SHARE)
        self._clock_offset_seconds = clock_offset_seconds
        self._give_up_at = now + options.boot_timeout_seconds
        self._next_seq = 1
        # The server.
        self._connected = False
        self._ever_connected = False
        self._lost_contact_at: float | None = None
        self._failure_logged = False
        self._last_reason: str | None = None
        # What was asked over the connection there is, by number; None where nothing waits for an answer.
        self._run_seq: int | None = None
        self._stop_seq: int | None = None
        self._poll_seq: int | None = None
        self._polled_at = now
        # The application.
        self._confirmed_run: str | None = None
        self._halting = options.action == "stop"
        self._stop_accepted = False
        self._stop_over_at = math.inf
        self._waiting_logged = False
        self._standing = Standing("connecting", run=run_id)

    @property
    def poll_seconds(self) -> float:
        """The poll interval in force, as the greeting tells the server."""
        return self._poll_seconds

    def opening(self) -> list[Action]:
        """Say what has to be said before the first contact."""
        asked = self._options.poll_seconds
        actions = self._stand("connecting")
        if self._poll_seconds < asked:
            actions.append(Log("info", wording.poll_lowered(asked, self._poll_seconds, self._options.timeout_seconds)))
        return actions

    def deadline(self) -> float:
        """Give the monotonic time at which `tick` has to be called at the latest."""
        if not self._connected:
            return self._give_up_at
        return min(self._give_up_at, self._poll_deadline())

    def connected(self, now: float) -> list[Action]:
        """The server has greeted and has our hello."""
        if not self._ever_connected:
            self._ever_connected = True
            self._answered(now)
            if self._halting:
                self._give_up_at = now + max(self._options.stop_timeout_seconds, MIN_STOP_ANSWER_SECONDS)
        self._connected = True
        self._polled_at = now
        self._poll_seq = self._stop_seq = None
        return self._ask()

    def received(self, message: ServerMessage, now: float) -> list[Action]:
        """Handle a message of the server."""
        match message:
            case Running():
                return self._answered(now) + self._on_running(message)
            case Status():
                return self._answered(now) + self._on_status(message)
            case Stopping():
                return self._answered(now) + self._on_stopping(now)
            case Ended():
                return self._answered(now) + self._on_ended(message)
            case Refused():
                return self._on_refused(message)
            case Error():
                return self._on_error(message)
            case Goodbye():
                return [Reconnect(), *self.disconnected(f"the server lets go: {printable(message.reason)}", now)]
            case _:
                # A second greeting is out of order, so that it never gets here.
                return []

    def disconnected(self, reason: str, now: float) -> list[Action]:
        """The connection is gone; another is being tried. One line tells it, until contact has returned."""
        self._connected = False
        self._run_seq = self._stop_seq = self._poll_seq = None
        self._last_reason = reason
        if self._lost_contact_at is not None:
            return []
        self._lost_contact_at = now
        if self._stop_accepted:
            limit = self._options.stop_timeout_seconds + STOP_RETURN_SECONDS
            self._give_up_at = min(self._give_up_at, now + limit)
        text = wording.contact_lost(self._options.node, reason)
        state: StandingState = "connecting" if self._confirmed_run is None else "lost"
        return [Log("warning", text), *self._stand(state, text=text)]

    def contact_failed(self, reason: str, _now: float) -> list[Action]:
        """An attempt to connect has failed; the next is on its way. Only the first of all is logged."""
        self._last_reason = reason
        if self._ever_connected or self._failure_logged:
            return []
        self._failure_logged = True
        return [Log("error", wording.could_not_connect(self._options.node)), Log("error", reason)]

    def signalled(self, number: int, now: float) -> list[Action]:
        """Somebody wants the manager to end: TERM, INT, or HUP, which is taken as TERM."""
        number = SIGTERM if number == SIGHUP else number
        if not self._ever_connected:
            text = wording.too_early(number)
            return [
                Log("info", text),
                *self._stand("detached", "signal", status=128 + number, text=text),
                Finish(128 + number),
            ]
        if self._options.on_halt == "detach" or self._halting:
            confirmed = self._confirmed_run is not None
            text = wording.detached(self._options.node, number, confirmed=confirmed, stopping=self._stop_accepted)
            shown = self._stand("detached", "signal", status=128 + number, text=text)
            return [Log("info", text), *shown, Finish(128 + number)]
        self._halting = True
        patience = self._options.stop_timeout_seconds
        self._give_up_at = now + (max(patience, MIN_STOP_ANSWER_SECONDS) if self._connected else patience)
        self._polled_at = now
        text = wording.stopping(self._options, number)
        return [Log("info", text), *(self._ask_to_stop() if self._connected else [])]

    def tick(self, now: float) -> list[Action]:
        """Let time pass: give up, make the connection anew, or poll, whatever is due. May be called at any time."""
        if now - self.deadline() > OWN_PAUSE_SECONDS:
            patience = self._options.timeout_seconds * ANSWER_TIMEOUT_SHARE
            self._give_up_at = max(self._give_up_at, now + patience)
            self._polled_at = now
        if now >= self._give_up_at:
            return self._give_up()
        if not self._connected or now < self._poll_deadline():
            return []
        if self._poll_seq is not None:
            reason = wording.no_answer(self._patience())
            return [Reconnect(), *self.disconnected(reason, now)]
        self._poll_seq = self._sequence()
        self._polled_at = now
        return [Send(Poll(self._poll_seq))]

    def _poll_deadline(self) -> float:
        """Give the time of the next poll, or that at which our patience with the answer to the last one ends."""
        if self._poll_seq is None:
            return next_poll_at(self._polled_at, self._poll_seconds, self._clock_offset_seconds)
        return self._polled_at + self._patience()

    def _patience(self) -> float:
        """Seconds for the answer to a poll."""
        patience = self._options.timeout_seconds * ANSWER_TIMEOUT_SHARE
        if self._halting:
            patience = min(patience, self._options.stop_timeout_seconds * STOP_ANSWER_SHARE)
        return patience

    def _sequence(self) -> int:
        self._next_seq += 1
        return self._next_seq - 1

    def _ask(self) -> list[Action]:
        """Ask for the run over a new connection, and to stop it where that is still to be asked."""
        options = self._options
        stop = self._halting and not self._stop_accepted
        if stop and self._confirmed_run is None and options.action == "run":
            # Asking for a run that was never confirmed might start it to be stopped, and a server that never heard of
            # it would take a watch for one of a run that was lost: to a stop it answers that nothing was started.
            return self._ask_to_stop()
        self._run_seq = self._sequence()
        terms = (options.survivors, options.stop_timeout_seconds, options.tail_lines)
        if self._confirmed_run is None and options.action == "run" and not self._halting:
            return [Send(Run(self._run_seq, self._run_id, options.service, *terms))]
        if self._confirmed_run is None and options.action != "run" and options.run_id is None:
            watch = Send(Attach(self._run_seq, self._run_id, options.service, *terms))
        else:
            watch = Send(Watch(self._run_seq, self._confirmed_run or self._run_id, *terms))
        return [watch, *(self._ask_to_stop() if stop else [])]

    def _ask_to_stop(self) -> list[Action]:
        self._stop_seq = self._sequence()
        run = self._confirmed_run or self._run_id
        return [Send(Stop(self._stop_seq, run, self._options.stop_timeout_seconds))]

    def _answered(self, now: float) -> list[Action]:
        """Count a valid answer. A halt has its own deadline, which only contact that returns moves."""
        if not self._halting:
            self._give_up_at = now + self._options.timeout_seconds
        elif self._stop_accepted:
            self._give_up_at = self._stop_over_at
        if self._lost_contact_at is None:
            return []
        away, self._lost_contact_at = now - self._lost_contact_at, None
        text = wording.contact_back(self._options.node, away)
        state: StandingState = "connecting" if self._confirmed_run is None else "running"
        return [Log("info", text), *self._stand(state, text=text)]

    def _on_status(self, message: Status) -> list[Action]:
        if message.re == self._poll_seq:
            self._poll_seq = None
        if self._confirmed_run is not None or message.state != "stopping" or self._waiting_logged:
            return []
        self._waiting_logged = True
        return [Log("info", wording.waiting_for_stop(self._options))]

    def _on_running(self, message: Running) -> list[Action]:
        if message.re != self._run_seq:
            return []
        self._run_seq = None
        actions = self._on_previous(message.previous)
        if self._confirmed_run is None:
            self._confirmed_run = message.run
            attached = message.attached and (message.run != self._run_id or self._options.action != "run")
            text = wording.running(self._options, message, attached=attached)
            self._standing = replace(self._standing, run=message.run, pid=message.pid, attached=attached)
            actions += [Log("info", text), *self._stand("running", text=text)]
            if self._halting and message.run != self._run_id and self._options.action == "run":
                # The stop that is on its way names our own id, but it is another's run that we watch.
                actions += self._ask_to_stop()
        return actions

    def _on_refused(self, message: Refused) -> list[Action]:
        if message.code != "not-running":
            return self._fail(wording.refused(self._options, message.code, message.text), "refused", message.code)
        text = wording.not_running(self._options)
        if self._options.action != "stop":
            return self._fail(text, "not-running")
        return [Log("info", text), *self._stand("stopped", "not-running", status=0, text=text), Finish(0)]

    def _on_previous(self, previous: Previous | None) -> list[Action]:
        if previous is None:
            return []
        return [Log("warning", wording.previous(previous.outcome)), Send(Ack(previous.run))]

    def _on_stopping(self, now: float) -> list[Action]:
        if not self._stop_accepted and self._halting:
            self._stop_accepted = True
            self._stop_over_at = now + self._options.stop_timeout_seconds + STOP_GRACE_SECONDS
            self._give_up_at = self._stop_over_at
        return []

    def _on_ended(self, message: Ended) -> list[Action]:
        answers_run = message.re is not None and message.re == self._run_seq
        if not answers_run and message.run != (self._confirmed_run or self._run_id):
            return []
        answers_stop = message.re is not None and message.re == self._stop_seq
        if answers_stop and self._run_seq is not None and isinstance(message.outcome, Lost):
            # Nobody knows the run that we want stopped, but `run` is not answered yet: that answer will tell.
            return []
        actions = self._on_previous(message.previous)
        started = self._options.action == "run" and self._confirmed_run is None and not self._waiting_logged
        if started and not isinstance(message.outcome, Lost):
            actions.append(Log("info", wording.started_and_ended(self._options)))
        if message.tail and message.outcome.account.stopped_by is None:
            actions += [Log("info", line) for line in wording.tail(message.tail, self._options.tail_lines)]
        level: Level = "error" if isinstance(message.outcome, Lost) else "info"
        text = wording.ended(self._options, message.outcome)
        actions.append(Log(level, text))
        status = exit_status(message.outcome, failure_status=self._options.failure_status)
        state: StandingState = "ended"
        if self._options.action == "stop":
            state, status = "stopped", 0
        cause, code = _cause(message.outcome)
        if self._options.status_file is not None:  # somebody waits, for all else
            self._standing = replace(self._standing, outcome=wording.how(self._options, message.outcome))
        shown = self._stand(state, cause, code, status, text)
        return [*actions, *shown, Send(Ack(message.run)), Finish(status)]

    def _on_error(self, message: Error) -> list[Action]:
        text = f"the server on the node {self._options.node} reports an error: {printable(message.text)}"
        if message.re is not None and message.re in (self._run_seq, self._stop_seq):
            if self._options.action != "run" and self._confirmed_run is None:
                text = f"{text}: a server of before that message has to be upgraded, or be told the run (--run-id)"
            return self._fail(text, "error")
        if message.re is not None and message.re == self._poll_seq:
            self._poll_seq = None
        return [Log("warning", text)]

    def _give_up(self) -> list[Action]:
        options = self._options
        if self._halting and self._ever_connected:
            cause: Cause = "not-stopped" if self._connected else "no-contact"
            return self._fail(wording.stop_unconfirmed(options, accepted=self._stop_accepted), cause)
        reason = self._last_reason or f"{os.strerror(errno.ETIMEDOUT)} (errno:{errno.ETIMEDOUT})"
        if self._ever_connected:
            return self._fail(wording.no_contact_any_more(options, reason), "no-contact")
        failed = self.contact_failed(reason, self._give_up_at)
        return [*failed, *self._fail(wording.no_contact_at_all(options, reason), "no-contact")]

    def _fail(self, text: str, cause: Cause, code: str | None = None) -> list[Action]:
        status = self._options.failure_status
        return [Log("error", text), *self._stand("failed", cause, code, status, text), Finish(status)]

    def _stand(
        self,
        state: StandingState,
        cause: Cause | None = None,
        code: str | None = None,
        status: int | None = None,
        text: str | None = None,
    ) -> list[Action]:
        """Note how things stand; gives what shows it, where anybody wants to see it."""
        if self._options.status_file is None:
            return []
        self._standing = replace(self._standing, state=state, cause=cause, code=code, status=status, text=text)
        return [Show(self._standing)]


def _cause(outcome: Outcome) -> tuple[Cause, str | None]:
    match outcome:
        case Exited(code):
            return "exited", str(code)
        case Signaled(number):
            return "signaled", str(number)
        case Lost():
            return "lost", None
