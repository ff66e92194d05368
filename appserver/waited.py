"""Processes on Linux: each has a waiter, which a launcher forked, and which the server follows by its record."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import final

assert sys.platform != "win32"

import trio

from appserver.control import describe
from appserver.effects import Terms
from appserver.following import Follower
from appserver.launching import LaunchError, Launching
from appserver.processes import StartError, Usage
from appserver.procfs import process_stat
from appserver.recordformat import Request, State
from appserver.records import Records
from appserver.report import Report

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@final
class WaitedProcesses:
    """`Processes` by launcher, waiters and records."""

    def __init__(self, records: Records, environment: Mapping[str, str], report: Report) -> None:
        self._records = records
        self._launching = Launching(records, environment, report)
        self._followers: dict[str, Follower] = {}

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a launcher alive until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._launching.serve)
            task_status.started()

    async def follow(self, run_id: str, *, changed: Callable[[State], None], stopping: Callable[[], None]) -> None:
        """Follow a run to its end; see `Processes.follow`."""
        try:
            await self._follower(run_id).follow(changed, stopping)
        except LaunchError as error:
            raise StartError(str(error)) from error
        finally:
            del self._followers[run_id]

    def order_stop(self, run_id: str, by: str, timeout_seconds: float) -> None:
        """Stop a tree; may be asked for before the run is followed."""
        self._follower(run_id).order_stop(by, timeout_seconds)

    def set_terms(self, run_id: str, terms: Terms) -> None:
        """Say what becomes of survivors; may be said before the run is followed."""
        self._follower(run_id).set_terms(terms)

    def _follower(self, run_id: str) -> Follower:
        if run_id not in self._followers:
            self._followers[run_id] = Follower(self._records.get(run_id), self._launching)
        return self._followers[run_id]

    def is_watched(self, run_id: str) -> bool:
        """Tell whether a waiter lives for a run."""
        return self._launching.is_watched(run_id)

    def describe(self, run_id: str) -> tuple[Request | None, State] | None:
        """Ask the waiter of a run, if one lives, what it knows."""
        told = describe(self._records.get(run_id)) if self.is_watched(run_id) else None
        return (told.request, told.state) if told is not None else None

    def forget(self, run_id: str) -> None:
        """Drop orders that were kept for a run that will never be followed."""
        self._followers.pop(run_id, None)

    def usage(self, pid: int, start_ticks: int | None) -> Usage | None:
        """Read what a main process uses; None where it is not known, or no descriptor is left to ask with."""
        try:
            stat = process_stat(pid)
        except OSError:
            return None
        if stat is None or stat.start_ticks != start_ticks:
            return None
        cpu_seconds = (stat.user_ticks + stat.system_ticks) / _TICKS_PER_SECOND
        return Usage(cpu_seconds, stat.rss_pages * _PAGE_BYTES)
