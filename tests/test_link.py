"""The link over memory streams: greeting, pumping, back-off, and what is said of each way to lose contact."""

# ruff: noqa: ARG001 - a test asks for the clock to have it installed

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from appmgr.dial import Contact, ContactError
from appmgr.link import (
    CLOSE_SECONDS,
    FIRST_PAUSE_SECONDS,
    GREETING_SECONDS,
    LAST_PAUSE_SECONDS,
    MAX_OUTGOING_MESSAGES,
    SEND_SECONDS,
    Connected,
    ContactFailed,
    Disconnected,
    Link,
    LinkEvent,
    Received,
)
from appserver.messages import Ack, Bye, Goodbye, Greeting, Hello, Message, Poll, Refused, Status
from appserver.protocol import CLOSED, NEED_DATA, Connection

RUN = "a" * 32
GREETING = Greeting((1,), "cmappserver 0.1.0", "g1")
HELLO = Hello(1, "cmappmgr 0.1.0", "node1", 1, 5.0)
STATUS = Status(1, RUN, "running", None, None, None, None)


class Guest:
    """The far end of one connection: a server's half of the protocol over a memory stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.protocol = Connection("server")

    async def say(self, message: Message) -> None:
        await self.stream.send_all(self.protocol.send(message))

    async def hear(self) -> object:
        while (event := self.protocol.next_event()) is NEED_DATA:
            self.protocol.receive_data(await self.stream.receive_some(65536))
        return event

    async def introduce(self) -> None:
        await self.say(GREETING)
        assert await self.hear() == HELLO


class Bench:
    """A link whose attempts are scripted: an error to raise, or a stream whose far end comes out of `guests`."""

    def __init__(self, *, lockstep: bool = False) -> None:
        self.script: list[str] = []
        self.attempts: list[float] = []
        self._lockstep = lockstep
        self._put, self.guests = trio.open_memory_channel[Guest](100)
        to_test, self.events = trio.open_memory_channel[LinkEvent](100)
        self.link = Link(self._dial, lambda _version: HELLO, to_test.send_nowait, jitter=lambda: 0.0)

    async def _dial(self) -> Contact:
        self.attempts.append(trio.current_time())
        if self.script:
            raise ContactError(self.script.pop(0))
        make = trio.testing.lockstep_stream_pair if self._lockstep else trio.testing.memory_stream_pair
        near, far = make()
        self._put.send_nowait(Guest(far))
        return Contact(near)

    async def next_guest(self) -> Guest:
        return await self.guests.receive()

    async def event(self) -> LinkEvent:
        return await self.events.receive()


async def with_link(bench: Bench, scenario: Callable[[Bench], Awaitable[None]]) -> None:
    with trio.fail_after(10000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.link.run)
            await scenario(bench)
            nursery.cancel_scope.cancel()


async def connect(bench: Bench) -> Guest:
    guest = await bench.next_guest()
    await guest.introduce()
    assert await bench.event() == Connected()
    return guest


async def test_messages_go_both_ways(autojump_clock: trio.testing.MockClock) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await connect(bench)
        bench.link.send(Poll(1))
        assert await guest.hear() == Poll(1)
        await guest.say(STATUS)
        assert await bench.event() == Received(STATUS)

    await with_link(Bench(), scenario)


async def test_an_unknown_type_from_the_server_is_passed_over(autojump_clock: trio.testing.MockClock) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await connect(bench)
        await guest.stream.send_all(b'{"type":"news"}\n')
        await guest.say(STATUS)
        assert await bench.event() == Received(STATUS)

    await with_link(Bench(), scenario)


async def test_failed_attempts_are_told_and_repeated_with_growing_pauses(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def scenario(bench: Bench) -> None:
        for number in range(6):
            assert await bench.event() == ContactFailed(f"no {number}")
        await connect(bench)

    bench = Bench()
    bench.script = [f"no {number}" for number in range(6)]
    await with_link(bench, scenario)
    pauses = [after - before for before, after in zip(bench.attempts, bench.attempts[1:], strict=False)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    assert (pauses[0], pauses[-1]) == pytest.approx((FIRST_PAUSE_SECONDS, LAST_PAUSE_SECONDS))


@pytest.mark.parametrize(
    ("seconds", "pause_seconds"),
    [(LAST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS), (0.0, LAST_PAUSE_SECONDS)],
    ids=["a real one", "one that greets and hangs up"],
)
async def test_after_a_lost_connection_the_first_pause_is_short_again_if_it_lasted(
    autojump_clock: trio.testing.MockClock, seconds: float, pause_seconds: float
) -> None:
    async def scenario(bench: Bench) -> None:
        for _ in range(4):
            await bench.event()
        guest = await connect(bench)
        await trio.sleep(seconds)
        await guest.stream.aclose()
        assert await bench.event() == Disconnected("the server closed the connection")
        await connect(bench)

    bench = Bench()
    bench.script = ["no"] * 4
    await with_link(bench, scenario)
    assert bench.attempts[-1] - bench.attempts[-2] - seconds == pytest.approx(pause_seconds)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"garbage\n", "protocol error: the server sent"),
        (b"x" * 70000, "more than 65536 bytes"),
        (b'{"type":"greeting","versions":[1],"software":"","host":""}\n', "out of order"),
    ],
)
async def test_a_server_that_breaks_the_rules_is_left(
    autojump_clock: trio.testing.MockClock, data: bytes, reason: str
) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await connect(bench)
        await guest.stream.send_all(data)
        event = await bench.event()
        assert isinstance(event, Disconnected)
        assert reason in event.reason
        assert await guest.hear() is CLOSED

    await with_link(Bench(), scenario)


async def test_a_server_that_does_not_greet_is_a_failed_contact(autojump_clock: trio.testing.MockClock) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await bench.next_guest()
        began = trio.current_time()
        event = await bench.event()
        assert isinstance(event, ContactFailed)
        assert "did not greet within 10 s" in event.reason
        assert trio.current_time() - began == pytest.approx(GREETING_SECONDS)
        assert await guest.hear() is CLOSED

    await with_link(Bench(), scenario)


async def test_a_server_that_hangs_up_before_its_greeting_is_a_failed_contact(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await bench.next_guest()
        await guest.stream.aclose()
        assert await bench.event() == ContactFailed("the server closed the connection")

    await with_link(Bench(), scenario)


async def test_a_refusal_in_place_of_the_greeting_is_passed_on(autojump_clock: trio.testing.MockClock) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await bench.next_guest()
        await guest.say(Refused(None, "sessions", "full"))
        assert await bench.event() == Received(Refused(None, "sessions", "full"))

    await with_link(Bench(), scenario)


async def test_a_server_of_another_age_is_a_refusal(autojump_clock: trio.testing.MockClock) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await bench.next_guest()
        await guest.say(Greeting((7, 8), "cmappserver 9", "g1"))
        event = await bench.event()
        assert isinstance(event, Received)
        assert isinstance(event.message, Refused)
        assert (event.message.code, "(7, 8)" in event.message.text) == ("version", True)

    await with_link(Bench(), scenario)


async def test_drop_makes_a_new_connection_without_a_word(autojump_clock: trio.testing.MockClock) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await connect(bench)
        bench.link.drop()
        assert await guest.hear() is CLOSED
        await connect(bench)

    await with_link(Bench(), scenario)


async def test_without_a_connection_messages_are_dropped(autojump_clock: trio.testing.MockClock) -> None:
    async def scenario(bench: Bench) -> None:
        bench.link.send(Poll(1))
        guest = await connect(bench)
        bench.link.send(Poll(2))
        assert await guest.hear() == Poll(2)

    await with_link(Bench(), scenario)


async def test_leaving_delivers_what_was_sent_says_goodbye_and_closes(autojump_clock: trio.testing.MockClock) -> None:
    async def act(bench: Bench) -> None:
        bench.link.send(Ack(RUN))
        bench.link.leave()
        await bench.link.delivered.wait()

    assert await heard_until_left(act) == [Ack(RUN), Bye()]


async def heard_until_left(act: Callable[[Bench], Awaitable[None]]) -> list[object]:
    """Give what the server hears of a link that `act` leaves, until the link has closed and ended."""
    bench = Bench()
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.link.run)
            guest = await connect(bench)
            await act(bench)
        # The nursery ended, so `run` has returned.
        heard: list[object] = []
        while (event := await guest.hear()) is not CLOSED:
            heard.append(event)
    return heard


async def test_leaving_without_a_connection_has_nothing_to_deliver(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()
    bench.link.leave()
    assert bench.link.delivered.is_set()
    await bench.link.run()
    assert bench.attempts == []


async def test_a_server_that_takes_nothing_is_left_after_a_while(autojump_clock: trio.testing.MockClock) -> None:
    async def scenario(bench: Bench) -> None:
        await connect(bench)
        began = trio.current_time()
        bench.link.send(Poll(1))
        event = await bench.event()
        assert isinstance(event, Disconnected)
        assert "takes nothing any more" in event.reason
        assert trio.current_time() - began == pytest.approx(SEND_SECONDS, abs=CLOSE_SECONDS)

    await with_link(Bench(lockstep=True), scenario)


async def test_more_than_a_queue_full_gives_the_connection_up(autojump_clock: trio.testing.MockClock) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await connect(bench)
        for number in range(1, MAX_OUTGOING_MESSAGES + 3):
            bench.link.send(Poll(number))
        with pytest.raises(trio.BrokenResourceError):
            await guest.stream.send_all(b"x")
        await connect(bench)

    await with_link(Bench(lockstep=True), scenario)


async def test_cancellation_closes_the_stream(autojump_clock: trio.testing.MockClock) -> None:
    bench = Bench()
    await with_link(bench, _connect_and_return)
    guest = kept.pop()
    assert await guest.hear() is CLOSED


kept: list[Guest] = []


async def _connect_and_return(bench: Bench) -> None:
    kept.append(await connect(bench))


async def test_a_goodbye_in_place_of_the_greeting_is_a_failed_contact(autojump_clock: trio.testing.MockClock) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await bench.next_guest()
        await guest.say(Goodbye("shutting down"))
        assert await bench.event() == ContactFailed("the server said 'goodbye' instead of a greeting")

    await with_link(Bench(), scenario)


async def test_a_connection_that_breaks_while_sending_is_lost(autojump_clock: trio.testing.MockClock) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await connect(bench)
        assert isinstance(guest.stream, trio.StapledStream)
        await guest.stream.receive_stream.aclose()
        bench.link.send(Poll(1))
        assert await bench.event() == Disconnected("the connection broke")

    await with_link(Bench(), scenario)


async def test_what_came_in_the_turn_of_a_drop_is_not_told(autojump_clock: trio.testing.MockClock) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await connect(bench)
        await trio.testing.wait_all_tasks_blocked()
        await guest.say(STATUS)  # the link is on its way to it
        bench.link.drop()
        await connect(bench)
        assert bench.events.statistics().current_buffer_used == 0

    await with_link(Bench(), scenario)


async def test_leaving_twice_says_goodbye_once_and_nothing_after_it(autojump_clock: trio.testing.MockClock) -> None:
    async def act(bench: Bench) -> None:
        bench.link.leave()
        bench.link.leave()
        bench.link.send(Poll(1))
        await bench.link.delivered.wait()

    assert await heard_until_left(act) == [Bye()]
