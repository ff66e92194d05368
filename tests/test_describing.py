"""A waiter repeats its record: what is damaged or removed on disk while an application runs is not lost."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("waiters are made by fork", allow_module_level=True)

import trio
from test_waiting import RUN, Room, room, touch

from appserver.control import describe, read_told
from appserver.outcome import Exited
from appserver.waiter import MAX_ORDER_BYTES

UNTIL_GO = "while ! test -e {marker}; do sleep 0.02; done; exit 7"


def words(marker: Path) -> tuple[str, str, str]:
    return "/bin/sh", "-c", UNTIL_GO.format(marker=marker)


def remove_all(made: Room) -> None:
    shutil.rmtree(made.records.state_dir)


def remove_run(made: Room) -> None:
    shutil.rmtree(made.record.path)


def tear(made: Room) -> None:
    for name in ("request", "state"):
        Path(made.record.file(name)).write_bytes(b"torn")


@pytest.mark.parametrize("damage", [remove_all, remove_run])
async def test_true_end_is_told_where_the_record_was_removed_meanwhile(
    tmp_path: Path, damage: Callable[[Room], None]
) -> None:
    marker = tmp_path / "go"
    async with room(tmp_path / "room", *words(marker)) as made:
        follower = made.processes._followers[RUN]
        while follower._heard is None:  # noqa: ASYNC110  (what the waiter has told once, nobody can take away)
            await trio.sleep(0.01)
        damage(made)
        touch(marker)
        state = await made.until(lambda state: state.gone)
        assert isinstance(state.outcome, Exited)
        assert state.outcome.code == 7


async def test_waiter_repeats_what_its_record_said_and_goes_on_telling(tmp_path: Path) -> None:
    marker = tmp_path / "go"
    async with room(tmp_path, *words(marker)) as made:
        request, state = made.record.read_request(), made.record.read_state()
        tear(made)
        told = await trio.to_thread.run_sync(describe, made.record)
        assert told == (request, state, True)
        with made.connect() as connection:
            connection.recv(MAX_ORDER_BYTES)
            connection.send(b'{"order": "describe"}')
            assert json.loads(connection.recv(MAX_ORDER_BYTES))["event"] == "record"
            touch(marker)
            last = None
            while data := connection.recv(MAX_ORDER_BYTES):
                last = read_told(json.loads(data))
            assert last is not None
            assert isinstance(last.state.outcome, Exited)
            assert last.state.gone
        made.record.mend_request(request)
        assert made.record.read_request() == request


async def test_longest_request_is_repeated_too(tmp_path: Path) -> None:
    long = "\x01" * 10_900  # of which a message of 64 KiB, escaped, holds no more
    async with room(tmp_path, "/bin/sh", "-c", "exec sleep 1000", long) as made:
        told = await trio.to_thread.run_sync(describe, made.record)
        assert told is not None
        assert told.request == made.record.read_request()


@pytest.mark.parametrize("event", [{}, {"state": 7}, {"state": {}}, {"state": {"phase": "dance"}}])
def test_what_a_waiter_says_in_another_tongue_says_nothing(event: dict[str, object]) -> None:
    assert read_told(event) is None


def test_nobody_answers_for_a_run_without_a_waiter(tmp_path: Path) -> None:
    made = Room(tmp_path)
    made.request("/bin/true")
    assert describe(made.record) is None
