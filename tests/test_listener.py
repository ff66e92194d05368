"""Who gets in, who does not, and what each is told: the true `Listener` with true TLS over loopback."""

from __future__ import annotations

import errno
import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast

import pytest
import trio
from door import EXPIRED_HOST, GUEST, HELLO, HOST, OTHER_HOST, Server, material, rest, serving, trust
from fakes import FakeSupervisor
from typing_extensions import Self

from appserver import handshakes as handshakes_module
from appserver import listener as listener_module
from appserver.effects import Terms, Watcher
from appserver.identity import Service
from appserver.listener import SESSIONS_PER_PROCESS
from appserver.messages import Bye, Error, Goodbye, Greeting, Poll, Refused
from appserver.messages import Run as RunMessage
from appserver.refusals import BUSY_ALERT
from appserver.sockets import ListenError, address_of, open_listening_sockets
from appserver.strangers import MAX_HALF_OPEN_PER_ADDRESS
from pki.contexts import client_context

RUN = RunMessage(1, "a" * 32, Service("line", ("/bin/true",)), "leave", 30.0, 0)


async def test_manager_with_the_right_key_is_greeted() -> None:
    async with serving(Server()) as server:
        manager = await server.greeted()
        await manager.say(Poll(1))
        assert isinstance(await manager.hear(), Error)
        await manager.say(Bye())
        await manager.hear_cut()
        assert not server.log.lines


def tls12() -> ssl.SSLContext:
    context = client_context(material(HOST, GUEST))
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    return context


def nameless() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@pytest.mark.parametrize(
    ("context", "alert", "logged"),
    [
        (nameless(), "CERTIFICATE_REQUIRED", "it showed no certificate"),
        (client_context(material(OTHER_HOST, GUEST)), "UNKNOWN_CA", "is not in the trust store 'trust store'"),
        (tls12(), "PROTOCOL_VERSION", "does not speak TLS 1.3"),
    ],
    ids=["no certificate", "a foreign one", "TLS 1.2"],
)
async def test_peer_that_is_refused_gets_an_alert_and_the_log_the_reason(
    context: ssl.SSLContext, alert: str, logged: str
) -> None:
    async with serving(Server()) as server:
        stream = trio.SSLStream(await server.connect(), context)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.receive_some(1)
        assert isinstance(caught.value.__cause__, ssl.SSLError)
        assert alert in str(caught.value.__cause__.reason)
        assert logged in await server.log.until("refused a connection from 127.0.0.1")
        await server.greeted()


async def test_expired_pin_is_refused_with_an_alert_where_that_is_wanted() -> None:
    async with serving(Server(trust(EXPIRED_HOST, expired_pins="refuse"))) as server:
        manager = await server.dial(EXPIRED_HOST)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await manager.hear()
        assert "EXPIRED" in str(caught.value.__cause__)
        await server.log.until("(10 days ago), and expiredPins=refuse is set")


async def test_expired_pin_is_accepted_with_a_warning_for_many() -> None:
    async with serving(Server(trust(EXPIRED_HOST))) as server:
        for _ in range(3):
            await server.greeted(EXPIRED_HOST)
        assert server.log.count("expired on") == 1
        assert "cmapppki renew" in server.log.text


@pytest.mark.parametrize(
    ("data", "logged"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", "speaks HTTP in the clear"),
        (bytes(range(256)) * 20, "refused a connection"),
        (b"\n" * 100, "refused a connection"),
    ],
    ids=["HTTP", "garbage", "newlines"],
)
async def test_stranger_that_does_not_speak_tls_is_closed(data: bytes, logged: str) -> None:
    async with serving(Server()) as server:
        stream = await server.connect()
        await stream.send_all(data)
        await stream.send_eof()
        await rest(stream)
        assert logged in await server.log.until("refused a connection from 127.0.0.1")
        await server.greeted()


async def test_stranger_that_hangs_up_is_logged_as_such() -> None:
    async with serving(Server()) as server:
        await (await server.connect()).aclose()
        await server.log.until("it hung up during the handshake")


