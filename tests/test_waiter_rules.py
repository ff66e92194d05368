"""The rules of a waiter, one by one, in the process of the tests: no application, a clock that is set by hand."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("waiters are made by fork", allow_module_level=True)

from appserver import waiter as room
from appserver.identity import Service
from appserver.outcome import Account, Exited, Lost, Outcome, Signaled
from appserver.procfs import Stat, process_stat
from appserver.recordformat import Request, State, StopOrder, request_to_json, state_to_json
from appserver.recording import Recording
from appserver.records import Records
from appserver.waiter import (
    KILL_SWEEP_SECONDS,
    MAX_KILL_SWEEP_SECONDS,
    SWEEP_SECONDS,
    TRIM_SECONDS,
    Waiter,
    wake_on_children,
)

RUN = "0123456789abcdef" * 2
REQUEST = Request(RUN, Service("line", ("a",)), "/bin/a", ("a",), "/nowhere/log", 1000, "boot", 1.5)
RUNNING = State(phase="running", pid=1 << 22, start_ticks=8, started_at=900.0, started_monotonic=90.0, oom_kills=3)
STOP = StopOrder("somebody", 105.0)
NOW = 100.0


class Bench:
    """A waiter on its record, with what it finds out about the system laid down here."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, state: State) -> None:
        self.now = NOW
        self.tree: list[Stat] = []
        self.done: list[tuple[object, ...]] = []
        self.memory_kills: int | None = None
        for name in ("monotonic", "time"):
            offset = 0.0 if name == "monotonic" else 900.0
            monkeypatch.setattr(f"appserver.waiter.time.{name}", lambda offset=offset: self.now + offset)
        monkeypatch.setattr(room, "kill", lambda tree: self.done.append(("kill", list(tree))))
        monkeypatch.setattr(room, "terminate", lambda tree, _: self.done.append(("terminate", list(tree))))
        monkeypatch.setattr(room, "descendants", lambda pid: self.tree if pid == os.getpid() else [])
        monkeypatch.setattr(room, "tree_without_parent", lambda *main: [*self.tree] if main == (1 << 22, 8) else [])
        monkeypatch.setattr(room, "was_killed_for_memory", self.was_killed_for_memory)
        monkeypatch.setattr("appserver.waiter.runlog.trim", lambda path, size: self.done.append(("trim", path, size)))
        records = Records(str(path))
        records.prepare()
        self.record = records.create(REQUEST, state)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(path / "c"))
        self.listener.listen()
        self.run = Recording.of_record(self.record)
        self.waiter = Waiter(self.run, self.listener, wake_on_children())

    def was_killed_for_memory(self, pid: int, *, kills_before: int) -> bool:
        assert (pid, kills_before) == (1 << 22, 3)
        return self.memory_kills is not None

    def state(self) -> State:
        return self.record.read_state()

    def ends(self, outcome: Outcome, account: Account = Account(), *, childless: bool = False) -> State:  # noqa: B008
        self.waiter._main_ended(outcome, account, childless=childless)
        return self.state()

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.connect(self.listener.getsockname())
        self.waiter._attend(self.listener.fileno())
        client.settimeout(10)
        assert json.loads(client.recv(4096)) == {"version": 1, "pid": os.getpid()}
        return client

    def serve(self) -> None:
        """Attend to whatever has come."""
        self.waiter.attend(0.0)

    def ask(self, client: socket.socket, data: object) -> None:
        client.send(data if isinstance(data, bytes) else json.dumps(data).encode())
        self.serve()

    def close(self) -> None:
        self.waiter.close()
        self.listener.close()
        os.close(signal.set_wakeup_fd(-1))
        os.close(self.waiter._wakeup)
        self.run.close()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    handler = signal.getsignal(signal.SIGCHLD)
    made = Bench(tmp_path, monkeypatch, RUNNING)
    yield made
    made.close()
    signal.signal(signal.SIGCHLD, handler)


def heard(client: socket.socket) -> dict[str, object]:
    message = json.loads(client.recv(1 << 20))
    assert isinstance(message, dict)
    return message


def somebody(pid: int) -> Stat:
    found = process_stat(os.getpid())
    assert found is not None
    return found._replace(pid=pid)


# The end of the main process.


def test_the_end_is_recorded_with_what_is_known_of_it(bench: Bench) -> None:
    usage = Account(user_seconds=0.1, system_seconds=0.2, max_rss_bytes=4096)
    state = bench.ends(Exited(7), usage)
    account = replace(usage, ended_at=1000.0, ran_seconds=10.0, survivors=0)
    assert state == replace(RUNNING, phase="ended", outcome=Exited(7, account))


