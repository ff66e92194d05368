"""Launcher, follower and supervisor, cancelled at every point before true processes: another one after them, as a
restarted server is, finds all in order.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("waiters are made by fork", allow_module_level=True)

import trio
from cancelling import Probe, Swept, Way, sweep
from fakes import Log
from figures import record
from test_cancelling import sweep_link, sweep_session
from test_cancelling_dial import sweep_dial
from test_cancelling_listener import sweep_connection, sweep_listener
from test_cancelling_supervisor import sweep_played_supervisor

from appserver.effects import Tell, TellEnded, TellRefused, Terms
from appserver.identity import Service
from appserver.launching import Launching, wait_for_former
from appserver.outcome import Account, Exited, Outcome, Signaled
from appserver.procfs import boot_id
from appserver.recordformat import Request, State
from appserver.records import Records
from appserver.rules import OPEN
from appserver.settings import ServerSettings
from appserver.supervisor import Supervisor
from appserver.waited import WaitedProcesses
from pki.material import Keys

GRACE_SECONDS = 20.0
"""A launcher leaves in milliseconds; on a busy machine everything may take seconds."""

RUN, OTHER = "a" * 32, "b" * 32
TERMS = Terms("leave", 30.0)
ENVIRONMENT = {"PATH": os.defpath}
NUMBERS = itertools.count(1)


class Place:
    """A state directory, and an application that leaves a line in a file for each time that it is started."""

    def __init__(self, parent: Path, script: str) -> None:
        self.directory = parent / str(next(NUMBERS))
        self.directory.mkdir()
        self.marker = self.directory / "marker"
        self.records = Records(str(self.directory / "state"))
        self.records.prepare()
        self.service = Service("vector", ("/bin/sh", "-c", f"echo started >> {self.marker}; {script}"))

    def record(self, run_id: str = RUN) -> None:
        log_path = str(self.directory / f"{run_id}.log")
        request = Request(run_id, self.service, "/bin/sh", self.service.argv(), log_path, 4096, boot_id(), time.time())
        self.records.create(request, State())

    def processes(self) -> WaitedProcesses:
        return WaitedProcesses(self.records, ENVIRONMENT, Log().as_report())

    def starts(self) -> int:
        return len(self.marker.read_text().splitlines()) if self.marker.exists() else 0


async def follow(processes: WaitedProcesses, *, stop: bool) -> State:
    """Do what a server does about one run, to its end; give the last state."""
    states: list[State] = []

    def changed(state: State) -> None:
        if stop and state.phase == "running" and state.stop is None:
            processes.order_stop(RUN, "a test", 0.05)
        states.append(state)

    await wait_for_former(processes._records.state_dir, Log().as_report())
    async with trio.open_nursery() as nursery:
        await nursery.start(processes.serve)
        await processes.follow(RUN, changed=changed, stopping=lambda: None)
        nursery.cancel_scope.cancel()
    return states[-1]


def sweep_followers(parent: Path, ways: tuple[Way, ...] = tuple(Way)) -> Swept:
    def scenario(script: str, expected: Outcome, *, stop: bool) -> Callable[[Probe], Awaitable[None]]:
        async def play(probe: Probe) -> None:
            place = Place(parent, script)
            place.record()
            await probe.run(lambda: follow(place.processes(), stop=stop))
            last = await follow(place.processes(), stop=stop)
            assert last.gone
            assert last.outcome is not None
            assert replace(last.outcome, account=Account()) == expected
            assert place.starts() == 1 or (stop and place.starts() == 0)  # the stop may come before it has written

        return play

    async def to_its_end(probe: Probe) -> None:
        await scenario("exit 3", Exited(3), stop=False)(probe)

    async def stopped(probe: Probe) -> None:
        await scenario("exec sleep 1000", Signaled(15), stop=True)(probe)

    return sweep("follower", [(to_its_end, GRACE_SECONDS), (stopped, GRACE_SECONDS)], real=True, ways=ways)


def sweep_orders(parent: Path) -> Swept:
    async def order(probe: Probe) -> None:
        """Only one order is cancelled: the launcher goes on, and the next order is not taken for answered."""
        place = Place(parent, "exit 3")
        place.record()
        place.record(OTHER)
        launching = Launching(place.records, ENVIRONMENT, Log().as_report())
        async with trio.open_nursery() as nursery:
            await nursery.start(launching.serve)
            await probe.run(lambda: launching.order("launch", RUN))
            await launching.order("launch", OTHER)
            state = place.records.get(OTHER).read_state()
            assert state.pid is not None or launching.is_watched(OTHER)
            nursery.cancel_scope.cancel()

    return sweep("order", [(order, GRACE_SECONDS)], real=True)


class Watcher:
    audit_name = "a test"
    fingerprint = "AB"

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.outcome: Outcome | None = None

    def tell(self, what: Tell, /) -> None:
        assert not isinstance(what, TellRefused), what
        if isinstance(what, TellEnded):
            self.outcome = what.outcome
            self.ended.set()


async def supervise(place: Place) -> Outcome | None:
    """Be a server with one manager, which asks for the run and waits for its end."""
    keys = Keys("", "", "", "", "accept")
    directory = str(place.directory)
    settings = ServerSettings(keys, (), 0, 30, f"{directory}/state", directory, 1 << 20, OPEN, None)
    log = Log()
    await wait_for_former(place.records.state_dir, log.as_report())
    supervisor = Supervisor(settings, place.records, place.processes(), ENVIRONMENT, log.as_report())
    supervisor.recover()
    watcher = Watcher()
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.serve)
        await trio.lowlevel.checkpoint()  # the daemon ends its sessions first: none asks a supervisor that has ended
        await supervisor.run(watcher, RUN, place.service, TERMS)
        await watcher.ended.wait()
        nursery.cancel_scope.cancel()
    assert "a bug" not in log.text
    return watcher.outcome


def sweep_supervisor(parent: Path, ways: tuple[Way, ...] = tuple(Way)) -> Swept:
    async def start(probe: Probe) -> None:
        place = Place(parent, "exit 3")
        await probe.run(lambda: supervise(place))
        for each in place.records.all():
            each.read_request()
            each.read_state()  # whole, or it would raise
        outcome = await supervise(place)
        assert outcome is not None
        assert replace(outcome, account=Account()) == Exited(3)
        assert place.starts() == 1

    return sweep("supervisor", [(start, GRACE_SECONDS)], real=True, ways=ways)


@pytest.mark.long
def test_whatever_is_cancelled_at_any_point_leaves_nothing_and_loses_nothing(tmp_path: Path) -> None:
    log_path = tmp_path / "log"
    log_path.write_text("last words\n")
    swept = [
        sweep_session(log_path),
        sweep_link(),
        sweep_listener(),
        sweep_connection(),
        sweep_orders(tmp_path),
        sweep_followers(tmp_path),
        sweep_supervisor(tmp_path),
        sweep_played_supervisor(tmp_path),
        sweep_dial(),
    ]
    columns = ["cancelled", "points", "cancellations", "left something behind"]
    record(
        "ends",
        columns,
        [each.row() for each in swept],
        f"Measured on {datetime.now(timezone.utc):%d %B %Y}, two cores.",
    )
