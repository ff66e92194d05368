"""How a process ended: `Exited`, `Signaled` or `Lost`, and their one translation to an exit status.

Reporting 0 for a process whose end nobody saw is the classic mistake of programs like this one. So "unknown" is a type
of its own, no constructor has a default that means success, and only `exit_status` turns an outcome into a number.

Imported by every floor, by the launcher and by the waiters; standard library only.
"""

from __future__ import annotations

import signal

from pki.frozen import dataclass
from pki.typed import TypeAlias, final

MAX_EXIT_CODE = 0xFFFF_FFFF
"""Windows exit codes have 32 bits; those of POSIX systems have 8."""

MAX_SIGNAL = 127
"""128 + N must fit into the eight bits of an exit status."""

MAX_TEXT_CHARACTERS = 250
"""A reason or a name longer than this is cut: a record slot and a message must hold it whatever it says."""


class OutcomeError(ValueError):
    """What was read is not an outcome. Whoever reads it must treat the outcome as lost, never as a success."""


@final
@dataclass(frozen=True, slots=True)
class Account:
    """What is known about an ended process beside its outcome. `None` means not known, never zero.

    `ended_at` is Unix time for people; `ran_seconds` comes from the monotonic clock.
    `stopped_by` names who asked for the stop, if it was stopped; `survivors` counts descendants that lived on.
    """

    ended_at: float | None = None
    ran_seconds: float | None = None
    user_seconds: float | None = None
    system_seconds: float | None = None
    max_rss_bytes: int | None = None
    killed_for_memory: bool = False
    stopped_by: str | None = None
    survivors: int | None = None


NOTHING_KNOWN = Account()


@final
@dataclass(frozen=True, slots=True)
class Exited:
    """The process ended by itself with `code`, 0 to `MAX_EXIT_CODE`."""

    code: int
    account: Account = NOTHING_KNOWN

    def __post_init__(self) -> None:
        if not 0 <= self.code <= MAX_EXIT_CODE:
            raise OutcomeError(f"exit code {self.code!r} is not between 0 and {MAX_EXIT_CODE}")


@final
@dataclass(frozen=True, slots=True)
class Signaled:
    """The process was ended by signal `number`, 1 to `MAX_SIGNAL`."""

    number: int
    account: Account = NOTHING_KNOWN

    def __post_init__(self) -> None:
        if not 1 <= self.number <= MAX_SIGNAL:
            raise OutcomeError(f"signal number {self.number!r} is not between 1 and {MAX_SIGNAL}")


@final
@dataclass(frozen=True, slots=True)
class Lost:
    """The process is gone, or cannot be told apart from gone, and nobody knows how it ended; `reason` says why."""

    reason: str
    account: Account = NOTHING_KNOWN

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", self.reason[:MAX_TEXT_CHARACTERS])


Outcome: TypeAlias = Exited | Signaled | Lost


def exit_status(outcome: Outcome, *, failure_status: int) -> int:
    """Translate an outcome to the manager's exit status, 0 to 255 (contract, "Exit status").

    Codes over 255 (Windows) give their low byte, or 255 where that is 0; a lost outcome gives `failure_status`.
    """
    match outcome:
        case Exited(code):
            return code if code <= 255 else (code & 0xFF or 255)
        case Signaled(number):
            return 128 + number
        case Lost():
            return failure_status


def describe(outcome: Outcome) -> str:
    """Say in words how it ended, for a log line: `exited with code 3`, `ended by signal 9 (SIGKILL)`, `outcome lost:
    …`.
    """
    match outcome:
        case Exited(code):
            return f"exited with code {code}"
        case Signaled(number):
            return f"ended by signal {number} ({signal_name(number)})"
        case Lost(reason):
            return f"outcome lost: {reason}"


def signal_name(number: int) -> str:
    """Name a signal: `SIGKILL`, `SIGRTMIN+3`; the bare number where the platform has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        first = getattr(signal, "SIGRTMIN", None)
        last = getattr(signal, "SIGRTMAX", None)
        if first is not None and last is not None and first <= number <= last:
            return f"SIGRTMIN+{number - first}"
        return f"signal {number}"


def to_json(outcome: Outcome) -> dict[str, object]:
    """Turn an outcome into plain JSON values, the same in records and on the wire."""
    match outcome:
        case Exited(code):
            kind: dict[str, object] = {"kind": "exited", "code": code}
        case Signaled(number):
            kind = {"kind": "signaled", "signal": number}
        case Lost(reason):
            kind = {"kind": "lost", "reason": reason}
    # Not by `asdict`, which copies deeply: a waiter does this in the moment that somebody waits for.
    account = outcome.account
    return kind | {name: value for name in Account.__match_args__ if (value := getattr(account, name)) is not None}


def from_json(value: object) -> Outcome:
    """Read what `to_json` made; unknown fields are ignored.

    Raises `OutcomeError` for everything else.
    """
    if not isinstance(value, dict):
        raise OutcomeError(f"an outcome must be an object, not {value!r:.100}")
    account = _account_from_json(value)
    match value:
        case {"kind": "exited", "code": int(code)} if not isinstance(code, bool):
            return Exited(code, account)
        case {"kind": "signaled", "signal": int(number)} if not isinstance(number, bool):
            return Signaled(number, account)
        case {"kind": "lost", "reason": str(reason)}:
            return Lost(reason, account)
        case _:
            raise OutcomeError(f"not an outcome: {value!r:.200}")


def _account_from_json(value: dict[str, object]) -> Account:
    return Account(
        ended_at=_number(value, "ended_at"),
        ran_seconds=_number(value, "ran_seconds"),
        user_seconds=_number(value, "user_seconds"),
        system_seconds=_number(value, "system_seconds"),
        max_rss_bytes=_count(value, "max_rss_bytes"),
        killed_for_memory=value.get("killed_for_memory") is True,
        stopped_by=_text(value, "stopped_by"),
        survivors=_count(value, "survivors"),
    )


def _number(value: dict[str, object], name: str) -> float | None:
    found = value.get(name)
    if found is None or (isinstance(found, int | float) and not isinstance(found, bool)):
        return found
    raise OutcomeError(f"{name} must be a number, not {found!r:.100}")


def _count(value: dict[str, object], name: str) -> int | None:
    found = value.get(name)
    if found is None or (isinstance(found, int) and not isinstance(found, bool) and found >= 0):
        return found
    raise OutcomeError(f"{name} must be a whole number, not {found!r:.100}")


def _text(value: dict[str, object], name: str) -> str | None:
    found = value.get(name)
    if found is None or isinstance(found, str):
        return found[:MAX_TEXT_CHARACTERS] if found else found
    raise OutcomeError(f"{name} must be a text, not {found!r:.100}")