def test_a_run_of_unknown_start_ran_for_no_time(bench: Bench) -> None:
    bench.waiter._write(started_monotonic=None)
    outcome = bench.ends(Exited(0)).outcome
    assert outcome is not None
    assert outcome.account.ran_seconds == 0.0


def test_only_a_kill_that_nobody_asked_for_is_looked_for_in_the_kernels_memory(bench: Bench) -> None:
    bench.memory_kills = 1
    for outcome in (Exited(9), Signaled(15)):
        told = bench.ends(outcome).outcome
        assert told is not None
        assert not told.account.killed_for_memory
    told = bench.ends(Signaled(9)).outcome
    assert told is not None
    assert told.account.killed_for_memory
    bench.waiter._write(stop=STOP)
    told = bench.ends(Signaled(9)).outcome
    assert told is not None
    assert (told.account.killed_for_memory, told.account.stopped_by) == (False, "somebody")


def test_survivors_are_counted_and_stopped_only_where_that_is_wanted(bench: Bench) -> None:
    bench.tree = [somebody(5), somebody(6)]
    left = bench.ends(Exited(0))
    assert left.outcome is not None
    assert (left.outcome.account.survivors, left.stop) == (2, None)
    bench.waiter._write(survivors="stop", stop_timeout_seconds=5.0)
    assert bench.ends(Exited(0)).stop == StopOrder("the survivors policy", 105.0)


def test_nobody_is_stopped_where_nobody_lives_on_and_no_former_stop_is_replaced(bench: Bench) -> None:
    bench.waiter._write(survivors="stop")
    assert bench.ends(Exited(0)).stop is None
    bench.tree = [somebody(5)]
    bench.waiter._write(stop=STOP)
    assert bench.ends(Exited(0)).stop == STOP


def test_an_end_is_recorded_though_nothing_else_can_be_found_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptors(_: int) -> list[Stat]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(room, "descendants", no_descriptors)
    bench.waiter._write(survivors="stop")
    state = bench.ends(Signaled(9))
    assert isinstance(state.outcome, Signaled)
    assert state.outcome.account.survivors is None
    assert state.stop == StopOrder("the survivors policy", 130.0)


def test_an_end_that_leaves_nobody_is_told_at_once_as_the_last_word(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = bench.connect()
    monkeypatch.setattr(room, "descendants", lambda _: pytest.fail("there is nobody to look for"))
    state = bench.ends(Exited(7), childless=True)
    assert state.gone
    assert state.outcome is not None
    assert state.outcome.account.survivors == 0
    assert heard(client) == {"event": "state"}
    bench.waiter.wait()  # which returns: there is nothing to wait for
    client.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.recv(100)
    client.close()


@pytest.mark.parametrize("left", ["a stop", "a log to be trimmed"])
def test_an_end_is_not_the_last_word_where_something_is_left_to_be_done(
    tmp_path: Path, bench: Bench, left: str
) -> None:
    if left == "a stop":
        bench.waiter._write(stop=STOP)
    else:
        log = tmp_path / "log"
        log.write_bytes(b"x" * 1001)
        bench.run.log_path = str(log)
    assert not bench.ends(Exited(7), childless=True).gone


@pytest.mark.parametrize("known", [Exited(4), None])
def test_a_substitute_tells_what_the_kernel_told_it_or_that_it_is_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, known: Outcome | None
) -> None:
    monkeypatch.setattr(room, "outcome_of_stranger", lambda *about: known if about == (7, 1 << 22, 8) else Exited(99))
    bench.waiter._is_substitute = True
    bench.waiter._pidfd = 7
    bench.waiter._stranger_ended()
    outcome = bench.state().outcome
    assert outcome is not None
    text = "its waiter was killed, and this kernel tells nobody else how it ended"
    assert replace(outcome, account=Account()) == (known or Lost(text))
    assert outcome.account.user_seconds is None


def test_the_last_word_on_a_stopped_run_counts_no_survivors(bench: Bench) -> None:
    assert bench.waiter._final_outcome() is None
    bench.tree = [somebody(5)]
    bench.ends(Exited(0))
    left = bench.waiter._final_outcome()
    assert left is not None
    assert left.account.survivors == 1
    bench.waiter._write(stop=STOP)
    bench.ends(Signaled(15))
    stopped = bench.waiter._final_outcome()
    assert stopped is not None
    assert (stopped.account.survivors, stopped.account.stopped_by) == (0, "somebody")


# Stops.


