"""A supervisor with processes and managers that the test plays, for the tests of what it decides and records."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio
from fakes import Log

from appserver.effects import Tell, TellEnded, TellRefused, TellRunning, Terms
from appserver.identity import Service
from appserver.outcome import Exited, Outcome
from appserver.processes import Usage
from appserver.procfs import boot_id
from appserver.recordformat import SLOT_BYTES, Request, State
from appserver.records import Records
from appserver.rules import OPEN
from appserver.settings import ServerSettings
from appserver.supervisor import Supervisor
from pki.material import Keys

PATIENCE_SECONDS = 20
OWN, OTHER, THIRD = "a" * 32, "b" * 32, "c" * 32
SERVICE = Service("line", ("/bin/true",))
SLEEP = Service("line", ("/bin/sleep 7",))
TERMS = Terms("leave", 30.0)
RUNNING = State("running", pid=4711, start_ticks=1, started_at=1.5, started_monotonic=2.5)
ENDED = replace(RUNNING, phase="ended", outcome=Exited(3), gone=True)


class FakeProcesses:
    """Follows what it is told to; the test tells what becomes of it."""

    def __init__(self) -> None:
        self.forgotten: list[str] = []
        self.watched: set[str] = set()
        self.described: dict[str, tuple[Request | None, State]] = {}
        self.orders: list[tuple[object, ...]] = []
        self.followed: dict[str, tuple[Callable[[State], None], Callable[[], None]]] = {}
        self.breaks: dict[str, Exception] = {}
        self._news = trio.Event()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def follow(self, run_id: str, *, changed: Callable[[State], None], stopping: Callable[[], None]) -> None:
        self.followed[run_id] = (changed, stopping)
        self._news.set()
        self._news = trio.Event()
        if run_id in self.breaks:
            raise self.breaks[run_id]
        await trio.sleep_forever()

    def order_stop(self, run_id: str, by: str, timeout_seconds: float) -> None:
        self.orders.append(("stop", run_id, by, timeout_seconds))

    def set_terms(self, run_id: str, terms: Terms) -> None:
        self.orders.append(("terms", run_id, terms))

    def is_watched(self, run_id: str) -> bool:
        return run_id in self.watched

    def describe(self, run_id: str) -> tuple[Request | None, State] | None:
        return self.described.get(run_id)

    def forget(self, run_id: str) -> None:
        self.forgotten.append(run_id)

    def usage(self, pid: int, start_ticks: int | None) -> Usage | None:
        return Usage(float(pid), start_ticks or 0)

    async def until_followed(self, run_id: str) -> None:
        with trio.fail_after(PATIENCE_SECONDS):
            while run_id not in self.followed:
                await self._news.wait()

    def change(self, run_id: str, state: State) -> None:
        self.followed[run_id][0](state)


class FakeWatcher:
    """A manager's session that keeps what it is told."""

    audit_name = "cmappmgr[5] on node1"
    fingerprint = "AB"

    def __init__(self) -> None:
        self.told: list[Tell] = []
        self._news = trio.Event()

    def tell(self, what: Tell, /) -> None:
        self.told.append(what)
        self._news.set()

    async def next(self) -> Tell:
        with trio.fail_after(PATIENCE_SECONDS):
            while not self.told:
                self._news = trio.Event()
                await self._news.wait()
        return self.told.pop(0)

    async def outcome(self) -> Outcome:
        told = await self.next()
        assert isinstance(told, TellEnded)
        return told.outcome

    async def refusal(self) -> tuple[str, str]:
        told = await self.next()
        assert isinstance(told, TellRefused)
        return told.code, told.text


class Guest:
    def __init__(self, directory: Path, *, max_processes: int = 30, is_prepared: bool = True) -> None:
        self.log_dir = directory / "log"
        keys = Keys("", "", "", "", "accept")
        state_dir = str(directory / "state")
        log_dir = str(self.log_dir)
        self.settings = ServerSettings(keys, (), 0, max_processes, state_dir, log_dir, 1 << 20, OPEN, None)
        self.records = Records(state_dir)
        if is_prepared:
            self.log_dir.mkdir(exist_ok=True)
            self.records.prepare()
        self.processes = FakeProcesses()
        self.log = Log()
        environment = {"PATH": os.defpath}
        self.supervisor = Supervisor(self.settings, self.records, self.processes, environment, self.log.as_report())

    async def start(self, run_id: str = OWN, service: Service = SERVICE) -> FakeWatcher:
        """Have a run started, and say that it runs."""
        watcher = FakeWatcher()
        await self.supervisor.run(watcher, run_id, service, TERMS)
        await self.processes.until_followed(run_id)
        self.processes.change(run_id, RUNNING)
        told = await watcher.next()
        assert isinstance(told, TellRunning)
        return watcher

    async def first_news(self, watcher: FakeWatcher, run_id: str) -> Tell | None:
        """Wait until a run is followed (None), or its asker is told something."""
        with trio.fail_after(PATIENCE_SECONDS):
            while run_id not in self.processes.followed and not watcher.told:  # noqa: ASYNC110
                await trio.sleep(0.001)
        return watcher.told.pop(0) if watcher.told else None

    def record(self, run_id: str, state: State, *, service: Service = SERVICE, boot: str | None = None) -> None:
        """Leave a record as a former server did."""
        log_path = str(self.log_dir / "former.log")
        request = Request(run_id, service, "/bin/true", ("/bin/true",), log_path, 1 << 20, boot or boot_id(), 1.5)
        self.records.create(request, state)

    def recorded(self) -> set[str]:
        return {record.run_id for record in self.records.all()}


@asynccontextmanager
async def serving(guest: Guest) -> AsyncIterator[Guest]:
    guest.supervisor.recover()
    async with trio.open_nursery() as nursery:
        await nursery.start(guest.supervisor.serve)
        yield guest
        nursery.cancel_scope.cancel()


def damage(path: str) -> None:
    Path(path).write_bytes(b"\0" * 2 * SLOT_BYTES)
