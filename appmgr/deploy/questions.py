"""The questions about application monitors, in the words and the order of the old script.

Scripts that answer that one go on working.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final, TypeVar

from appmgr.deploy.appmon import (
    DEFAULT_HALT_TIMEOUT_SECONDS,
    DEFAULT_NAME,
    DEFAULT_RESTART,
    DEFAULT_TIMEOUT_SECONDS,
    AppMonitor,
    parse_command,
    parse_halt_timeout,
    parse_name,
    parse_restart,
    parse_timeout,
)
from appmgr.deploy.dialogue import MAX_TRIES, Dialogue
from appmgr.deploy.errors import Abandoned, AnswerRefused, DeployError

_NAME: Final = "Enter the name for this application monitor name"
_COMMAND: Final = "Enter the command line of the run command on the guest"
_TIMEOUT: Final = "Enter the number of seconds to elapse before timeout."
_RESTART: Final = "Enter the number of time the application monitor should restart"
_HALT_TIMEOUT: Final = "Enter the number of seconds to wait before terminating the application monitor"

_LABELS: Final = ("Name", "Run command", "Application timeout", "Service restart", "Service halt timeout")

_Value = TypeVar("_Value")

Judge = Callable[[Sequence[AppMonitor]], object]
"""Raises `DeployError` where these monitors cannot be had together, or not in this package."""


def ask_monitors(dialogue: Dialogue, taken: Collection[str], judge: Judge) -> list[AppMonitor]:
    """Ask for monitors until there is none to add; an empty list where none is wanted at all.

    `taken` are names that are not offered as a default. Raises `Abandoned`.
    """
    monitors: list[AppMonitor] = []
    if not dialogue.confirm("Configure an application monitor service?"):
        return monitors
    while True:
        monitors.append(_ask_accepted(dialogue, monitors, taken, judge))
        if not dialogue.confirm("Enter an additional application monitor?"):
            return monitors


def _ask_accepted(dialogue: Dialogue, before: Sequence[AppMonitor], taken: Collection[str], judge: Judge) -> AppMonitor:
    """Ask for one monitor, again from its name on where it is not confirmed or cannot be."""
    for _ in range(MAX_TRIES):
        monitor = _ask_monitor(dialogue, {*taken, *(other.name for other in before)})
        _summarize(dialogue, monitor)
        if not _confirmed(dialogue, "this entry"):
            continue
        try:
            judge([*before, monitor])
        except DeployError as error:
            dialogue.say(f"This cannot be: {error}.")
        else:
            return monitor
    raise Abandoned(f"no acceptable application monitor in {MAX_TRIES} attempts")


def _ask_monitor(dialogue: Dialogue, taken: Collection[str]) -> AppMonitor:
    return AppMonitor(
        name=_ask(dialogue, _NAME, free_name(taken), parse_name, entry="your entry"),
        command=_ask(dialogue, _COMMAND, "", parse_command),
        timeout_seconds=_ask(dialogue, _TIMEOUT, str(DEFAULT_TIMEOUT_SECONDS), parse_timeout),
        restart=_ask(dialogue, _RESTART, DEFAULT_RESTART, parse_restart),
        halt_timeout_seconds=_ask(dialogue, _HALT_TIMEOUT, str(DEFAULT_HALT_TIMEOUT_SECONDS), parse_halt_timeout),
    )


def free_name(taken: Collection[str]) -> str:
    """Give the first of appmon0, appmon1 and so on that is not taken."""
    return next(name for number in range(len(taken) + 1) if (name := f"{DEFAULT_NAME}{number}") not in taken)


def _ask(
    dialogue: Dialogue, prompt: str, default: str, parse: Callable[[str], _Value], *, entry: str = "this entry"
) -> _Value:
    """Ask for one value until it keeps its rules and is confirmed."""
    # The prompt for the command stands close to its bracket, as it always did.
    gap = "" if not default else " "
    for _ in range(MAX_TRIES):
        answer = dialogue.ask(f"{prompt}{gap}[{default}]:") or default
        try:
            value = parse(answer)
        except AnswerRefused as error:
            dialogue.say(f"This cannot be: {error}.")
            continue
        dialogue.say(f"You have entered: {value}")
        if _confirmed(dialogue, entry):
            return value
    raise Abandoned(f"no acceptable answer in {MAX_TRIES} attempts")


def _confirmed(dialogue: Dialogue, entry: str) -> bool:
    """Have a value confirmed by an empty line; any other one means that it is to be asked for again."""
    return not dialogue.ask(f"Hit return to confirm {entry}:")


def _summarize(dialogue: Dialogue, monitor: AppMonitor) -> None:
    dialogue.say("You have entered the following application monitor values:")
    values = (
        monitor.name,
        monitor.command,
        monitor.timeout_seconds,
        monitor.restart,
        monitor.halt_timeout_seconds,
    )
    for label, value in zip(_LABELS, values, strict=True):
        dialogue.say(f"  {label + ':':<24}{value}")
