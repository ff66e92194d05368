"""Watches one service of the drill as a cluster would: whoever falls is replaced, until one manager has the end."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import trio

from drill.census import SETTLE_SECONDS, is_alive, wait_until
from drill.chronicle import Chronicle
from drill.guest import LOG_MAX_BYTES, Guest, Manager, start_manager
from drill.inflict import Inflicter
from drill.notes import Notes, read_notes
from drill.plan import Halt, ManagerFault, Service
from drill.reports import Report

APPLICATION = Path(__file__).with_name("application.py")

MAX_MANAGERS = 12
"""Of one asking; more than any plan kills."""

ORPHAN_SECONDS = 5.0
"""The same for those that may be out of reach; it is no failure then."""

TRIM_SECONDS = 5.0
"""A log must be within its bound a second after it passed it; the rest is for a busy machine."""

MARK_BYTES = 100
"""Of the line that says how much was trimmed."""


class Watch:
    """All managers of one service, and what they reported."""

    def __init__(self, service: Service, guest: Guest, chronicle: Chronicle, inflicter: Inflicter, group: str) -> None:
        self.service = service
        self.reports: list[Report] = []
        self.notes_path = guest.notes_dir / str(service.index)
        self._guest = guest
        self._chronicle = chronicle
        self._inflicter = inflicter
        self._command = [sys.executable, "-I", "-S", str(APPLICATION), self.mark, *service.words, f"group={group}"]
        self._waiter_is_harmed = False

    @property
    def mark(self) -> str:
        """The word by which processes of this service are known."""
        return f"notes={self.notes_path}"

    async def run(self) -> None:
        """Have the service run as planned, until all that ask for it have its end, or a dozen in a row have not."""
        async with trio.open_nursery() as harming:
            async with trio.open_nursery() as nursery:
                for lane in range(self.service.managers):
                    nursery.start_soon(self._serve_lane, lane, harming)
            harming.cancel_scope.cancel()

    def notes_text(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self.notes_path.read_text()
        return ""

    def notes(self) -> Notes:
        return read_notes(self.notes_text())

    def living(self) -> list[int]:
        """List who lives of all that the application noted."""
        starts = self.notes().starts
        return [pid for start in starts for pid in (start.pid, *start.children) if is_alive(pid, self.mark)]

    async def _serve_lane(self, lane: int, harming: trio.Nursery) -> None:
        faults = chain(self.service.manager_faults if lane == 0 else (), repeat(()))
        for _ in range(self.service.asked):
            halt = self.service.halt
            for _ in range(MAX_MANAGERS):
                harm = next(faults)
                report = await self._one_manager(harm, halt, harming)
                if report.ending is not None and not report.killed:
                    break
                if report.killed or report.detached:
                    await trio.sleep(harm[-1].seconds)
                if halt is not None and report.halted_at is not None:
                    halt = Halt(0.0, from_started=True)  # it may have been started after all: wait, then stop that

    async def _one_manager(self, faults: tuple[ManagerFault, ...], halt: Halt | None, harming: trio.Nursery) -> Report:
        index = self.service.index
        version = (index + len(self.reports)) % 2
        manager = await start_manager(self._guest, version, self.service.options, self._command)
        self._chronicle.note(f"manager {manager.process.pid} started", index)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._inflicter.harm_manager, index, manager, faults)
            nursery.start_soon(self._harm_waiter, manager, harming)
            if halt is not None:
                nursery.start_soon(self._halt, manager, halt)
            report = await manager.finish()
            nursery.cancel_scope.cancel()
        self._chronicle.note(f"manager {manager.process.pid} ended with {report.status}", index)
        report.alive = frozenset(self.living())
        self.reports.append(report)
        return report

    async def _harm_waiter(self, manager: Manager, harming: trio.Nursery) -> None:
        await manager.claimed.wait()
        if not self._waiter_is_harmed and self.service.waiter_faults:
            self._waiter_is_harmed = True
            harming.start_soon(self._inflicter.harm_waiter, self.service.index, self.service.waiter_faults)

    async def _halt(self, manager: Manager, halt: Halt) -> None:
        if halt.from_started:
            await manager.claimed.wait()
        await trio.sleep(halt.after)
        manager.halted_at = time.monotonic()
        if manager.send(signal.SIGTERM):
            self._chronicle.fault("stop by manager", self.service.index)
        else:
            manager.halted_at = None

    async def wait_stopped(self, *, may_be_out_of_reach: bool) -> list[int]:
        """Wait for the end of those whom the survivors policy stops; give those who do not end."""
        if self.service.sort != "children stopped":
            return []
        await wait_until(lambda: not self.living(), ORPHAN_SECONDS if may_be_out_of_reach else SETTLE_SECONDS)
        return self.living()

    async def wait_trimmed(self) -> list[str]:
        """Wait until the logs are within their bound; give those that are not."""
        await wait_until(lambda: not list(self._over_bound()), TRIM_SECONDS)
        return list(self._over_bound())

    def _outputs(self) -> set[Path]:
        return {Path(report.output) for report in self.reports if report.output is not None}

    def _over_bound(self) -> Iterator[str]:
        for path in self._outputs():
            with contextlib.suppress(FileNotFoundError):
                size = path.stat().st_size
                if size > LOG_MAX_BYTES + MARK_BYTES:
                    yield f"{path}: {size} bytes"

    def clean_up(self) -> None:
        """Remove what would only fill the disk in the course of ten thousand services."""
        for path in {self.notes_path, *self._outputs()}:
            path.unlink(missing_ok=True)
