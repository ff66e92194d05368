"""A true `Listener` with true TLS on loopback, and those who come to its door; for the tests of who gets in."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone

import trio
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fakes import FakeSupervisor, Log, Manager

from appserver.listener import Listener, Trust
from appserver.messages import Greeting, Hello
from appserver.sockets import open_listening_sockets
from pki.certificates import Issued, Purpose, issue
from pki.contexts import client_context, server_context
from pki.material import ExpiredPins, Material, Pin

PATIENCE_SECONDS = 20
NOW = datetime.now(timezone.utc)
HELLO = Hello(1, "cmappmgr 1", "host1", 77, 5.0)


def made(purpose: Purpose, name: str, *, days_ago: int = 0, days: int = 400) -> Issued:
    return issue(purpose, name, validity_days=days, now=NOW - timedelta(days=days_ago))


def material(own: Issued, *trusted: Issued, expired_pins: ExpiredPins = "accept") -> Material:
    pins = tuple(Pin(each.certificate.public_bytes(Encoding.DER), f"pin{at}") for at, each in enumerate(trusted))
    key = own.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Material(own.certificate.public_bytes(Encoding.PEM), key, pins, expired_pins)


GUEST, HOST = made(Purpose.SERVER, "g1"), made(Purpose.CLIENT, "host1")
OTHER_HOST = made(Purpose.CLIENT, "host2")
EXPIRED_HOST = made(Purpose.CLIENT, "host3", days_ago=20, days=10)


def trust(*hosts: Issued, expired_pins: ExpiredPins = "accept") -> Trust:
    mine = material(GUEST, *hosts, expired_pins=expired_pins)
    return Trust(server_context(mine), mine)


class Server:
    """A listener on loopback, and those who come."""

    def __init__(
        self, trusted: Trust | None = None, max_processes: int = 30, supervisor: FakeSupervisor | None = None
    ) -> None:
        self.log = Log()
        self.supervisor = supervisor or FakeSupervisor()
        self.callers: list[trio.SocketStream] = []
        report = self.log.as_report()
        self.listener = Listener(self.supervisor.as_supervisor(), report, trusted or trust(HOST), max_processes)
        (self.socket,) = open_listening_sockets(["127.0.0.1"], 0)
        self.port: int = self.socket.socket.getsockname()[1]

    async def serve(
        self, sessions: trio.Nursery, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        await self.listener.accept(self.socket, sessions)

    async def connect(self) -> trio.SocketStream:
        self.callers.append(await trio.open_tcp_stream("127.0.0.1", self.port))
        return self.callers[-1]

    async def dial(self, own: Issued | None = HOST, *, stream: trio.SocketStream | None = None) -> Manager:
        context = client_context(material(own or HOST, GUEST))
        if own is None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return Manager(trio.SSLStream(stream or await self.connect(), context))

    async def greeted(self, own: Issued = HOST, hello: Hello = HELLO) -> Manager:
        manager = await self.dial(own)
        assert isinstance(await manager.hear(), Greeting)
        await manager.say(hello)
        return manager


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Server]:
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.open_nursery() as sessions:
                await sessions.start(server.serve, sessions)
                yield server
                sessions.cancel_scope.cancel()
    finally:
        for caller in server.callers:
            await trio.aclose_forcefully(caller)


async def rest(stream: trio.abc.ReceiveStream) -> bytes:
    """Read until the peer has closed."""
    found = b""
    try:
        while data := await stream.receive_some(65536):
            found += data
    except trio.BrokenResourceError:
        pass  # a reset: closed as well
    return found
