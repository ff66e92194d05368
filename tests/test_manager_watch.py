"""The loop: policy, link and time together, over memory streams and a clock that jumps."""

# ruff: noqa: ARG001 - a test asks for the clock to have it installed

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import pytest
import trio
import trio.testing

from appmgr.dial import Contact, ContactError
from appmgr.manager import Manager
from appmgr.options import ManagerOptions
from appmgr.watch import SETTLE_SECONDS, watch
from appserver.identity import Service
from appserver.messages import Ack, Bye, Ended, Goodbye, Greeting, Hello, Message, Poll, Run, Running, Status, Watch
from appserver.outcome import Exited
from appserver.protocol import CLOSED, NEED_DATA, Connection
from appserver.report import Level
from pki.expiry import CHECK_SECONDS

OPTIONS = ManagerOptions("g1", Service("line", ("/apps/ping_mon",)))
OWN = "a" * 32
HELLO = Hello(1, "cmappmgr 0.1.0", "node1", 1, 5.0)


class Early:
    """Signals that came before the loop."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = numbers

    def take_over(self) -> Sequence[int]:
        return self._numbers


class Lines:
    """A log in memory."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.levels: list[Level] = []

    def log(self, level: Level, text: str) -> None:
        self.texts.append(text)
        self.levels.append(level)


class Guest:
    """The server's half of one connection."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._protocol = Connection("server")

    async def say(self, message: Message) -> None:
        await self._stream.send_all(self._protocol.send(message))

    async def hear(self) -> object:
        while (event := self._protocol.next_event()) is NEED_DATA:
            self._protocol.receive_data(await self._stream.receive_some(65536))
        return event

    async def start(self) -> Run | Watch:
        await self.say(Greeting((1,), "cmappserver", "g1"))
        assert await self.hear() == HELLO
        asked = await self.hear()
        assert isinstance(asked, Run | Watch)
        await self.say(Running(asked.seq, asked.run, "running", False, 77, None, None, None, None))
        return asked


Script = Callable[[Guest], Awaitable[None]]


async def run_watch(
    options: ManagerOptions, scripts: list[Script | None], *early: int, reminders: Sequence[list[str]] = ()
) -> tuple[int, Lines]:
    """Run the loop to its end; each attempt to connect meets the next script, or is refused where that is None."""
    lines = Lines()
    to_come = list(reminders)
    manager = Manager(options, OWN, trio.current_time())

    async with trio.open_nursery() as guests:

        async def dial() -> Contact:
            await trio.lowlevel.checkpoint()
            script = scripts.pop(0) if scripts else None
            if script is None:
                raise ContactError("Connection refused (errno:111)")
            near, far = trio.testing.memory_stream_pair()
            guests.start_soon(script, Guest(far))
            return Contact(near)

        status = await watch(
            manager,
            dial,
            lambda _: HELLO,
            lines,
            signals=(signal.SIGTERM,),
            early=Early(*early),
            greeting_seconds=10.0,
            reminders=lambda: to_come.pop(0) if to_come else [],
        )
    return status, lines


async def test_a_run_from_start_to_outcome(autojump_clock: trio.testing.MockClock) -> None:
    heard: list[object] = []

    async def script(guest: Guest) -> None:
        run = await guest.start()
        for _ in range(3):
            poll = await guest.hear()
            assert isinstance(poll, Poll)
            await guest.say(Status(poll.seq, run.run, "running", 77, 1.0, 1.0, 1))
        await guest.say(Ended(None, run.run, Exited(7)))
        heard.extend([await guest.hear() for _ in range(3)])

    status, lines = await run_watch(OPTIONS, [script])
    assert status == 7
    assert heard == [Ack(OWN), Bye(), CLOSED]
    assert [text.split(" ")[0] for text in lines.texts] == ["started", "the"]
    assert trio.current_time() == pytest.approx(15.0, abs=0.1)


async def test_nobody_there_until_the_boot_timeout(autojump_clock: trio.testing.MockClock) -> None:
    status, lines = await run_watch(replace(OPTIONS, boot_timeout_seconds=240.0, failure_status=8), [])
    assert status == 8
    assert set(lines.levels) == {"error"}
    assert lines.texts[:2] == ["Could not connect to the node g1", "Connection refused (errno:111)"]
    assert len(lines.texts) == 3
    assert trio.current_time() == pytest.approx(240.0, abs=0.01)


async def test_a_server_that_restarts_is_met_again_and_only_watched(autojump_clock: trio.testing.MockClock) -> None:
    asked: list[Run | Watch] = []

    async def first(guest: Guest) -> None:
        asked.append(await guest.start())
        await guest.say(Goodbye("restart"))
        assert await guest.hear() is CLOSED

    async def second(guest: Guest) -> None:
        asked.append(await guest.start())
        await guest.say(Ended(None, OWN, Exited(0)))
        await guest.hear()

    status, lines = await run_watch(OPTIONS, [None, first, None, None, second])
    assert status == 0
    assert [type(each) for each in asked] == [Run, Watch]
    assert sum("lost contact" in text for text in lines.texts) == 1
    assert sum("is back" in text for text in lines.texts) == 1


async def test_a_frozen_server_is_left_at_half_the_timeout_and_given_up_at_the_timeout(
    autojump_clock: trio.testing.MockClock,
) -> None:
    closed_at: list[float] = []

    async def script(guest: Guest) -> None:
        await guest.start()
        assert isinstance(await guest.hear(), Poll)
        assert await guest.hear() is CLOSED
        closed_at.append(trio.current_time())

    status, lines = await run_watch(OPTIONS, [script])
    assert status == 1
    assert closed_at == pytest.approx([35.0], abs=0.1)
    assert trio.current_time() == pytest.approx(60.0, abs=0.1)
    assert "the application may still run" in lines.texts[-1]


async def test_a_signal_that_came_before_the_loop_ends_it_before_any_attempt(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scripts: list[Script | None] = [None]
    status, lines = await run_watch(OPTIONS, scripts, 15)
    assert (status, scripts) == (143, [None])
    assert lines.texts == ["SIGTERM before the first contact: nothing was started"]


async def test_keys_near_their_end_are_asked_for_at_the_start_and_again_and_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    status, lines = await run_watch(
        replace(OPTIONS, boot_timeout_seconds=3 * CHECK_SECONDS - 1), [], reminders=[["ends soon"], [], ["has ended"]]
    )
    assert status == 1
    assert [text for text in lines.texts if "end" in text.split()[-1] or "soon" in text] == ["ends soon", "has ended"]
    assert lines.texts[0] == "ends soon"


async def test_once_settled_it_does_what_had_time(autojump_clock: trio.testing.MockClock) -> None:
    settled: list[float] = []
    manager = Manager(replace(OPTIONS, boot_timeout_seconds=10.0), OWN, trio.current_time())

    async def dial() -> Contact:
        await trio.lowlevel.checkpoint()
        raise ContactError("Connection refused (errno:111)")

    await watch(
        manager,
        dial,
        lambda _: HELLO,
        Lines(),
        signals=(signal.SIGTERM,),
        early=Early(),
        greeting_seconds=10.0,
        reminders=list,
        settle=lambda: settled.append(trio.current_time()),
    )
    assert settled == [SETTLE_SECONDS]
