"""Small words and a quick end: over real sockets and TLS, at once or not at all."""

from __future__ import annotations

import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
import trustme
from fakes import kernel_that_takes

from appserver.atonce import MAX_AT_ONCE_BYTES, close_at_once, send_at_once

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there it is sent in the ordinary way")

AUTHORITY = trustme.CA()
CERTIFICATE = AUTHORITY.issue_cert("g1")

Stream = trio.SSLStream[trio.SocketStream]


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Stream, Stream]]:
    """Our end and the server's of one connection, handshake done."""
    ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in socket.socketpair())
    client, server = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.configure_trust(client)
    CERTIFICATE.configure_cert(server)
    near = trio.SSLStream(ours, client, server_hostname="g1")
    far = trio.SSLStream(theirs, server, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.do_handshake)
        nursery.start_soon(far.do_handshake)
    try:
        yield near, far
    finally:
        await trio.aclose_forcefully(near)
        await trio.aclose_forcefully(far)


async def test_last_words_are_in_the_kernel_when_the_call_returns() -> None:
    async with connected() as (near, far):
        assert send_at_once(near, b"farewell")
        await trio.aclose_forcefully(near)  # as the end of the process would
        assert await far.receive_some() == b"farewell"
        with pytest.raises(trio.BrokenResourceError):
            await far.receive_some()


async def test_what_was_sent_before_comes_before_and_a_polite_end_after() -> None:
    async with connected() as (near, far):
        await near.send_all(b"first, ")
        assert send_at_once(near, b"last")
        await near.aclose()
        received = b""
        while data := await far.receive_some():
            received += data
        assert received == b"first, last"


async def test_a_peer_that_takes_nothing_is_left_to_the_ordinary_way() -> None:
    async with connected() as (near, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send_all, b"x" * 10_000_000)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        # Now a record is half sent, and the rest of it must not be followed by anything.
        assert not send_at_once(near, b"farewell")


async def test_nothing_is_said_in_the_middle_of_what_another_task_sends() -> None:
    async with connected() as (near, far), trio.open_nursery() as nursery:
        nursery.start_soon(near.send_all, b"x" * 10_000_000)
        await trio.testing.wait_all_tasks_blocked()
        await far.receive_some(1_000_000)  # there is room again, and the other has not come to use it
        assert not send_at_once(near, b"farewell")
        nursery.cancel_scope.cancel()


async def test_a_connection_that_is_known_to_be_broken_is_left_to_the_ordinary_way() -> None:
    async with connected() as (near, far):
        await trio.aclose_forcefully(far)
        assert not send_at_once(near, b"farewell")


@pytest.mark.parametrize("taken", [0, 10, None], ids=["none", "a part", "broken"])
async def test_a_connection_that_breaks_just_now_is_told_as_broken(
    taken: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected() as (near, _):
        monkeypatch.setattr("appserver.atonce.os.write", kernel_that_takes(taken))
        with pytest.raises(trio.BrokenResourceError):
            send_at_once(near, b"farewell")
        monkeypatch.undo()


async def test_what_a_server_holds_back_from_the_handshake_comes_first() -> None:
    async with connected() as (near, far):
        assert not send_at_once(far, b"hello")
        await far.send_all(b"hello")
        assert send_at_once(far, b", and more")
        assert await near.receive_some() == b"hello"
        assert await near.receive_some() == b", and more"


async def test_long_words_are_sent_in_the_ordinary_way() -> None:
    async with connected() as (near, far):
        assert not send_at_once(near, b"x" * (MAX_AT_ONCE_BYTES + 1))
        assert send_at_once(near, b"x" * MAX_AT_ONCE_BYTES)
        assert len(await far.receive_some()) == MAX_AT_ONCE_BYTES


async def test_what_is_closed_at_once_says_no_goodbye_and_takes_no_more() -> None:
    async with connected() as (near, far):
        assert close_at_once(near)
        assert close_at_once(near)
        assert not send_at_once(near, b"farewell")
        with pytest.raises(trio.BrokenResourceError):
            await far.receive_some()


async def test_without_tls_over_a_socket_it_is_sent_in_the_ordinary_way() -> None:
    near, far = trio.testing.memory_stream_pair()
    assert not send_at_once(near, b"farewell")
    assert not close_at_once(near)
    covered = trio.SSLStream(near, ssl.create_default_context(), server_hostname="g1")
    assert not send_at_once(covered, b"farewell")
    assert not close_at_once(covered)
    await trio.aclose_forcefully(covered)
    await far.aclose()