def test_the_shorter_stop_counts_and_the_first_name_stays(bench: Bench) -> None:
    bench.waiter._take_stop_order("first", 5.0)
    assert bench.state().stop == StopOrder("first", 105.0)
    bench.waiter._take_stop_order("second", 6.0)
    bench.waiter._take_stop_order("third", 5.0)
    assert bench.state().stop == StopOrder("first", 105.0)
    bench.waiter._take_stop_order("fourth", 1.0)
    assert bench.state().stop == StopOrder("first", 101.0)


def test_a_stop_asks_first_and_kills_from_its_time_on(bench: Bench) -> None:
    bench.tree = [somebody(5)]
    bench.waiter._advance_stop()
    assert bench.done == []
    bench.waiter._write(stop=STOP)
    bench.waiter._advance_stop()
    assert bench.done == [("terminate", bench.tree)]
    bench.now = STOP.kill_at
    bench.waiter._advance_stop()
    assert bench.done[1:] == [("kill", bench.tree)]
    bench.waiter._write(gone=True)
    bench.waiter._advance_stop()
    assert len(bench.done) == 2


def test_pauses_follow_the_stop_and_double_after_the_kill(bench: Bench) -> None:
    assert bench.waiter._sleep_seconds() == pytest.approx(TRIM_SECONDS)
    bench.now += TRIM_SECONDS + 1
    assert bench.waiter._sleep_seconds() == 0.0
    bench.now += -bench.now % TRIM_SECONDS  # the look at the log that follows is a whole pause away
    bench.waiter.trim()
    bench.waiter._write(stop=STOP)
    assert bench.waiter._sleep_seconds() == pytest.approx(SWEEP_SECONDS)
    bench.now = STOP.kill_at - 0.125
    bench.waiter.trim()
    assert bench.waiter._sleep_seconds() == pytest.approx(0.125)
    bench.now = STOP.kill_at
    bench.waiter.trim()
    assert bench.waiter._sleep_seconds() == pytest.approx(KILL_SWEEP_SECONDS)
    bench.waiter._advance_stop()
    assert bench.waiter._sleep_seconds() == pytest.approx(2 * KILL_SWEEP_SECONDS)
    for _ in range(20):
        bench.waiter._advance_stop()
    assert bench.waiter._kill_sweep_seconds == MAX_KILL_SWEEP_SECONDS


def test_a_waiter_is_done_when_it_is_childless_and_has_an_outcome(bench: Bench) -> None:
    assert not bench.waiter._is_done(childless=True)
    bench.ends(Exited(0))
    assert bench.waiter._is_done(childless=True)
    assert not bench.waiter._is_done(childless=False)


def test_a_substitute_is_done_with_the_outcome_unless_there_is_somebody_to_stop(bench: Bench) -> None:
    bench.waiter._is_substitute = True
    assert not bench.waiter._is_done(childless=True)
    bench.tree = [somebody(5)]
    bench.ends(Exited(0))
    assert bench.waiter._is_done(childless=False)
    bench.waiter._write(stop=STOP)
    assert not bench.waiter._is_done(childless=True)
    bench.tree = []
    assert bench.waiter._is_done(childless=True)


def test_all_waiters_look_at_their_logs_at_the_same_moments(bench: Bench) -> None:
    moments = set()
    for begin in (1000.0, 1000.3, 1000.87):
        bench.now = begin
        bench.waiter.trim(now=True)
        bench.now += 5 * TRIM_SECONDS
        bench.waiter.trim()
        moments.add(bench.now + bench.waiter._sleep_seconds())
    assert max(moments) - min(moments) == pytest.approx(TRIM_SECONDS)
    assert len(moments) == 2
    assert all(moment % TRIM_SECONDS == 0 for moment in moments)


def test_the_log_is_trimmed_at_its_pace_or_at_once_and_with_its_bound(bench: Bench) -> None:
    bench.waiter.trim()
    assert bench.done == []
    trimmed = ("trim", "/nowhere/log", 1000)
    bench.waiter.trim(now=True)
    assert bench.done == [trimmed]
    bench.now += TRIM_SECONDS
    bench.waiter.trim()
    bench.waiter.trim()
    assert bench.done == [trimmed, trimmed]
    bench.now += TRIM_SECONDS
    bench.run.log_path = None
    bench.waiter.trim()
    assert bench.done == [trimmed, trimmed]


def test_a_log_that_cannot_be_trimmed_ends_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("appserver.waiter.runlog.trim", refused)
    bench.waiter.trim(now=True)


# Taking the place of another.


def test_there_is_nothing_to_adopt_once_the_main_process_is_gone_or_was_never_known(bench: Bench) -> None:
    assert not bench.waiter.adopt()  # no process has so high a pid
    bench.waiter._write(pid=os.getpid())
    assert not bench.waiter.adopt()  # this one started at another time
    bench.waiter._write(pid=None)
    assert not bench.waiter.adopt()
    bench.waiter._write(pid=os.getpid(), start_ticks=None)
    assert not bench.waiter.adopt()


