"""The one seam between the server and what the operating system can do about processes.

On Linux a launcher and its waiters do it (`waited`), and an outcome survives the server. Elsewhere the server itself is the
parent, by way of psutil (`portable`), and what cannot be known there is `Lost`, never a guess.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, final

import trio

from appserver.records import Records, State
from appserver.report import Report
from appserver.services import Terms


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

        `changed` is called with each new state, `stopping` once a stop that was ordered will be completed whatever dies.
        Cancelled, it lets go of the run, which goes on. Raises StartError, DamagedRecordError.
        """

    def order_stop(self, run_id: str, by: str, timeout_seconds: float) -> None:
        """Stop the tree of a run that is being followed: TERM, KILL after the timeout."""

    def set_terms(self, run_id: str, terms: Terms) -> None:
        """Say what becomes of survivors of a run that is being followed."""

    def usage(self, pid: int, start_ticks: int | None) -> Usage | None:
        """Tell what a main process uses; None where it has ended."""


def open_processes(records: Records, environment: Mapping[str, str], report: Report) -> Processes:
    """Choose what this system allows. `environment` is what applications get."""
    if sys.platform == "linux" and hasattr(os, "pidfd_open"):
        from appserver.waited import WaitedProcesses

        return WaitedProcesses(records, environment, report)
    from appserver.portable import PortableProcesses

    return PortableProcesses(records, environment)
