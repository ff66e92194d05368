"""Session and link, cancelled at every point: over streams in memory, on a clock that jumps."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
from cancelling import Probe, Swept, Way, cancel_at_every_point, show, sweep
from fakes import FakeSupervisor, Log, Manager

from appmgr.dial import Contact, ContactError
from appmgr.link import CLOSE_SECONDS, Connected, ContactFailed, Disconnected, Link, LinkEvent, Received
from appserver.effects import Phase, Run, TellEnded, TellRunning, TellStopping
from appserver.identity import Service
from appserver.messages import Ack, Bye, Goodbye, Greeting, Hello, Poll, Refused, Status, Stop, Stopping
from appserver.messages import Run as RunMessage
from appserver.outcome import Account, Exited
from appserver.protocol import CLOSED
from appserver.session import PeerName, Session

OWN = "a" * 32
SERVICE = Service("line", ("/apps/ping_mon",))
HELLO = Hello(1, "cmappmgr 1", "host1", 77, 5.0)
RUN = RunMessage(1, OWN, SERVICE, "leave", 30.0, 20)
STATUS = Status(1, OWN, "running", None, None, None, None)


async def assert_closed(far: trio.abc.Stream) -> None:
    """The other end of a stream hears its end at once."""
    with trio.fail_after(0.001):
        try:
            while await far.receive_some(65536):
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


class Conversation:
    """One session, and the manager that it talks to until it is cut off."""

    def __init__(self, log_path: Path, *, lockstep: bool = False) -> None:
        make = trio.testing.lockstep_stream_pair if lockstep else trio.testing.memory_stream_pair
        near, far = make()
        self.far: trio.abc.Stream = far
        self.manager = Manager(self.far)
        self.supervisor = FakeSupervisor()
        self.run = Run(OWN, SERVICE, Phase.RUNNING, 4711, 1, 1e9, None, str(log_path))
        peer = PeerName("192.0.2.7", "AB:CD")
        self.session = Session(near, self.supervisor.as_supervisor(), Log().as_report(), peer)

    async def begin(self) -> None:
        await self.manager.hear()
        await self.manager.say(HELLO, RUN)
        await trio.testing.wait_all_tasks_blocked()
        self.supervisor.runs[OWN] = self.run
        self.session.tell(TellRunning(self.session, self.run, attached=False))
        await self.manager.hear()

    async def play(self, probe: Probe, peer: Callable[[], Awaitable[None]]) -> None:
        """Serve the session, cancelled when that is due, and let it talk with `peer`."""

        async def talk() -> None:
            with probe.peer():
                await peer()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            await probe.run(self.session.serve)
            nursery.cancel_scope.cancel()
        await assert_closed(self.far)
        assert self.supervisor.left[-1:] == [self.session]
        for late in (TellStopping(self.session, OWN), TellEnded(self.session, OWN, Exited(0))):
            self.session.tell(late)  # the supervisor may have something to tell in the very moment of its end


def sweep_session(log_path: Path, ways: tuple[Way, ...] = tuple(Way)) -> Swept:
    async def whole(probe: Probe) -> None:
        met = Conversation(log_path)

        async def peer() -> None:
            await met.begin()
            await met.manager.say(Poll(2))
            await met.manager.hear()
            await met.manager.say(Stop(3, OWN, 5.0))
            await trio.testing.wait_all_tasks_blocked()
            met.session.tell(TellStopping(met.session, OWN))
            assert isinstance(await met.manager.hear(), Stopping)
            met.session.tell(TellEnded(met.session, OWN, Exited(3, Account(ran_seconds=1.5)), str(log_path)))
            await met.manager.hear()
            await met.manager.say(Ack(OWN), Bye())
            await met.manager.hear_closed()

        await met.play(probe, peer)

    async def let_go(probe: Probe) -> None:
        met = Conversation(log_path)

        async def peer() -> None:
            await met.begin()
            met.session.let_go("the server ends")
            assert isinstance(await met.manager.hear(), Goodbye)
            await met.manager.hear_closed()

        await met.play(probe, peer)

    async def stuck(probe: Probe) -> None:
        """A manager that takes nothing: the session is held in its write until it gives up."""
        met = Conversation(log_path, lockstep=True)
        await met.play(probe, trio.sleep_forever)

    async def refused(probe: Probe) -> None:
        met = Conversation(log_path)
        await probe.run(partial(met.session.refuse, "sessions", "no more than 4"))
        await assert_closed(met.far)

    async def refused_and_stuck(probe: Probe) -> None:
        met = Conversation(log_path, lockstep=True)
        await probe.run(partial(met.session.refuse, "sessions", "no more than 4"))
        await assert_closed(met.far)

    scenarios = [whole, let_go, stuck, refused, refused_and_stuck]
    return sweep("session", [(each, 0.0) for each in scenarios], ways=ways)


def test_session_cancelled_at_any_point_leaves_nothing(tmp_path: Path) -> None:
    log_path = tmp_path / "log"
    log_path.write_text("last words\n")
    show(sweep_session(log_path, (Way.CANCEL,)))


class Contacts:
    """A link whose server is played: attempts fail or lead to a stream, as the script says."""

    def __init__(self, probe: Probe, *script: Callable[[Manager], Awaitable[None]] | None) -> None:
        self._probe = probe
        self._script = list(script)
        self.far: list[trio.abc.Stream] = []
        self.nursery: trio.Nursery | None = None
        events, self.heard = trio.open_memory_channel[LinkEvent](100)
        self.link = Link(self._dial, lambda _version: HELLO, events.send_nowait, jitter=lambda: 0.0)

    async def _dial(self) -> Contact:
        await trio.sleep(0.01)
        act = self._script.pop(0) if self._script else None
        if act is None:
            raise ContactError("nobody there")
        near, far = trio.testing.memory_stream_pair()
        self.far.append(far)
        assert self.nursery is not None
        self.nursery.start_soon(self._play, act, far)
        return Contact(near)

    async def _play(self, act: Callable[[Manager], Awaitable[None]], far: trio.abc.Stream) -> None:
        with self._probe.peer():
            await act(Manager(far, "server"))

    async def play(self, listen: Callable[[], Awaitable[None]], seconds: float = math.inf) -> None:
        """Run the link, cancelled when that is due, while `listen` takes what it tells; at most for so long."""

        async def attend() -> None:
            with self._probe.peer():
                await listen()

        async def run() -> None:
            with trio.move_on_after(seconds):
                await self.link.run()

        async with trio.open_nursery() as self.nursery:
            self.nursery.start_soon(attend)
            await self._probe.run(run)
            self.nursery.cancel_scope.cancel()
        for far in self.far:
            await assert_closed(far)
        self.link.send(Poll(9))  # dropped: nobody is there, and that must not be an error
        self.link.drop()
        self.link.leave()
        assert self.link.delivered.is_set()


async def greet_and_answer(server: Manager) -> None:
    await server.say(Greeting((1,), "cmappserver 1", "g1"))
    while (event := await server.hear()) is not CLOSED:
        if isinstance(event, Poll):
            await server.say(STATUS)


async def greet_and_hang_up(server: Manager) -> None:
    await server.say(Greeting((1,), "cmappserver 1", "g1"))
    await server.hear()
    await server.stream.aclose()


async def refuse(server: Manager) -> None:
    await server.say(Refused(None, "sessions", "no more than 4"))
    await server.hear_closed()


async def greet_too_late(server: Manager) -> None:
    await server.hear_closed()


def sweep_link(ways: tuple[Way, ...] = tuple(Way)) -> Swept:
    async def whole(probe: Probe) -> None:
        met = Contacts(probe, None, greet_too_late, refuse, greet_and_hang_up, greet_and_answer)

        async def listen() -> None:
            expected = [ContactFailed, ContactFailed, Received, Connected, Disconnected, Connected]
            assert [type(await met.heard.receive()) for _ in expected] == expected
            met.link.send(Poll(1))
            assert await met.heard.receive() == Received(STATUS)
            met.link.leave()

        await met.play(listen)

    async def dropped(probe: Probe) -> None:
        met = Contacts(probe, greet_and_answer, greet_and_answer)

        async def listen() -> None:
            assert await met.heard.receive() == Connected()
            met.link.drop()
            assert await met.heard.receive() == Connected()
            met.link.leave()

        await met.play(listen)

    async def unheard(probe: Probe) -> None:
        """Nobody says anything: the link waits for the server."""
        met = Contacts(probe, greet_and_answer)
        await met.play(trio.sleep_forever, seconds=60)

    return sweep("link", [(each, CLOSE_SECONDS) for each in (whole, dropped, unheard)], ways=ways)


def test_link_cancelled_at_any_point_leaves_nothing() -> None:
    show(sweep_link((Way.CANCEL,)))


def test_code_that_leaves_a_descriptor_when_cancelled_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def leaky() -> None:
        read, write = os.pipe()
        await trio.sleep(1)
        os.close(read)
        os.close(write)

    async def scenario(probe: Probe) -> None:
        await probe.run(leaky)

    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("cancelling.REST_SECONDS", 0.0)
    with pytest.raises(AssertionError, match="after a step .* left behind"):
        cancel_at_every_point("leaky", scenario)
    for name in set(os.listdir("/proc/self/fd")) - before:
        with contextlib.suppress(OSError):  # that of the directory itself
            os.close(int(name))


def test_code_that_takes_its_time_when_cancelled_is_found() -> None:
    async def slow() -> None:
        try:
            await trio.sleep(1)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)

    async def scenario(probe: Probe) -> None:
        await probe.run(slow)

    with pytest.raises(AssertionError, match="2 s after its cancellation"):
        cancel_at_every_point("slow", scenario, grace_seconds=1.5)
    assert cancel_at_every_point("slow", scenario, grace_seconds=2.0).points >= 4


def test_coroutine_that_is_never_awaited_is_found() -> None:
    async def forgetful() -> None:
        try:
            await trio.sleep(1)
        except trio.Cancelled:
            trio.sleep(2)  # type: ignore[unused-coroutine]  # noqa: ASYNC105
            raise

    async def scenario(probe: Probe) -> None:
        await probe.run(forgetful)

    with pytest.raises(AssertionError, match="never awaited"):
        cancel_at_every_point("forgetful", scenario)
