"""What the table of services decides: runs, what managers want for them, and the effects that follow.

Plain values; `services` makes them, the supervisor carries them out.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Hashable
from typing import Protocol, TypeAlias, final

from appserver.identity import Service
from appserver.outcome import Outcome
from appserver.recordformat import Survivors
from pki.frozen import dataclass, field


class Watcher(Hashable, Protocol):
    """A manager's session, as far as services care."""

    @property
    def audit_name(self) -> str:
        """Say who asks, for the log: program, host, address and the certificate's fingerprint."""

    @property
    def fingerprint(self) -> str:
        """Give the fingerprint of the certificate that it proved to own."""

    def tell(self, what: Tell, /) -> None:
        """Take what has happened; neither awaits nor raises."""


@final
@dataclass(frozen=True, slots=True)
class Asker:
    """On whose behalf a manager asks, and what that one may do.

    `fingerprint` is that of the certificate; `max_processes` bounds what all managers with it have running, None for
    no such bound; `sets_terms` says that its terms count for a run that it only attaches to.
    """

    fingerprint: str = ""
    max_processes: int | None = None
    sets_terms: bool = True


class Phase(enum.Enum):
    """Where a run stands."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"


@final
@dataclass(frozen=True, slots=True)
class Terms:
    """What a manager wants for a run that it starts or attaches to; the last one that asks decides."""

    survivors: Survivors = "leave"
    stop_timeout_seconds: float = 30.0


@final
@dataclass(eq=False, slots=True)
class Run:
    """One run of a service. Read it freely; only the table changes it.

    `stop_askers` are those who have yet to hear that their stop is accepted; `stop_ordered` says that there was one,
    also where they have left. `gone` says that nobody of its tree is watched any more, `clearing` that the run has
    ended but what is left of its tree is still being stopped. `owner` is the certificate on whose behalf it was
    started, `program` what rules are matched on, None until it has been found; `user` the one that a rule names.
    """

    run_id: str
    service: Service
    phase: Phase = Phase.STARTING
    pid: int | None = None
    start_ticks: int | None = None
    started_at: float | None = None
    started_monotonic: float | None = None
    log_path: str | None = None
    outcome: Outcome | None = None
    collected: bool = False
    clearing: bool = False
    watchers: dict[Watcher, None] = field(default_factory=dict)
    stop_askers: dict[Watcher, None] = field(default_factory=dict)
    stop_ordered: bool = False
    gone: bool = False
    waiting: list[tuple[Watcher, str, Terms, Asker]] = field(default_factory=list)
    starter: Watcher | None = None
    owner: str = ""
    asked_by: str = ""
    program: str | None = None
    user: str | None = None

    @property
    def service_bytes(self) -> int:
        """The memory that the name of its service takes."""
        return sum(map(sys.getsizeof, self.service.words))


@final
@dataclass(frozen=True, slots=True)
class Launch:
    """Start the run, on behalf of the owner of a certificate; `asked_by` is for the log."""

    run_id: str
    service: Service
    terms: Terms
    owner: str = ""
    asked_by: str = field(default="", compare=False)


@final
@dataclass(frozen=True, slots=True)
class OrderStop:
    """Have the run stopped, and say `stop_accepted` once that is certain; `asked_by` is for the log."""

    run_id: str
    by: str
    timeout_seconds: float
    asked_by: str = field(default="", compare=False)


@final
@dataclass(frozen=True, slots=True)
class SetTerms:
    """Tell whoever watches the process what to do with survivors."""

    run_id: str
    terms: Terms


@final
@dataclass(frozen=True, slots=True)
class NoteAlias:
    """Put an alias on record."""

    alias: str
    run_id: str


@final
@dataclass(frozen=True, slots=True)
class ForgetAlias:
    """Remove an alias from the record."""

    alias: str


@final
@dataclass(frozen=True, slots=True)
class NoteCollected:
    """Put on record that a manager has the outcome."""

    run_id: str


@final
@dataclass(frozen=True, slots=True)
class Forget:
    """Remove the record of a run."""

    run_id: str


@final
@dataclass(frozen=True, slots=True)
class TellRunning:
    """Tell a watcher that its run runs; `previous` is an outcome that nobody had collected."""

    watcher: Watcher
    run: Run
    attached: bool
    previous: tuple[str, Outcome] | None = None


@final
@dataclass(frozen=True, slots=True)
class TellStopping:
    """Tell a watcher that the stop will be completed."""

    watcher: Watcher
    run_id: str


@final
@dataclass(frozen=True, slots=True)
class TellEnded:
    """Tell a watcher how its run ended; `previous` as in `TellRunning`, where that one was never told."""

    watcher: Watcher
    run_id: str
    outcome: Outcome
    log_path: str | None = None
    previous: tuple[str, Outcome] | None = None


@final
@dataclass(frozen=True, slots=True)
class TellRefused:
    """Tell a watcher that what it asked will not be done; `code` is one of the wire protocol. `run_id` is the run's, or
    the one that was asked for where none was made.

    `of_stop` says that it asked for a stop: the run that it watches goes on.
    """

    watcher: Watcher
    code: str
    text: str
    run_id: str
    of_stop: bool = False


Tell: TypeAlias = TellRunning | TellStopping | TellEnded | TellRefused
Effect: TypeAlias = Launch | OrderStop | SetTerms | NoteAlias | ForgetAlias | NoteCollected | Forget | Tell