async def test_silent_stranger_is_closed_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshakes_module, "HANDSHAKE_SECONDS", 0.05)
    async with serving(Server()) as server:
        stream = await server.connect()
        assert await rest(stream) == BUSY_ALERT
        await server.log.until("no handshake within 0.05 s")


async def test_refused_peers_get_one_line_for_each_address_and_minute() -> None:
    async with serving(Server()) as server:
        for _ in range(5):
            stream = await server.connect()
            await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
            await stream.send_eof()
            await rest(stream)
        assert server.log.count("refused a connection") == 1


async def test_crowd_of_silent_strangers_does_not_keep_a_manager_out() -> None:
    async with serving(Server()) as server:
        crowd = [await server.connect() for _ in range(MAX_HALF_OPEN_PER_ADDRESS)]
        await server.greeted()
        assert await rest(crowd[0]) == BUSY_ALERT  # the oldest gave way, and was told
        assert "it gave way to a newer one" in server.log.text
        with trio.move_on_after(0) as at_once:
            await crowd[1].receive_some(1)
        assert at_once.cancelled_caught  # and only that one


async def test_more_sessions_than_the_bound_are_refused_until_one_leaves() -> None:
    async with serving(Server(max_processes=1)) as server:
        managers = [await server.greeted() for _ in range(SESSIONS_PER_PROCESS)]
        late = await server.dial()
        answer = await late.hear()
        assert isinstance(answer, Refused)
        assert answer.code == "sessions"
        assert str(SESSIONS_PER_PROCESS) in answer.text
        await late.hear_closed()
        await server.log.until("refused certificate ")
        await managers[0].say(Bye())
        await managers[0].hear_cut()
        while not isinstance(await (await server.dial()).hear(), Greeting):
            pass


async def test_drain_says_goodbye_to_all_and_waits_until_they_have_gone() -> None:
    async with serving(Server()) as server:
        managers = [await server.greeted() for _ in range(3)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.listener.drain, "the server ends")
            for manager in managers:
                assert await manager.hear() == Goodbye("the server ends")
                await manager.hear_closed()
                await manager.stream.aclose()


async def test_drain_without_managers_takes_no_time() -> None:
    async with serving(Server()) as server:
        with trio.fail_after(0.5):
            await server.listener.drain("the server ends")


async def test_manager_whose_handshake_was_under_way_hears_goodbye_too() -> None:
    async with serving(Server()) as server:
        first = await server.greeted()
        stream = await server.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.listener.drain, "the server ends")
            assert await first.hear() == Goodbye("the server ends")
            late = await server.dial(stream=stream)
            assert await late.hear() == Goodbye("the server ends")
            for manager in (first, late):
                await manager.hear_closed()
                await manager.stream.aclose()


async def test_drain_does_not_wait_for_ever_for_a_manager_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "DRAIN_SECONDS", 0.05)
    async with serving(Server()) as server:
        await server.greeted()
        with trio.fail_after(5):
            await server.listener.drain("the server ends")


async def test_reload_takes_other_keys_names_who_will_be_refused_and_ends_no_session() -> None:
    async with serving(Server(trust(HOST))) as server:
        old = await server.greeted(HOST)
        await old.say(Poll(1))
        assert isinstance(await old.hear(), Error)  # so its name is known
        server.listener.reload(trust(OTHER_HOST), 30)
        assert server.log.count("will be refused at its next connection") == 1
        assert "cmappmgr[77] on host1" in server.log.text
        await server.greeted(OTHER_HOST)
        refused = await server.dial(HOST)
        with pytest.raises(trio.BrokenResourceError):
            await refused.hear()
        await old.say(Poll(2))
        assert isinstance(await old.hear(), Error)


async def test_reload_that_takes_nobody_away_names_nobody() -> None:
    async with serving(Server(trust(HOST))) as server:
        await server.greeted(HOST)
        server.listener.reload(trust(OTHER_HOST, HOST), 2)
        assert not server.log.lines
        assert server.listener.max_sessions == 2 * SESSIONS_PER_PROCESS


