"""One attempt to connect, cancelled at every point: true TLS on loopback, with servers of all kinds."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
from cancelling import Probe, Swept, Way, show, sweep
from door import GUEST, HOST, OTHER_HOST, material, trust
from test_dial import look_ups_give

from appmgr.dial import ContactError, Dialer

GRACE_SECONDS = 5.0
"""A refusal may take a round trip to get out; on a busy machine everything may take seconds."""

HANDSHAKE_SECONDS = 0.05
"""Of a server that says nothing."""


async def answer(transport: trio.SocketStream) -> None:
    """Shake hands, as a server does, and wait until the other one has hung up."""
    stream = trio.SSLStream(transport, trust(HOST).context, server_side=True)
    try:
        await stream.do_handshake()
        await stream.receive_some(1)
    except trio.BrokenResourceError:
        pass
    finally:
        await trio.aclose_forcefully(transport)


async def serve(sock: trio.SocketListener) -> None:
    async with sock, trio.open_nursery() as nursery:
        while True:
            nursery.start_soon(answer, await sock.accept())


async def dial_and_hang_up(dialer: Dialer) -> bool:
    """Tell whether there was contact."""
    try:
        contact = await dialer.dial()
    except ContactError:
        return False
    await trio.aclose_forcefully(contact.stream)
    return True


def sweep_dial(ways: tuple[Way, ...] = tuple(Way), *, whole: bool = True) -> Swept:
    def scenario(name: str, *, known: bool, silent: bool) -> Callable[[Probe], Awaitable[None]]:
        async def play(probe: Probe) -> None:
            """Where the first address refuses, there is a server at the second: the right one, or another."""
            mine = material(HOST, GUEST if known else OTHER_HOST)
            seconds = HANDSHAKE_SECONDS if silent else 10.0
            dialer = Dialer("g1", "g", 1, mine, reopen=lambda: mine, handshake_seconds=seconds, silence_seconds=30.0)
            met: list[bool] = []

            async def dial() -> None:
                met.append(await dial_and_hang_up(dialer))

            (sock,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            with socket.socket() as refusing, pytest.MonkeyPatch.context() as patch:
                refusing.bind(("127.0.0.1", 0))
                look_ups_give(patch, refusing.getsockname()[1], sock.socket.getsockname()[1])
                async with sock, trio.open_nursery() as nursery:
                    if not silent:
                        nursery.start_soon(serve, sock)
                    await probe.run(dial)
                    nursery.cancel_scope.cancel()
            assert probe.fired or met == [known and not silent]

        play.__name__ = name
        return play

    scenarios = [
        scenario("the right server", known=True, silent=False),
        scenario("another server", known=False, silent=False),
        scenario("a silent server", known=True, silent=True),
    ]
    return sweep(
        "dial", [(each, GRACE_SECONDS) for each in (scenarios if whole else scenarios[1:2])], real=True, ways=ways
    )


def test_attempt_cancelled_at_any_point_leaves_nothing() -> None:
    show(sweep_dial((Way.CANCEL,), whole=False))
