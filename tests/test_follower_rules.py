"""The rules of a follower: whom it asks for, what it writes itself, and what it makes of a waiter's words."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

if sys.platform == "win32":
    pytest.skip("waiters are made by fork", allow_module_level=True)

import trio
import trio.testing
from test_following import RUN, DeadlyLauncher, record

from appserver import following, procfs
from appserver.control import read_told
from appserver.effects import Terms
from appserver.following import Follower
from appserver.launching import Launching
from appserver.outcome import Account, Exited, Lost
from appserver.recordformat import DamagedRecordError, State, StopOrder, UnreadableRecordError, state_to_json
from appserver.records import RunRecord, StateFile

GONE_PID = 1 << 22
"""No process has it: it is the bound of pids."""

RUNNING = State(phase="running", pid=GONE_PID, start_ticks=8, started_at=1.5, started_monotonic=2.5)
ENDED = replace(RUNNING, phase="ended", outcome=Exited(3))
LOST = "its waiter was killed, and nobody else saw how it ended"


def follower_of(made: RunRecord) -> tuple[Follower, DeadlyLauncher]:
    launcher = DeadlyLauncher()
    return Follower(made, cast("Launching", launcher)), launcher


async def follow(made: RunRecord) -> tuple[list[State], list[str]]:
    """Follow a run that nobody watches any more to its end; give what was told, and whom the launcher was asked for."""
    follower, launcher = follower_of(made)
    told: list[State] = []
    await follower.follow(told.append, lambda: None)
    return told, [verb for verb, _ in launcher.orders]


async def test_a_run_that_is_over_is_told_once(tmp_path: Path) -> None:
    over = replace(ENDED, gone=True)
    assert await follow(record(tmp_path, over)) == ([over], [])


async def test_an_ended_run_without_a_waiter_is_over_and_so_is_a_stop_of_nobody(tmp_path: Path) -> None:
    for number, state in enumerate((ENDED, replace(ENDED, stop=StopOrder("me", 1.0)))):
        made = record(tmp_path / str(number), state)
        over = replace(state, gone=True)
        assert await follow(made) == ([state, over], [])
        assert made.read_state() == over


async def test_a_process_that_ended_unseen_is_lost_and_told_so(tmp_path: Path) -> None:
    made = record(tmp_path, replace(RUNNING, stop=StopOrder("me", 1.0)))
    before = time.time()
    told, orders = await follow(made)
    ended = told[1]
    assert orders == []
    assert ended.outcome is not None
    account = ended.outcome.account
    assert replace(ended.outcome, account=Account()) == Lost(LOST)
    assert account.stopped_by == "me"
    assert account.ended_at is not None
    assert before <= account.ended_at <= time.time()
    assert account.ran_seconds is not None
    assert account.ran_seconds == pytest.approx(time.monotonic() - 2.5, abs=60)
    assert (ended.phase, ended.stop) == ("ended", StopOrder("me", 1.0))
    assert told[2] == replace(ended, gone=True) == made.read_state()


async def test_survivors_of_a_process_that_ended_unseen_are_stopped_where_that_is_wanted(tmp_path: Path) -> None:
    wanted = replace(RUNNING, survivors="stop", stop_timeout_seconds=5.0, started_monotonic=None)
    before = time.monotonic()
    told, _ = await follow(record(tmp_path, wanted))
    stop = told[1].stop
    assert stop is not None
    assert stop.by == "the survivors policy"
    assert before + 5.0 <= stop.kill_at <= time.monotonic() + 5.0
    outcome = told[1].outcome
    assert outcome is not None
    assert (outcome.account.ran_seconds, outcome.account.stopped_by) == (None, None)


def test_what_the_kernel_still_knows_is_the_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        following, "outcome_of_stranger", lambda *about: Exited(7) if about == (55, GONE_PID, 8) else None
    )
    follower, _ = follower_of(record(tmp_path, RUNNING))
    assert isinstance(follower._epitaph(RUNNING, GONE_PID, 8).outcome, Lost)
    follower._pidfd = 55
    assert isinstance(follower._epitaph(RUNNING, GONE_PID, 8).outcome, Exited)


async def test_an_end_that_cannot_be_written_is_told_as_the_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = record(tmp_path, RUNNING)

    def torn(*_: object) -> None:
        raise DamagedRecordError("torn")

    monkeypatch.setattr(StateFile, "write", torn)
    told, _ = await follow(made)
    assert (told[-1].phase, told[-1].gone) == ("ended", True)
    assert made.read_state() == RUNNING


async def test_a_process_that_lives_without_a_waiter_gets_a_substitute(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    stat = procfs.process_stat(os.getpid())
    assert stat is not None
    follower, launcher = follower_of(record(tmp_path, replace(RUNNING, pid=stat.pid, start_ticks=stat.start_ticks)))
    with trio.move_on_after(1):
        await follower.follow(lambda _: None, lambda: None)
    assert launcher.orders == [("adopt", launcher.orders[0][1])]
    assert launcher.orders[0][1] - autojump_clock.current_time() <= 0  # the first one at once
    assert follower._pidfd is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(follower._pidfd)  # it lets go of the process when it leaves


def test_a_record_counts_unless_the_waiter_could_not_write_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follower, _ = follower_of(record(tmp_path, RUNNING))
    told = {"event": "state", "state": json.loads(json.dumps(state_to_json(ENDED)))}
    follower._heard = read_told(told)
    assert follower._read() == RUNNING
    follower._heard = read_told({**told, "recorded": False})
    assert follower._read() == ENDED

    def unreadable(number: int) -> State:
        raise UnreadableRecordError("no", number)

    monkeypatch.setattr(RunRecord, "read_state", lambda _: unreadable(5))
    assert follower._read() == ENDED
    follower._heard = None
    with pytest.raises(UnreadableRecordError):
        follower._read()
    monkeypatch.setattr(RunRecord, "read_state", lambda _: unreadable(24))
    with pytest.raises(following._CannotLook):
        follower._read()


def test_a_state_is_told_where_it_is_another(tmp_path: Path) -> None:
    made = record(tmp_path, RUNNING)
    follower, _ = follower_of(made)
    told: list[State] = []
    follower._changed = told.append
    assert follower._look() == follower._look() == RUNNING
    file = StateFile(made)
    file.write(ENDED)
    file.close()
    follower._look()
    assert told == [RUNNING, ENDED]


@contextmanager
def listening(made: RunRecord) -> Iterator[trio.socket.SocketType]:
    """Listen where the waiter of a run would."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as plain, pytest.MonkeyPatch.context() as patched:
        patched.chdir(made.path)  # a socket's path may have 107 bytes only
        plain.bind("control")
        plain.listen()
        yield trio.socket.from_stdlib_socket(plain)


