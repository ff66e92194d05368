"""The rules of the portable backend's follower, one by one: no process, clocks that are set by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appserver import portable
from appserver.census import Census, Seen, Tree
from appserver.effects import Terms
from appserver.identity import Service
from appserver.outcome import Account, Exited
from appserver.portable import KILL_SWEEP_SECONDS, LOOK_SECONDS, SWEEP_SECONDS, PortableProcesses, _Follower
from appserver.recordformat import RecordError, Request, State, StopOrder
from appserver.records import Records, RunRecord, StateFile

REQUEST = Request("r1", Service("line", ("a",)), "/bin/a", ("a",), "/log", 1000, "boot", 1.5)
RUNNING = State(phase="running", pid=7, start_ticks=8, started_at=900.0, started_monotonic=90.0)
STOP = StopOrder("somebody", 105.0)


class Bench:
    """A follower of a run on record, with what it tells and whom it ends."""

    def __init__(self, record: RunRecord, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.told: list[State] = []
        self.stopping = 0
        self.ended: list[tuple[int, int, bool]] = []
        monkeypatch.setattr("appserver.portable.time.monotonic", lambda: self.now)
        monkeypatch.setattr("appserver.portable.trio.current_time", lambda: self.now)
        monkeypatch.setattr("appserver.portable.time.time", lambda: self.now + 900.0)
        monkeypatch.setattr(
            portable, "end_process", lambda pid, created, *, kill: self.ended.append((pid, created, kill))
        )
        self.record = record
        self.file = StateFile(record)
        self.follower = _Follower(REQUEST, self.file, Census(), self.told.append, self._was_stopped, None)

    def _end_process(self, pid: int, created: int, *, kill: bool) -> None:
        self.ended.append((pid, created, kill))

    def _was_stopped(self) -> None:
        self.stopping += 1

    def tree(self, *pids: int) -> Tree:
        tree = Tree((7, 8))
        tree.living = {(pid, 1): Seen(pid, 1, 1, 1) for pid in pids}
        self.follower._tree = tree
        return tree


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    records = Records(str(tmp_path))
    records.prepare()
    with monkeypatch.context() as patched:
        made = Bench(records.create(REQUEST, RUNNING), patched)
        yield made
    made.file.close()


def test_the_shorter_stop_counts_and_the_first_name_stays(bench: Bench) -> None:
    follower = bench.follower
    wake = follower._wake
    follower.order_stop("first", 5.0)
    assert wake.is_set()
    follower.order_stop("second", 5.0)
    follower.order_stop("third", 6.0)
    assert bench.record.read_state().stop == StopOrder("first", 105.0)
    follower.order_stop("fourth", 1.0)
    assert bench.record.read_state().stop == StopOrder("first", 101.0)
    assert (bench.stopping, len(bench.told)) == (4, 2)


def test_terms_are_recorded_and_told(bench: Bench) -> None:
    bench.follower.set_terms(Terms("stop", 4.0))
    state = bench.record.read_state()
    assert (state.survivors, state.stop_timeout_seconds) == ("stop", 4.0)
    assert bench.told == [state] == [bench.follower.state]


def test_what_cannot_be_recorded_is_told_all_the_same(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RecordError("the disk is broken")

    monkeypatch.setattr(StateFile, "write", broken)
    bench.follower.set_terms(Terms("stop", 4.0))
    assert bench.told[0].survivors == "stop"
    assert bench.record.read_state() == RUNNING


def test_pauses_follow_the_stop(bench: Bench) -> None:
    follower = bench.follower
    assert follower._pause_seconds() == pytest.approx(LOOK_SECONDS)
    bench.now += LOOK_SECONDS + 1
    assert follower._pause_seconds() == 0.0
    follower.write(stop=STOP)
    assert follower._pause_seconds() == SWEEP_SECONDS
    bench.now = STOP.kill_at - 0.125
    assert follower._pause_seconds() == 0.125
    bench.now = STOP.kill_at
    assert follower._pause_seconds() == KILL_SWEEP_SECONDS


def test_each_process_is_asked_once_and_killed_again_and_again(bench: Bench) -> None:
    tree = bench.tree(5, 6)
    for kill in (False, False, True, True):
        bench.follower._signal(tree, kill=kill)
    asked, killed = [(5, 1, False), (6, 1, False)], [(5, 1, True), (6, 1, True)]
    assert bench.ended == [*asked, *killed, *killed]


def test_who_was_born_after_the_first_were_asked_is_left_alone_until_the_kill(bench: Bench) -> None:
    tree = bench.tree(5)
    bench.follower._signal(tree, kill=False)
    asked_at = int((bench.now + 900.0) * 100)
    for pid, created in ((6, asked_at - 1), (7, asked_at), (8, asked_at + 1)):
        tree.living[pid, created] = Seen(pid, 1, 1, created)
    bench.follower._signal(tree, kill=False)
    assert bench.ended == [(5, 1, False), (6, asked_at - 1, False)]
    bench.follower._signal(tree, kill=True)
    assert [pid for pid, _, kill in bench.ended if kill] == [5, 6, 7, 8]


def test_the_end_is_recorded_with_what_is_known_of_it(bench: Bench) -> None:
    bench.tree(5)
    bench.follower._main_ended(Exited(3))
    account = Account(ended_at=1000.0, ran_seconds=10.0, survivors=1)
    state = bench.record.read_state()
    assert (state.phase, state.outcome, state.stop, state.gone) == ("ended", Exited(3, account), None, False)


def test_survivors_are_stopped_where_that_is_wanted_and_there_are_some(bench: Bench) -> None:
    bench.follower.set_terms(Terms("stop", 4.0))
    bench.follower._main_ended(Exited(3))
    bench.tree()
    bench.follower._main_ended(Exited(3))
    assert bench.record.read_state().stop is None
    bench.tree(5)
    bench.follower._main_ended(Exited(3))
    assert bench.record.read_state().stop == StopOrder("the survivors policy", 104.0)


def test_a_former_stop_stays_and_says_who_stopped_it(bench: Bench) -> None:
    bench.follower.set_terms(Terms("stop", 4.0))
    bench.follower.write(stop=STOP, started_monotonic=None)
    bench.tree(5)
    bench.follower._main_ended(Exited(3))
    state = bench.record.read_state()
    assert state.outcome is not None
    assert (state.stop, state.outcome.account.stopped_by, state.outcome.account.ran_seconds) == (STOP, "somebody", None)


def test_orders_for_a_run_that_will_never_be_followed_are_dropped(tmp_path: Path) -> None:
    processes = PortableProcesses(Records(str(tmp_path)), {})
    processes.order_stop("r1", "me", 5.0)
    processes.set_terms("r1", Terms("stop", 5.0))
    assert (processes._early_stops, processes._early_terms) == ({"r1": ("me", 5.0)}, {"r1": Terms("stop", 5.0)})
    assert not processes.is_watched("r1")
    processes.forget("r1")
    processes.forget("r1")
    assert (processes._early_stops, processes._early_terms) == ({}, {})
