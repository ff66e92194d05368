"""The messages of the wire protocol: one frozen class each, and the bounds of what they hold (contract, section 5).

How they become lines of JSON is the business of `codec`, who may say what and when that of `protocol`;
`docs/protocol.md` is the description for people. Building one checks nothing (types are mypy's business); sending does.
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias, final

from appserver.identity import Service
from appserver.outcome import Outcome
from pki.frozen import dataclass

MAX_MESSAGE_BYTES = 65536
"""One line with its newline. An argument vector fits, and a peer that never ends its line costs no more than this."""

MAX_WHOLE = 2**53 - 1
"""The largest number that every JSON reader keeps exactly (RFC 8259, section 6)."""

MAX_SECONDS = 1e9
"""Thirty years: longer waits mean for ever, and some systems' timers overflow beyond."""

MAX_NAME_CHARACTERS = 255
"""Host names (RFC 1035 allows 253), program names and codes."""

MAX_TEXT_CHARACTERS = 8192
"""Free text: reasons, paths, one line of an application's output."""

MAX_TAIL_LINES = 1000
"""Lines of output in one message; `MAX_TAIL_BYTES` usually binds first."""

MAX_TAIL_BYTES = 8192
"""The tail's output before escaping; each byte takes six in JSON at worst, which a message still holds."""

MAX_VERSIONS = 100
"""Protocol versions that one greeting can offer."""

RUN_ID_DIGITS = 32
"""128 random bits in hexadecimal: made by the manager, never made twice."""

State = Literal["starting", "running", "stopping"]
Survivors = Literal["leave", "stop"]
RefusalCode = Literal[
    "limit",
    "rule",
    "sessions",
    "certificate",
    "no-such-command",
    "is-a-directory",
    "not-executable",
    "not-running",
    "start-failed",
    "bad-service",
    "storage",
    "version",
]
"""What this version's server says; a reader takes any other code as well."""


class MessageError(ValueError):
    """Not a message that the protocol allows: mend the value (sending), or give the peer up (receiving)."""


@final
@dataclass(frozen=True, slots=True)
class Greeting:
    """The server speaks first: the protocol versions it knows, its program and version, its host name."""

    type_name: ClassVar[str] = "greeting"
    versions: tuple[int, ...]
    software: str
    host: str


@final
@dataclass(frozen=True, slots=True)
class Hello:
    """The manager's answer: the version chosen, who it is, and how often it will poll (seconds)."""

    type_name: ClassVar[str] = "hello"
    version: int
    software: str
    host: str
    pid: int
    poll_seconds: float


@final
@dataclass(frozen=True, slots=True)
class Run:
    """Run this service or attach to it.

    `run` is the id of the run if a new one has to be made; asking twice with one id starts it once. `survivors` says
    what becomes of descendants that live on, `stop_timeout_seconds` how long they have between TERM and KILL.
    """

    type_name: ClassVar[str] = "run"
    seq: int
    run: str
    service: Service
    survivors: Survivors
    stop_timeout_seconds: float
    tail_lines: int


@final
@dataclass(frozen=True, slots=True)
class Watch:
    """Watch a run that is known to exist. Never starts anything; a run nobody knows has ended, `Lost`."""

    type_name: ClassVar[str] = "watch"
    seq: int
    run: str
    survivors: Survivors
    stop_timeout_seconds: float
    tail_lines: int


@final
@dataclass(frozen=True, slots=True)
class Attach:
    """Watch what runs of this service, or the end that its newest run came to and nobody has collected.

    Never starts anything; `run` is an id that leads to the run found from then on. A server older than this message
    answers that it does not know it.
    """

    type_name: ClassVar[str] = "attach"
    seq: int
    run: str
    service: Service
    survivors: Survivors
    stop_timeout_seconds: float
    tail_lines: int