async def accepted(listener: trio.socket.SocketType) -> trio.socket.SocketType:
    connection, _ = await listener.accept()
    return connection


async def hear(connection: trio.socket.SocketType) -> object:
    return json.loads(await connection.recv(4096))


async def say(connection: trio.socket.SocketType, event: dict[str, object]) -> None:
    await connection.send(json.dumps(event).encode())


async def test_a_waiter_is_given_the_orders_and_heard_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = record(tmp_path, RUNNING)
    follower, launcher = follower_of(made)
    monkeypatch.setattr(launcher, "is_watched", lambda _: True)  # whoever is not there yet is on its way
    stopping = trio.Event()
    told: list[State] = []
    follower.set_terms(Terms("stop", 5.0))
    follower.order_stop("me", 7.0)
    terms = {"order": "survivors", "policy": "stop", "stop_timeout_seconds": 5.0}
    with listening(made) as listener, trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follower.follow, told.append, stopping.set)
            first = await accepted(listener)
            stop = {"order": "stop", "by": "me", "timeout_seconds": 7.0}
            assert [await hear(first) for _ in range(3)] == [{"order": "describe"}, terms, stop]
            first.close()  # it dies before it has taken the stop: the next one is asked again
            second = await accepted(listener)
            assert [await hear(second) for _ in range(3)] == [{"order": "describe"}, terms, stop]
            await say(second, {"event": "stopping"})
            await stopping.wait()
            follower.order_stop("me", 3.0)
            assert await hear(second) == {**stop, "timeout_seconds": 3.0}
            await say(second, {"event": "stopping"})
            listener.close()
            over = {"event": "state", "state": state_to_json(replace(ENDED, gone=True)), "recorded": False}
            await say(second, over)
            second.close()
    assert told == [RUNNING, replace(ENDED, gone=True)]
    assert launcher.orders == []
    assert follower._stop is None


@pytest.mark.parametrize("is_described", [True, False])
async def test_a_waiter_is_heard_out_while_there_are_no_descriptors_to_read_its_record_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_described: bool
) -> None:
    """What it says itself counts at once; what it only points to is read as soon as that can be done."""
    made = record(tmp_path, ENDED)
    follower, _ = follower_of(made)
    tell, told = trio.open_memory_channel[State](9)
    missed = trio.Event()
    follower._changed = tell.send_nowait

    def read(_: object) -> State:
        missed.set()
        raise UnreadableRecordError("no descriptors", errno.EMFILE)

    with listening(made) as listener, trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follower._listen)
            connection = await accepted(listener)
            assert await hear(connection) == {"order": "describe"}
            with monkeypatch.context() as short:
                short.setattr(RunRecord, "read_state", read)
                await say(connection, {"version": 1, "pid": GONE_PID - 1})
                await missed.wait()
                if is_described:
                    await say(connection, {"event": "state", "state": state_to_json(RUNNING), "recorded": True})
                    assert await told.receive() == RUNNING
                    await say(connection, {"event": "state"})
                await trio.testing.wait_all_tasks_blocked()
            assert await told.receive() == ENDED
            await say(connection, {"event": "state", "state": state_to_json(replace(ENDED, gone=True))})
            assert await told.receive() == replace(ENDED, gone=True)
            connection.close()


@pytest.mark.parametrize("words", [b"\xff\xfe", b"{", b"[1]", b"null"])
async def test_words_that_nobody_understands_are_a_reason_to_read_the_record(tmp_path: Path, words: bytes) -> None:
    made = record(tmp_path, ENDED)
    follower, _ = follower_of(made)
    told: list[State] = []
    follower._changed = told.append
    with listening(made) as listener, trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follower._listen)
            connection = await accepted(listener)
            assert await hear(connection) == {"order": "describe"}
            await connection.send(words)
            connection.close()
    assert told == [ENDED]


async def test_a_description_is_kept_through_events_that_tell_nothing(tmp_path: Path) -> None:
    made = record(tmp_path, RUNNING)
    follower, _ = follower_of(made)
    follower._changed = lambda _: None
    with listening(made) as listener, trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follower._listen)
            connection = await accepted(listener)
            assert follower._connection is not None
            await say(connection, {"version": 1, "pid": GONE_PID - 1})
            await say(connection, {"event": "state", "state": state_to_json(ENDED), "recorded": True})
            await say(connection, {"event": "state"})
            connection.close()
    assert follower._heard is not None
    assert follower._heard.state == ENDED
    assert follower._connection is None
    assert RUN in made.path
