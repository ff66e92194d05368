"""The supervisor with processes that the test plays, cancelled at every point: what is on disk then is whole, and the
next server takes it in.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cancelling import Probe, Swept, Way, show, sweep
from supervised import ENDED, OTHER, OWN, RUNNING, SERVICE, SLEEP, TERMS, FakeWatcher, Guest, serving

from appserver.effects import TellEnded
from appserver.outcome import Account, Exited

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="starts POSIX commands by name")

GRACE_SECONDS = 20.0
"""A look for a program is in a thread, which a busy machine may keep waiting."""


async def play_all(guest: Guest) -> None:
    """Two starts, one of them joined by a second manager and stopped; the other one ends by itself."""
    async with serving(guest):
        watcher = await guest.start()
        second = FakeWatcher()
        await guest.supervisor.run(second, "d" * 32, SERVICE, TERMS)
        await second.next()
        other = FakeWatcher()
        await guest.supervisor.run(other, OTHER, SLEEP, TERMS)
        await guest.processes.until_followed(OTHER)
        await guest.supervisor.stop(second, OWN, "a test", 5.0)
        guest.processes.followed[OWN][1]()
        guest.processes.change(OTHER, replace(ENDED, pid=4712))
        await other.next()
        await other.outcome()
        guest.supervisor.acknowledge(OTHER)
        guest.processes.change(OWN, ENDED)
        for each in (watcher, second):
            guest.supervisor.leave(each)


def sweep_played_supervisor(parent: Path, ways: tuple[Way, ...] = tuple(Way)) -> Swept:
    numbers = itertools.count(1)

    async def play(probe: Probe) -> None:
        directory = parent / f"played{next(numbers)}"
        directory.mkdir()
        guest = Guest(directory)
        await probe.run(lambda: play_all(guest))
        assert "a bug" not in guest.log.text
        assert guest.recorded() <= {OWN, OTHER}
        for each in guest.records.all():
            each.read_request()
            each.read_state()  # whole, or it would raise
        async with serving(Guest(directory)) as following:
            assert not following.log.count("damaged")
            watcher = FakeWatcher()
            await following.supervisor.run(watcher, OWN, SERVICE, TERMS)
            await following.processes.until_followed(OWN)  # nothing was executed, so it is started, or was found again
            following.processes.change(OWN, RUNNING)
            following.processes.change(OWN, ENDED)
            while not isinstance(told := await watcher.next(), TellEnded):
                pass
            assert replace(told.outcome, account=Account()) == Exited(3)

    return sweep("supervisor, played", [(play, GRACE_SECONDS)], real=True, ways=ways)


def test_supervisor_cancelled_at_any_point_leaves_what_the_next_one_takes_in(tmp_path: Path) -> None:
    show(sweep_played_supervisor(tmp_path, (Way.CANCEL,)))