class FailingSocket:
    """A listening socket whose `accept` fails as it is told, and then works."""

    def __init__(self, socket: trio.SocketListener, *failures: OSError) -> None:
        self._socket = socket
        self._failures = deque(failures)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._socket.aclose()

    async def accept(self) -> trio.SocketStream:
        if self._failures:
            await trio.lowlevel.checkpoint()
            raise self._failures.popleft()
        return await self._socket.accept()


def failing(server: Server, *numbers: int) -> trio.SocketListener:
    failures = [OSError(number, "Too many open files") for number in numbers]
    return cast("trio.SocketListener", FailingSocket(server.socket, *failures))


async def test_accepting_goes_on_when_descriptors_ran_out_and_says_so_once() -> None:
    server = Server()
    server.socket = failing(server, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    async with serving(server):
        await server.greeted()
        assert server.log.count("cannot accept connections, those there are go on: Too many open files") == 1


async def test_socket_that_is_broken_is_not_tried_for_ever() -> None:
    server = Server()
    broken = failing(server, errno.EINVAL)
    async with trio.open_nursery() as sessions:
        with pytest.raises(OSError, match="Too many open files"):
            await server.listener.accept(broken, sessions)


class Breaking(FakeSupervisor):
    async def run(self, watcher: Watcher, run_id: str, service: Service, terms: Terms) -> None:
        await super().run(watcher, run_id, service, terms)
        raise ZeroDivisionError(run_id)


async def test_bug_in_one_session_ends_that_one_only() -> None:
    async with serving(Server(supervisor=Breaking())) as server:
        other, unlucky = await server.greeted(), await server.greeted(hello=replace(HELLO, pid=78))
        await unlucky.say(RUN)
        await server.log.until("a bug ended the session of 127.0.0.1")
        await other.say(Poll(1))
        assert isinstance(await other.hear(), Error)


@asynccontextmanager
async def closing(sockets: list[trio.SocketListener]) -> AsyncIterator[list[trio.SocketListener]]:
    try:
        yield sockets
    finally:
        for each in sockets:
            await trio.aclose_forcefully(each)


async def test_free_port_is_the_same_for_both_families() -> None:
    async with closing(open_listening_sockets([], 0)) as sockets:
        assert len({each.socket.getsockname()[1] for each in sockets}) == 1
        assert {address_of(each.socket.getsockname()) for each in sockets} <= {"0.0.0.0", "::"}


async def test_two_names_of_one_address_are_listened_on_once() -> None:
    async with closing(open_listening_sockets(["127.0.0.1", "127.0.0.1", "127.0.0.2"], 0)) as sockets:
        assert [address_of(each.socket.getsockname()) for each in sockets] == ["127.0.0.1", "127.0.0.2"]


async def test_taken_port_is_said_and_nothing_stays_open() -> None:
    async with closing(open_listening_sockets(["127.0.0.1"], 0)) as first:
        port = first[0].socket.getsockname()[1]
        with pytest.raises(ListenError, match=f"127.0.0.1 port {port}: Address already in use .*ss -ltnp"):
            open_listening_sockets(["127.0.0.2", "127.0.0.1"], port)
        async with closing(open_listening_sockets(["127.0.0.2"], port)) as again:
            assert len(again) == 1


@pytest.mark.parametrize(
    ("address", "words"), [("192.0.2.1", "does not have that address"), ("name.invalid", "cannot listen on")]
)
def test_address_that_is_not_ours_is_said(address: str, words: str) -> None:
    with pytest.raises(ListenError, match=words):
        open_listening_sockets([address], 0)


def test_ipv4_address_in_ipv6_form_is_shown_as_ipv4() -> None:
    assert address_of(("::ffff:192.0.2.1", 1, 0, 0)) == "192.0.2.1"
    assert address_of(("fe80::1", 1, 0, 2)) == "fe80::1"
    assert address_of(None) == "unknown"
