"""What one manager reported, read from its log and its exit status, as whoever reads a package log would."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_CLAIM = re.compile(r"(started|attached to) the application .* on the node \S+: (?:process (\d+)|)")
_OUTPUT = re.compile(r", output in (\S+)")
_END = re.compile(r"the application .* on the node \S+ (?:ended|is gone)(?: after [^:]*)?: (.*)")
_PREVIOUS = re.compile(r"an earlier run of the application ended without a manager(?: after [^:]*)?: (.*)")
_SURVIVORS = re.compile(r"(\d+) descendants? (?:lives? on|(?:is|are) being stopped)")
_STATUS = re.compile(r"PROGRAM EXIT CODE (\d+)")

LOST = "lost"


@dataclass
class Report:
    """One manager, from its start to its end. Times are of the monotonic clock."""

    began_at: float
    ended_at: float
    status: int
    """As `subprocess` gives it: negative for a signal."""
    killed: bool = False
    """By the drill, which sent KILL; its report is whatever it came to say."""
    detached: bool = False
    """By the drill, which sent TERM where that means detach."""
    halted_at: float | None = None
    """When the drill sent TERM where that means stop."""
    claimed_at: float | None = None
    """When it said that the application runs."""
    log: str = ""
    claim: str | None = None
    """`started`, `attached to`; None where it never said."""
    pid: int | None = None
    """Of the application that it watched; None where it never learnt it."""
    output: str | None = None
    ending: str | None = None
    """How it says that the application ended: `code:7`, `signal:9`, `lost`; None where it says nothing of that."""
    said: str = ""
    """The words of that."""
    survivors: int = 0
    previous: list[str] = field(default_factory=list)
    """Endings of earlier runs that it was told of."""
    last_line_status: int | None = None
    alive: frozenset[int] = frozenset()
    """Which of the processes that the application noted were alive right after this manager's end."""

    @property
    def killed_for_memory(self) -> bool:
        return "killed for memory" in self.said

    @property
    def stopped(self) -> bool:
        return "stopped by" in self.said


def read_log(report: Report, log: str) -> None:
    """Fill in what the log tells."""
    report.log = log
    for line in log.splitlines():
        if found := _CLAIM.search(line):
            report.claim = found[1]
            report.pid = int(found[2]) if found[2] else None
            output = _OUTPUT.search(line)
            report.output = output[1] if output else None
        elif found := _PREVIOUS.search(line):
            report.previous.append(read_ending(found[1]))
        elif found := _END.search(line):
            report.said = found[1]
            report.ending = read_ending(found[1])
            survivors = _SURVIVORS.search(found[1])
            report.survivors = int(survivors[1]) if survivors else 0
        elif found := _STATUS.search(line):
            report.last_line_status = int(found[1])


def read_ending(words: str) -> str:
    if found := re.match(r"exited with code (\d+)", words):
        return f"code:{found[1]}"
    if found := re.match(r"ended by signal (\d+)", words):
        return f"signal:{found[1]}"
    return LOST


def status_of(ending: str) -> int:
    """Give the exit status that the contract promises for an ending."""
    kind, _, number = ending.partition(":")
    if kind == "code":
        return int(number)
    if kind == "signal":
        return 128 + int(number)
    return 137 if kind == "memory" else FAILURE_STATUS


FAILURE_STATUS = 201
"""What the managers of the drill are told to end with for failures of their own. An application may end with that too;
the log tells the two apart, and the oracle reads both."""
