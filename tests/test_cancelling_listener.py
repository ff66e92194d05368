"""The listener, cancelled at every point: true TLS over streams in memory, on a clock that jumps."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import cast

import pytest
import trio
import trio.testing
from cancelling import Probe, Swept, Way, show, sweep
from door import GUEST, HELLO, HOST, OTHER_HOST, material, trust
from fakes import FakeSupervisor, Log, Manager
from test_cancelling import RUN, assert_closed
from typing_extensions import Self

from appserver import handshakes as handshakes_module
from appserver import listener as listener_module
from appserver.handshakes import HANDSHAKE_SECONDS
from appserver.listener import Listener
from appserver.messages import Bye, Goodbye, Greeting, Poll, Refused
from appserver.protocol import CLOSED
from appserver.refusals import BUSY_ALERT
from pki.certificates import Issued
from pki.contexts import PeerRefused, client_context


class Wire(trio.abc.Stream):
    """A stream in memory that looks like a TCP connection, as far as the listener looks."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.socket = self

    def getpeername(self) -> tuple[str, int]:
        return ("192.0.2.7", 4711)

    def setsockopt(self, *_: object) -> None:
        return

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


class Gate:
    """A listening socket to which streams in memory come."""

    def __init__(self) -> None:
        self._put, self._come = trio.open_memory_channel[Wire](100)
        self.far: list[trio.abc.Stream] = []
        self.closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        # As the kernel does with connections that nobody has accepted, and with those that come too late.
        self.closed = True
        with contextlib.suppress(trio.WouldBlock), trio.CancelScope(shield=True):
            while True:
                await trio.aclose_forcefully(self._come.receive_nowait())

    async def accept(self) -> Wire:
        return await self._come.receive()

    def knock(self) -> trio.abc.Stream:
        near, far = trio.testing.memory_stream_pair()
        if self.closed:
            raise ConnectionRefusedError
        self._put.send_nowait(Wire(near))
        self.far.append(far)
        return far


CONTEXTS = {id(own): client_context(material(own, GUEST)) for own in (HOST, OTHER_HOST)}
TRUST, OTHER_TRUST = trust(HOST), trust(HOST, OTHER_HOST)


