"""The follower against a launcher that cannot keep a waiter alive."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing

from appserver import procfs
from appserver.following import ADOPT_RETRY_SECONDS, MAX_LAUNCHES, Follower
from appserver.identity import Service
from appserver.launching import LaunchError, Launching
from appserver.recordformat import Request, State
from appserver.records import Records, RunRecord

RUN = "0" * 32


class DeadlyLauncher:
    """Obeys every order, and its waiters die at once."""

    def __init__(self) -> None:
        self.orders: list[tuple[str, float]] = []

    async def order(self, verb: str, run_id: str) -> None:
        await trio.lowlevel.checkpoint()
        assert run_id == RUN
        self.orders.append((verb, trio.current_time()))

    def is_watched(self, run_id: str) -> bool:
        assert run_id == RUN
        return False


def record(directory: Path, state: State) -> RunRecord:
    records = Records(str(directory))
    records.prepare()
    service = Service("line", ("/bin/true",))
    request = Request(RUN, service, "/bin/true", ("/bin/true",), "/dev/null", 4096, procfs.boot_id(), time.time())
    return records.create(request, state)


async def test_start_is_refused_when_waiter_after_waiter_dies(tmp_path: Path) -> None:
    launcher = DeadlyLauncher()
    follower = Follower(record(tmp_path, State()), cast("Launching", launcher))
    with pytest.raises(LaunchError, match="waiters died"):
        await follower.follow(lambda _: None, lambda: None)
    assert [verb for verb, _ in launcher.orders] == ["launch"] * MAX_LAUNCHES


async def test_substitutes_that_die_are_asked_for_with_pauses(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    stat = procfs.process_stat(os.getpid())
    assert stat is not None
    launcher = DeadlyLauncher()
    running = State(phase="running", pid=stat.pid, start_ticks=stat.start_ticks)
    follower = Follower(record(tmp_path, running), cast("Launching", launcher))
    began = autojump_clock.current_time()
    with trio.move_on_after(10 * ADOPT_RETRY_SECONDS):
        await follower.follow(lambda _: None, lambda: None)
    assert autojump_clock.current_time() - began >= 10 * ADOPT_RETRY_SECONDS
    assert 9 <= len(launcher.orders) <= 11
    assert {verb for verb, _ in launcher.orders} == {"adopt"}
