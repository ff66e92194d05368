"""What a session says at once: over TLS and real sockets, in its order, and broken off where only a part went out."""

from __future__ import annotations

import select
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from fakes import kernel_that_takes
from test_atonce import connected
from test_session import ENDED, HELLO, OWN, RUN, SERVICE, Pair, conversation

from appserver.atonce import MAX_AT_ONCE_BYTES, send_at_once
from appserver.effects import Phase, Run, TellEnded, TellRunning
from appserver.messages import Bye, Ended, Error, Goodbye, Greeting, Poll, Running, Status
from appserver.session import MAX_QUEUED_MESSAGES

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there all is sent in the ordinary way")

PATIENCE_SECONDS = 40


@asynccontextmanager
async def over_tls() -> AsyncIterator[Pair]:
    """A session whose run runs, and its manager, who has been told so."""
    with trio.fail_after(PATIENCE_SECONDS):
        async with connected() as streams, conversation(streams=lambda: streams) as pair:
            assert isinstance(await pair.manager.hear(), Greeting)
            await pair.manager.say(HELLO, RUN)
            while not pair.supervisor.asked:
                await trio.testing.wait_all_tasks_blocked()
            run = Run(OWN, SERVICE, Phase.RUNNING, 4711, 1, 1e9, None, "/nowhere.log")
            pair.supervisor.runs[OWN] = run
            pair.session.tell(TellRunning(pair.session, run, attached=False, previous=None))
            assert isinstance(await pair.manager.hear(), Running)
            yield pair


def tell_end(pair: Pair) -> None:
    pair.session.tell(TellEnded(pair.session, OWN, ENDED))


def has_come(stream: trio.abc.Stream) -> bool:
    assert isinstance(stream, trio.SSLStream)
    return bool(select.select([stream.transport_stream.socket], [], [], 0)[0])


async def test_outcome_is_on_its_way_when_the_call_returns() -> None:
    async with over_tls() as pair:
        assert not has_come(pair.manager.stream)
        tell_end(pair)
        assert has_come(pair.manager.stream)
        ended = await pair.manager.hear()
        assert isinstance(ended, Ended)
        assert ended.outcome == ENDED


async def test_nothing_overtakes_what_waits() -> None:
    async with over_tls() as pair:
        long = "x" * MAX_AT_ONCE_BYTES
        count = MAX_QUEUED_MESSAGES // 2
        for seq in range(1, count + 1):
            pair.session._say(Error(2 * seq, long))
            pair.session._say(Error(2 * seq + 1, "short"))
        await trio.testing.wait_all_tasks_blocked()
        tell_end(pair)
        heard = [await pair.manager.hear() for _ in range(2 * count)]
        assert [event.re for event in heard if isinstance(event, Error)] == list(range(2, 2 * count + 2))
        assert isinstance(await pair.manager.hear(), Ended)
        await trio.testing.wait_all_tasks_blocked()
        assert not pair.session._unsent
        await pair.manager.say(Poll(7))
        assert isinstance(await pair.manager.hear(), Status)


async def test_manager_that_takes_nothing_holds_up_nobody_who_tells_it() -> None:
    async with over_tls() as pair:
        told = 0
        while not pair.session._unsent:
            pair.session._say(Error(1, "x" * 4000))
            told += 1
        tell_end(pair)
        heard = [await pair.manager.hear() for _ in range(told)]
        assert heard == [Error(1, "x" * 4000)] * told
        assert isinstance(await pair.manager.hear(), Ended)


@pytest.mark.parametrize("taken", [0, 20, None], ids=["nothing", "a part", "broken"])
async def test_connection_that_breaks_as_the_end_is_told_is_given_up(
    taken: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with over_tls() as pair:
        monkeypatch.setattr("appserver.atonce.os.write", kernel_that_takes(taken))
        tell_end(pair)
        monkeypatch.undo()
        tell_end(pair)  # after a record that is half sent nothing may be said
        await pair.ended.wait()
        await pair.manager.hear_cut()
        assert pair.supervisor.left[-1] is pair.session
        assert all(asked[0] != "ack" for asked in pair.supervisor.asked)  # it will be told again
        assert pair.log.count("lost contact") == 1


async def test_who_says_bye_is_not_waited_for() -> None:
    async with over_tls() as pair:
        await pair.manager.say(Bye())
        await pair.ended.wait()
        await pair.manager.hear_cut()


async def test_manager_that_is_let_go_hears_goodbye_and_a_polite_end() -> None:
    async with over_tls() as pair:
        pair.session.let_go("restart")
        assert await pair.manager.hear() == Goodbye("restart")
        await pair.manager.hear_closed()
        await pair.ended.wait()


def close_politely(pair: Pair) -> None:
    pair.manager.stream.send_stream.close()  # type: ignore[attr-defined]


def cancel(pair: Pair) -> None:
    pair.session._scope.cancel()


class TellOnce(trio.abc.Instrument):
    """Tells the end after so many more steps of any task."""

    def __init__(self, pair: Pair, steps: int) -> None:
        self._pair = pair
        self.steps = steps

    def after_task_step(self, _task: trio.lowlevel.Task) -> None:
        self.steps -= 1
        if self.steps == 0:
            tell_end(self._pair)


@pytest.mark.parametrize("end", [close_politely, cancel])
async def test_what_is_told_at_any_step_of_a_session_that_ends_harms_nobody(end: Callable[[Pair], None]) -> None:
    steps = 0
    came_too_late = False
    while not came_too_late:
        steps += 1
        async with conversation() as pair:
            await pair.begin()
            teller = TellOnce(pair, steps)
            trio.lowlevel.add_instrument(teller)
            end(pair)
            await pair.ended.wait()
            trio.lowlevel.remove_instrument(teller)
            assert pair.supervisor.left[-1] is pair.session
            came_too_late = teller.steps > 0


async def test_greeting_goes_behind_what_the_handshake_left_to_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once: list[bool] = []

    def note(stream: trio.abc.Stream, data: bytes) -> bool:
        at_once.append(send_at_once(stream, data))
        return at_once[-1]

    monkeypatch.setattr("appserver.session.send_at_once", note)
    async with over_tls():
        assert at_once == [False, True]
