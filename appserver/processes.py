"""The one seam between the server and what the operating system can do about processes; `platforms` chooses who fills
it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, final

import trio

from appserver.effects import Terms
from appserver.recordformat import Request, State
from pki.frozen import dataclass


class StartError(Exception):
    """A run on record could not be started, for a reason of the system's. Refuse it, say why."""


@final
@dataclass(frozen=True, slots=True)
class Usage:
    """What a main process uses at this moment."""

    cpu_seconds: float
    rss_bytes: int


class Processes(Protocol):
    """Starts, watches and stops what is on record."""

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do what has to be done all the time; never returns. Nothing may be followed before it reports `started`."""

    async def follow(self, run_id: str, *, changed: Callable[[State], None], stopping: Callable[[], None]) -> None:
        """Start a run that was not started yet, and follow any until nobody of its tree lives.

        `changed` is called with each new state, `stopping` once a stop that was ordered will be completed whatever
        dies. Cancelled, it lets go of the run, which goes on. Raises StartError, DamagedRecordError.
        """

    def order_stop(self, run_id: str, by: str, timeout_seconds: float) -> None:
        """Stop the tree of a run that is being followed: TERM, KILL after the timeout."""

    def set_terms(self, run_id: str, terms: Terms) -> None:
        """Say what becomes of survivors of a run that is being followed."""

    def is_watched(self, run_id: str) -> bool:
        """Tell whether somebody other than this server is responsible for a run, so that its application may run."""

    def describe(self, run_id: str) -> tuple[Request | None, State] | None:
        """Ask whoever is responsible for a run what its record should say; None where nobody answers, which takes
        seconds at most. Blocks: for a server that is not serving yet.
        """

    def forget(self, run_id: str) -> None:
        """Drop orders for a run that will never be followed, since it could not even be recorded."""

    def usage(self, pid: int, start_ticks: int | None) -> Usage | None:
        """Tell what a main process uses; None where it has ended."""
