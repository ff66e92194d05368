"""A guest whose applications are played by the test: the true supervisor over true records on disk, and sessions with
it over streams in memory, all of which a restart of the server takes down and builds anew.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

import trio
import trio.testing
from fakes import Log, Manager

from appserver.effects import Terms
from appserver.identity import Service
from appserver.messages import Greeting, Hello
from appserver.outcome import Account, Outcome
from appserver.processes import Usage
from appserver.protocol import CLOSED, Event
from appserver.recordformat import Request, State, StopOrder
from appserver.records import Records, StateFile
from appserver.rules import OPEN
from appserver.session import MIN_SILENCE_SECONDS, SILENT_POLLS, PeerName, Session
from appserver.settings import ServerSettings
from appserver.supervisor import Supervisor
from pki.material import Keys


@dataclass
class Application:
    """One process tree as it really is."""

    service: Service
    state: State = field(default_factory=State)
    ordered: bool = False
    failed: bool = False

    @property
    def lives(self) -> bool:
        return not self.failed and not self.state.gone and (self.state.outcome is None or self.state.stop is not None)


@dataclass(eq=False)
class Talk:
    """One manager's connection, what it still waits for, and all that it was told."""

    manager: Manager
    scope: trio.CancelScope
    silence_seconds: float
    heard: list[Event] = field(default_factory=list)
    run: tuple[int, str, Service | None] | None = None
    stop: int | None = None
    polls: Counter[int] = field(default_factory=Counter)
    told: set[str] = field(default_factory=set)
    spoke_at: float = 0.0
    over: bool = False
    """This end has broken the rules, or taken its leave: nothing more is to be expected."""

    @property
    def closed(self) -> bool:
        return CLOSED in self.heard


@final
class PlayedProcesses:
    """What the operating system would do. The records are the truth, as with true waiters."""

    def __init__(self, records: Records, applications: dict[str, Application]) -> None:
        self._records = records
        self._applications = applications
        self._followed: dict[str, tuple[Callable[[State], None], Callable[[], None], trio.Event]] = {}

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def follow(self, run_id: str, *, changed: Callable[[State], None], stopping: Callable[[], None]) -> None:
        service = self._records.get(run_id).read_request().service
        application = self._applications.setdefault(run_id, Application(service))
        beside = [
            it for it in self._applications.values() if it.lives and it.service == service and it is not application
        ]
        # What is left of an ended one may live beside another: only the main processes are one at a time.
        assert not (application.lives and beside), "a second copy was started beside the first"
        over = trio.Event()
        self._followed[run_id] = (changed, stopping, over)
        if application.state.phase != "starting":
            changed(application.state)
        if not application.state.gone:
            await over.wait()

    def order_stop(self, run_id: str, by: str, timeout_seconds: float) -> None:
        assert by.isprintable()
        assert timeout_seconds >= 0
        if run_id in self._applications:
            self._applications[run_id].ordered = True

    def set_terms(self, run_id: str, terms: Terms) -> None:
        pass

    def is_watched(self, run_id: str) -> bool:
        return run_id in self._applications and self._applications[run_id].lives

    def describe(self, run_id: str) -> tuple[Request | None, State] | None:  # noqa: ARG002  (no record is damaged here)
        return None

    def forget(self, run_id: str) -> None:
        pass

    def usage(self, pid: int, start_ticks: int | None) -> Usage | None:
        return Usage(float(pid), start_ticks or 0)

    # What happens to the applications.

    def change(self, run_id: str, state: State) -> None:
        self._applications[run_id].state = state
        file = StateFile(self._records.get(run_id))
        file.write(state)
        file.close()
        if run_id in self._followed:
            changed, _, over = self._followed[run_id]
            if state.gone:
                del self._followed[run_id]
                over.set()
            changed(state)

    def start(self, run_id: str, *, fails: bool) -> None:
        state = self._applications[run_id].state
        if fails:
            self._applications[run_id].failed = True
            self.change(run_id, replace(state, phase="failed", failure=("start-failed", "no memory"), gone=True))
        else:
            self.change(run_id, replace(state, phase="running", pid=77, start_ticks=1, started_at=1.0))

    def accept_stop(self, run_id: str) -> None:
        state = self._applications[run_id].state
        if state.stop is None:
            self.change(run_id, replace(state, stop=StopOrder("somebody", 1.0)))
        if run_id in self._followed:
            self._followed[run_id][1]()

    def end(self, run_id: str, outcome: Outcome, *, gone: bool) -> None:
        state = self._applications[run_id].state
        if state.outcome is None:
            by = state.stop.by if state.stop is not None else None
            state = replace(state, phase="ended", outcome=replace(outcome, account=Account(stopped_by=by)))
        self.change(run_id, replace(state, gone=gone))


@final
class PlayedGuest:
    """One guest over all its servers, one after the other."""

    def __init__(self, directory: Path, max_processes: int) -> None:
        self.applications: dict[str, Application] = {}
        self.log = Log()
        self._settings = ServerSettings(
            keys=Keys("", "", "", "", "accept"),
            listen=(),
            port=0,
            max_processes=max_processes,
            state_dir=str(directory / "state"),
            log_dir=str(directory),
            log_max_bytes=1 << 20,
            policy=OPEN,
            config_path=None,
        )
        self.talks: dict[str, Talk] = {}

    async def begin(self, nursery: trio.Nursery) -> None:
        """Begin to serve, as a server that was just started does; return when it is ready."""
        self.records = Records(self._settings.state_dir)
        self.records.prepare()
        self.processes = PlayedProcesses(self.records, self.applications)
        environment = {"PATH": os.defpath}
        self.supervisor = Supervisor(self._settings, self.records, self.processes, environment, self.log.as_report())
        self.supervisor.recover()
        self._scope = await nursery.start(self.serve)

    async def serve(self, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        """Serve until killed; reports the scope to kill it by."""
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as self._server:
                await self._server.start(self.supervisor.serve)
                task_status.started(scope)

    async def restart(self, nursery: trio.Nursery) -> None:
        """Kill the server, and start another on the same state directory."""
        self._scope.cancel()
        self.talks.clear()
        await trio.testing.wait_all_tasks_blocked()
        await self.begin(nursery)

    async def connect(self, name: str, poll_seconds: float) -> Talk:
        ours, theirs = trio.testing.memory_stream_pair()
        session = Session(theirs, self.supervisor, self.log.as_report(), PeerName("192.0.2.7", "AB:CD"))
        self.serve_soon(session)
        manager = Manager(ours)
        silence = max(MIN_SILENCE_SECONDS, SILENT_POLLS * poll_seconds)
        talk = Talk(manager, trio.CancelScope(), silence, spoke_at=trio.current_time())
        assert isinstance(await manager.hear(), Greeting)
        await manager.say(Hello(1, "cmappmgr 1", name, 77, poll_seconds))
        self._server.start_soon(self._listen, talk)
        self.talks[name] = talk
        return talk

    def serve_soon(self, session: Session) -> None:
        self._server.start_soon(session.serve)

    @staticmethod
    async def _listen(talk: Talk) -> None:
        with talk.scope:
            while not talk.closed:
                talk.heard.append(await talk.manager.hear())

    async def settle(self) -> None:
        """Let everybody do all that can be done without time passing."""
        while True:
            await trio.testing.wait_all_tasks_blocked()
            if not self.supervisor._starting.looking_up.borrowed_tokens:
                return
            await trio.lowlevel.checkpoint()
