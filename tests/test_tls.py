"""The server's side of TLS over real sockets, against trio's own: what is said arrives, whoever is slow or hangs up."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from test_pki_contexts import GUEST, HOST, STRANGER, material

from appserver.tls import MAX_RECORD_BYTES, TlsStream
from pki.contexts import client_context, server_context

PATIENCE_SECONDS = 20
LONG = bytes(range(256)) * 12_000
"""Three megabytes: no kernel takes that at one go."""


def ends() -> tuple[trio.SocketStream, trio.SocketStream]:
    one, other = (trio.socket.from_stdlib_socket(sock) for sock in socket.socketpair())
    for sock in (one, other):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    return trio.SocketStream(one), trio.SocketStream(other)


@asynccontextmanager
async def shaken() -> AsyncIterator[tuple[TlsStream, trio.SSLStream[trio.SocketStream]]]:
    ours, theirs = ends()
    server = TlsStream(ours, server_context(material(GUEST, HOST)), b"")
    client = trio.SSLStream(theirs, client_context(material(HOST, GUEST)))
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.do_handshake)
            nursery.start_soon(client.do_handshake)
        try:
            yield server, client
        finally:
            await trio.aclose_forcefully(server)
            await trio.aclose_forcefully(client)


async def receive(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := await stream.receive_some(100_000)):
        data += more
    return data


async def test_what_was_read_before_is_the_beginning_of_the_handshake() -> None:
    ours, theirs = ends()
    client = trio.SSLStream(theirs, client_context(material(HOST, GUEST)))
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.do_handshake)
            server = TlsStream(ours, server_context(material(GUEST, HOST)), bytes(await ours.receive_some(100)))
            await server.do_handshake()
        await server.send_all(b"hello")
        assert await client.receive_some() == b"hello"
        assert server.connection.version() == "TLSv1.3"
        await trio.aclose_forcefully(server)
        await trio.aclose_forcefully(client)


async def test_long_words_both_ways_at_once_arrive_whole() -> None:
    async with shaken() as (server, client), trio.open_nursery() as nursery:
        nursery.start_soon(server.send_all, LONG)
        nursery.start_soon(client.send_all, LONG[::-1])
        nursery.start_soon(check_arrival, server, LONG[::-1])
        nursery.start_soon(check_arrival, client, LONG)


async def check_arrival(stream: trio.abc.ReceiveStream, expected: bytes) -> None:
    assert await receive(stream, len(expected)) == expected


async def test_several_records_that_come_at_once_are_read_one_by_one() -> None:
    async with shaken() as (server, client):
        for word in (b"one", b"two", b"x" * (MAX_RECORD_BYTES + 1)):
            await client.send_all(word)
        assert [await server.receive_some(65536) for _ in range(2)] == [b"one", b"two"]
        assert await receive(server, MAX_RECORD_BYTES + 1) == b"x" * (MAX_RECORD_BYTES + 1)


async def test_whoever_takes_its_leave_is_told_apart_from_whoever_hangs_up() -> None:
    async with shaken() as (server, client):
        await client.aclose()
        assert await server.receive_some() == b""
    async with shaken() as (server, client):
        await trio.aclose_forcefully(client.transport_stream)
        with pytest.raises(trio.BrokenResourceError):
            await server.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await server.send_all(b"x")


async def test_the_peer_of_a_close_sees_a_leave_and_no_cut() -> None:
    async with shaken() as (server, client):
        await server.send_all(b"last words")
        await server.aclose()
        assert await client.receive_some() == b"last words"
        assert await client.receive_some() == b""  # trio raises for a cut
        for act in (server.receive_some, lambda: server.send_all(b"x"), server.wait_send_all_might_not_block):
            with pytest.raises(trio.ClosedResourceError):
                await act()
        await server.aclose()


async def test_a_stream_that_was_cancelled_in_the_middle_of_a_word_says_nothing_more() -> None:
    async with shaken() as (server, client):
        with trio.move_on_after(0.05) as patience:
            await server.send_all(LONG)
        assert patience.cancelled_caught
        with pytest.raises(trio.BrokenResourceError):
            await server.send_all(b"x")
        await server.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await receive(client, len(LONG))


async def test_a_reader_that_was_cancelled_has_lost_nothing() -> None:
    async with shaken() as (server, client):
        with trio.move_on_after(0.01) as patience:
            await server.receive_some()
        assert patience.cancelled_caught
        await client.send_all(b"still here")
        assert await server.receive_some(5) + await server.receive_some(5) == b"still here"


async def test_closing_wakes_whoever_reads() -> None:
    async with shaken() as (server, _), trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed, server)
        await trio.testing.wait_all_tasks_blocked()
        await server.aclose()


async def expect_closed(server: TlsStream) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await server.receive_some()


async def test_a_refused_peer_leaves_an_alert_to_be_told_and_a_stream_of_no_use() -> None:
    ours, theirs = ends()
    server = TlsStream(ours, server_context(material(GUEST, HOST)), b"")
    client = trio.SSLStream(theirs, client_context(material(STRANGER, GUEST)))
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.do_handshake)
            with pytest.raises(trio.BrokenResourceError) as caught:
                await server.do_handshake()
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
        with pytest.raises(trio.BrokenResourceError):
            await server.send_all(b"x")
        alert = server.alert()
        assert alert
        await ours.send_all(alert)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await client.receive_some()
        assert "UNKNOWN_CA" in str(caught.value.__cause__)
        await server.aclose()
        await trio.aclose_forcefully(client)