class Place:
    """A listener behind its gate, and those who come to it until they are cut off."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.log = Log()
        self.supervisor = FakeSupervisor()
        self.listener = Listener(self.supervisor.as_supervisor(), self.log.as_report(), TRUST, 1)
        self.gate = Gate()
        self.over = trio.Event()

    def dial(self, own: Issued = HOST) -> Manager:
        return Manager(trio.SSLStream(self.gate.knock(), CONTEXTS[id(own)]))

    async def greeted(self) -> Manager:
        manager = self.dial()
        assert isinstance(await manager.hear(), Greeting)
        await manager.say(HELLO)
        return manager

    async def serve(self) -> None:
        """Do what the daemon does, until the play is over: accept, then drain."""
        async with trio.open_nursery() as sessions:
            async with trio.open_nursery() as accepting:
                accepting.start_soon(self.listener.watch_dates)
                accepting.start_soon(self.listener.accept, cast("trio.SocketListener", self.gate), sessions)
                await self.over.wait()
                accepting.cancel_scope.cancel()
            await self.listener.drain("the server ends")
            sessions.cancel_scope.cancel()

    @contextlib.asynccontextmanager
    async def visited(self, play: Play) -> AsyncIterator[None]:
        async def visit() -> None:
            with self.probe.peer():
                await play(self)
            self.over.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit)
            yield
            nursery.cancel_scope.cancel()
        for far in self.gate.far:
            await assert_closed(far)
        assert self.gate.closed
        assert not self.listener._guests
        assert len(self.listener._handshakes._strangers) == 0

    async def play(self, play: Play) -> None:
        async with self.visited(play):
            await self.probe.run(self.serve)


Play = Callable[[Place], Awaitable[None]]


async def talk_until_the_server_ends(place: Place) -> None:
    manager = await place.greeted()
    await manager.say(RUN, Poll(2))
    await manager.hear()
    place.listener.reload(OTHER_TRUST, 1)
    other = await place.greeted()
    place.over.set()
    for each in (manager, other):
        assert isinstance(await each.hear(), Goodbye)
        await each.hear_closed()
        with contextlib.suppress(trio.BrokenResourceError):
            await each.stream.aclose()


async def come_and_go(place: Place) -> None:
    manager = await place.greeted()
    await manager.say(Bye())
    await manager.hear_cut()
    place.listener.max_sessions = 0
    refused = await place.dial().hear()
    assert isinstance(refused, Refused)


async def be_refused_by_tls(place: Place) -> None:
    with contextlib.suppress(trio.BrokenResourceError):
        await place.dial(OTHER_HOST).hear()
    plain = place.gate.knock()
    await plain.send_all(b"GET / HTTP/1.0\r\n\r\n")
    while await plain.receive_some(1000):
        pass


async def be_refused_by_judgement(place: Place) -> None:
    assert isinstance(await place.dial().hear(), Refused)


async def be_silent(place: Place) -> None:
    far = place.gate.knock()
    await trio.sleep(HANDSHAKE_SECONDS + 1)
    assert await far.receive_some(100) == BUSY_ALERT
    assert not await far.receive_some(1)


async def crowd(place: Place) -> None:
    first, _ = place.gate.knock(), place.gate.knock()
    assert await first.receive_some(100) == BUSY_ALERT
    assert not await first.receive_some(1)


PLAYS = [talk_until_the_server_ends, come_and_go, be_refused_by_tls, be_refused_by_judgement, be_silent, crowd]
QUICK = [be_refused_by_judgement, crowd]


async def one_connection(probe: Probe) -> None:
    """Only the task of one connection is cancelled: another manager's session goes on, and its place is free again."""
    place = Place(Probe(0, Way.CANCEL, 0.0))

    async def visit(place: Place) -> None:
        other = await place.greeted()
        near, far = trio.testing.memory_stream_pair()
        manager = Manager(trio.SSLStream(far, CONTEXTS[id(HOST)]))

        async def talk() -> None:
            with probe.peer():
                assert isinstance(await manager.hear(), Greeting)
                await manager.say(HELLO, RUN, Poll(2), Bye())
                with contextlib.suppress(trio.BrokenResourceError):  # who says `bye` is not told the goodbye of TLS
                    while await manager.hear() is not CLOSED:
                        pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            await probe.run(partial(place.listener._serve_peer, cast("trio.SocketStream", Wire(near))))
            nursery.cancel_scope.cancel()
        await assert_closed(far)
        await other.say(Poll(3))
        await other.hear()
        assert len(place.listener._guests) == 1

    await place.play(visit)


def refuse_all(*_: object, **__: object) -> None:
    raise PeerRefused("it may not")


def sweep_listener(plays: Sequence[Play] = PLAYS, ways: tuple[Way, ...] = tuple(Way)) -> Swept:
    def scenario(play: Play) -> Callable[[Probe], Awaitable[None]]:
        async def played(probe: Probe) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(handshakes_module, "MAX_HALF_OPEN_PER_ADDRESS", 1)
                if play is be_refused_by_judgement:
                    patch.setattr(listener_module, "judge_peer", refuse_all)
                await Place(probe).play(play)

        played.__name__ = play.__name__
        return played

    return sweep("listener", [(scenario(play), 0.0) for play in plays], ways=ways)


def sweep_connection() -> Swept:
    return sweep("one connection", [(one_connection, 0.0)])


def test_listener_cancelled_at_any_point_leaves_nothing() -> None:
    show(sweep_listener(QUICK, (Way.CANCEL,)))


@pytest.mark.long
def test_listener_cancelled_at_any_point_of_everything_leaves_nothing() -> None:
    show(sweep_listener(), sweep_connection())