@final
@dataclass(frozen=True, slots=True)
class Poll:
    """How does the run fare? Also the sign of life: silence for three poll intervals closes the session."""

    type_name: ClassVar[str] = "poll"
    seq: int


@final
@dataclass(frozen=True, slots=True)
class Stop:
    """Stop this run: TERM to the whole tree, KILL after `timeout_seconds`."""

    type_name: ClassVar[str] = "stop"
    seq: int
    run: str
    timeout_seconds: float


@final
@dataclass(frozen=True, slots=True)
class Ack:
    """The outcome of this run has arrived: it is collected."""

    type_name: ClassVar[str] = "ack"
    run: str


@final
@dataclass(frozen=True, slots=True)
class Bye:
    """The manager leaves; the application goes on."""

    type_name: ClassVar[str] = "bye"


@final
@dataclass(frozen=True, slots=True)
class Previous:
    """The outcome of an earlier run of the same service, which no manager had collected."""

    run: str
    outcome: Outcome


@final
@dataclass(frozen=True, slots=True)
class Running:
    """The answer to `run` and `watch`: this run is watched now. `attached` tells that it had been there before.

    `started_at` is Unix time, `log` the path of the output in the guest.
    """

    type_name: ClassVar[str] = "running"
    re: int
    run: str
    state: State
    attached: bool
    pid: int | None
    started_at: float | None
    ran_seconds: float | None
    log: str | None
    previous: Previous | None


@final
@dataclass(frozen=True, slots=True)
class Status:
    """The answer to `poll`. `None` means not known."""

    type_name: ClassVar[str] = "status"
    re: int
    run: str
    state: State
    pid: int | None
    ran_seconds: float | None
    cpu_seconds: float | None
    rss_bytes: int | None


@final
@dataclass(frozen=True, slots=True)
class Stopping:
    """The stop is accepted: it will be completed whatever dies."""

    type_name: ClassVar[str] = "stopping"
    re: int
    run: str


@final
@dataclass(frozen=True, slots=True)
class Ended:
    """The run has ended. Pushed the moment it happens (`re` is None), or the answer to `run`, `watch` or `stop`.

    `tail` holds the last lines of its output, as many as were asked for, where it ended by itself. `previous` is as in
    `Running`, for a run that had ended before anybody could be told that it runs.
    """

    type_name: ClassVar[str] = "ended"
    re: int | None
    run: str
    outcome: Outcome
    tail: tuple[str, ...] | None = None
    previous: Previous | None = None


@final
@dataclass(frozen=True, slots=True)
class Refused:
    """The server will not do it, and asking again will not help.

    In place of the greeting: `sessions`, too many of them, or `certificate`, the manager's is not one to let in. The
    latter may change with the keys, so a manager goes on trying.
    """

    type_name: ClassVar[str] = "refused"
    re: int | None
    code: str
    text: str


@final
@dataclass(frozen=True, slots=True)
class Error:
    """The manager said something wrong (final), or something that this server does not know (the session goes on)."""

    type_name: ClassVar[str] = "error"
    re: int | None
    text: str


@final
@dataclass(frozen=True, slots=True)
class Goodbye:
    """The server lets the manager go. The application goes on; come back."""

    type_name: ClassVar[str] = "goodbye"
    reason: str


@final
@dataclass(frozen=True, slots=True)
class Unknown:
    """A message of a type that this version does not know, with its number where it has a usable one. Received only."""

    type: str
    seq: int | None


ServerMessage: TypeAlias = Greeting | Running | Status | Stopping | Ended | Refused | Error | Goodbye
ManagerMessage: TypeAlias = Hello | Run | Watch | Attach | Poll | Stop | Ack | Bye
Message: TypeAlias = ServerMessage | ManagerMessage


def is_run_id(text: str) -> bool:
    """Tell whether this is the id of a run: `RUN_ID_DIGITS` lowercase hexadecimal digits."""
    return len(text) == RUN_ID_DIGITS and set(text) <= set("0123456789abcdef")