def test_an_ended_run_is_adopted_only_to_stop_what_is_left(bench: Bench) -> None:
    bench.ends(Exited(0))
    assert not bench.waiter.adopt()
    bench.waiter._write(stop=STOP)
    assert bench.waiter.adopt()


@pytest.mark.parametrize("phase", ["starting", "running"])
def test_a_process_that_lives_is_adopted_and_runs(bench: Bench, phase: str) -> None:
    ticks = somebody(1).start_ticks
    bench.waiter._write(phase=phase, pid=os.getpid(), start_ticks=ticks)
    assert bench.waiter.adopt()
    assert bench.waiter._is_substitute
    assert bench.state().phase == "running"
    assert bench.waiter._pidfd is not None
    bench.waiter._poller.modify(bench.waiter._pidfd, 0)  # an error where it is not watched
    os.close(bench.waiter._pidfd)


# What a server says.


def test_orders_are_carried_out_and_told(bench: Bench) -> None:
    client = bench.connect()
    bench.ask(client, {"order": "stop", "by": "me", "timeout_seconds": 2})
    assert [heard(client), heard(client)] == [{"event": "state"}, {"event": "stopping"}]
    assert bench.state().stop == StopOrder("me", 102.0)
    bench.ask(client, {"order": "survivors", "policy": "stop", "stop_timeout_seconds": 3})
    assert heard(client) == {"event": "state"}
    assert (bench.state().survivors, bench.state().stop_timeout_seconds) == ("stop", 3)
    client.close()


def test_whoever_asks_for_a_description_gets_it_and_the_state_with_each_nudge_from_then_on(bench: Bench) -> None:
    client, other = bench.connect(), bench.connect()
    bench.ask(client, {"order": "describe"})
    told: dict[str, object] = {"state": state_to_json(RUNNING), "recorded": True}
    request = json.loads(json.dumps(request_to_json(REQUEST)))
    assert heard(client) == {"event": "record", "request": request} | told
    bench.waiter._write(oom_kills=4)
    assert heard(client) == {"event": "state", "state": state_to_json(replace(RUNNING, oom_kills=4)), "recorded": True}
    assert heard(other) == {"event": "state"}
    client.close()
    other.close()


def test_what_cannot_be_recorded_is_told_and_known(bench: Bench) -> None:
    client = bench.connect()
    bench.ask(client, {"order": "describe"})
    heard(client)
    os.close(bench.run._writer()._fd)
    bench.run._writer()._fd = os.open(os.devnull, os.O_RDONLY)
    bench.waiter._write(oom_kills=5)
    assert heard(client)["recorded"] is False
    assert bench.run.state.oom_kills == 5
    assert bench.state().oom_kills == 3
    client.close()


def test_a_request_that_nobody_knows_or_that_is_too_long_to_tell_is_told_as_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = bench.connect()
    monkeypatch.setattr("appserver.recording.MAX_TOLD_BYTES", 500)
    bench.ask(client, {"order": "describe"})
    assert heard(client)["request"] is None
    monkeypatch.undo()
    bench.run.request = None
    bench.ask(client, {"order": "describe"})
    assert heard(client)["request"] is None
    client.close()


@pytest.mark.parametrize("data", [b"{", b"[" * 4000, b"\xff"])
def test_whoever_speaks_nonsense_is_hung_up_on(bench: Bench, data: bytes) -> None:
    client = bench.connect()
    bench.ask(client, data)
    assert client.recv(100) == b""
    assert bench.waiter._connections == {}
    client.close()


@pytest.mark.parametrize("order", [{}, {"order": "dance"}, {"order": "stop", "by": 1, "timeout_seconds": 1}, [1]])
def test_an_order_that_is_not_known_changes_nothing(bench: Bench, order: object) -> None:
    client = bench.connect()
    bench.ask(client, order)
    assert len(bench.waiter._connections) == 1
    assert bench.state() == RUNNING
    client.close()


def test_whoever_leaves_is_let_go_and_the_oldest_gives_way(bench: Bench) -> None:
    clients = [bench.connect() for _ in range(room.MAX_CONNECTIONS)]
    newest = bench.connect()
    assert clients[0].recv(100) == b""
    assert len(bench.waiter._connections) == room.MAX_CONNECTIONS
    newest.close()
    bench.serve()
    assert len(bench.waiter._connections) == room.MAX_CONNECTIONS - 1
    for client in clients:
        client.close()
