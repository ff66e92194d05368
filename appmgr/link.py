"""The link: a connection to the server that is made again whenever it is lost, for as long as the manager wants.

It knows how to dial, greet, pump messages both ways and wait between attempts, and nothing of what the messages mean.
What happens comes out as events; their channel has no buffer, so that the manager has seen the end of one connection
before anything of the next can be sent. What is to be said goes in by `send`, which never blocks.

One task receives and one sends, since a TLS stream bears no more. Whatever ends a connection is translated to a
reason for the log here and in `dial`; nobody above knows `trio.BrokenResourceError`.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeAlias, final

import trio

from appmgr.dial import Contact, ContactError, explain
from appserver.messages import Greeting, Hello, ManagerMessage, Refused, ServerMessage
from appserver.protocol import CLOSED, NEED_DATA, Connection, ProtocolError, choose_version
from appserver.report import printable
from pki.frozen import dataclass

GREETING_SECONDS = 10.0
"""From the handshake to the server's greeting. A frozen guest accepts connections in its kernel and says nothing."""

SEND_SECONDS = 10.0
"""For one message to leave. The buffers hold hundreds, so a blocked one means a dead peer."""

CLOSE_SECONDS = 0.5
"""For the last messages and a polite end. A server that misses our end finds it out by itself."""

FIRST_PAUSE_SECONDS = 0.1
LAST_PAUSE_SECONDS = 1.0
"""Between two attempts, doubling from the first to the last and jittered down by up to half: thirty managers of one
guest must not knock in step, and contact returns within a second of the network."""

MAX_OUTGOING_MESSAGES = 100
"""Waiting to be sent. A manager has a handful under way; more means that the connection is stuck."""

READ_BYTES = 65536


@final
@dataclass(frozen=True, slots=True)
class Connected:
    """The server has greeted and the hello is on its way."""


@final
@dataclass(frozen=True, slots=True)
class Received:
    """The server has said this."""

    message: ServerMessage


@final
@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is lost; the next attempt is on its way."""

    reason: str


@final
@dataclass(frozen=True, slots=True)
class ContactFailed:
    """An attempt did not get as far as the greeting; the next is on its way."""

    reason: str


LinkEvent: TypeAlias = Connected | Received | Disconnected | ContactFailed

Dial: TypeAlias = Callable[[], Awaitable[Contact]]
"""Makes one attempt: a stream to the server that has proved who it is. Raises `ContactError`."""


@final
class Link:
    """Keeps up contact with one server."""

    def __init__(
        self,
        dial: Dial,
        hello: Callable[[int], Hello],
        events: trio.MemorySendChannel[LinkEvent],
        *,
        greeting_seconds: float = GREETING_SECONDS,
        jitter: Callable[[], float] = random.random,  # noqa: S311 - no secret depends on it
    ) -> None:
        """Prepare; nothing happens before `run`.

        Args:
            dial: makes one attempt.
            hello: makes our introduction for the protocol version chosen.
            events: where to tell what happens; without buffer.
            greeting_seconds: how long to wait for the greeting.
            jitter: gives numbers from 0 to 1.
        """
        self._dial = dial
        self._hello = hello
        self._events = events
        self._greeting_seconds = greeting_seconds
        self._jitter = jitter
        self._outgoing: trio.MemorySendChannel[ManagerMessage] | None = None
        self._conversation: trio.CancelScope | None = None
        self._dropped = False
        self._leaving = False
        self.idle = trio.Event()
        self.idle.set()

    async def run(self) -> None:
        """Keep up contact until cancelled, or until what was sent before `leave` has been delivered.

        A connection is closed politely for `CLOSE_SECONDS`, then by force, also when cancelled.
        """
        pause_seconds = FIRST_PAUSE_SECONDS
        while not self._leaving:
            try:
                contact = await self._dial()
            except ContactError as error:
                await self._events.send(ContactFailed(str(error)))
            else:
                began = trio.current_time()
                # A server that greets and hangs up at once must not be asked ten times a second.
                if await self._use(contact) and trio.current_time() - began >= LAST_PAUSE_SECONDS:
                    pause_seconds = FIRST_PAUSE_SECONDS
            if self._leaving:
                break
            await trio.sleep(pause_seconds * (1 - self._jitter() / 2))
            pause_seconds = min(2 * pause_seconds, LAST_PAUSE_SECONDS)

    def send(self, message: ManagerMessage) -> None:
        """Have `message` sent over the connection there is; without one, or with one that is stuck, it is dropped."""
        if self._outgoing is not None:
            try:
                self._outgoing.send_nowait(message)
            except (trio.WouldBlock, trio.BrokenResourceError):
                self.drop()

    def drop(self) -> None:
        """Give up the connection there is, without an event, and make a new one."""
        self._dropped = True
        if self._conversation is not None:
            self._conversation.cancel()

    def leave(self) -> None:
        """Deliver what was sent, close, and end `run`; `idle` is set then, or at once where there is no connection."""
        self._leaving = True
        if self._outgoing is not None:
            self._outgoing.close()

    async def _use(self, contact: Contact) -> bool:
        """Greet and converse over one stream, and close it. Tell whether it got as far as the greeting."""
        self._dropped = False
        protocol = Connection("manager")
        greeted = False
        try:
            greeting = await self._greeting(contact.stream, protocol)
            if greeting is not None:
                greeted = True
                reason = await self._converse(contact, protocol)
                if not self._dropped and not self._leaving:
                    await self._events.send(Disconnected(reason))
        except ContactError as error:
            await self._events.send(ContactFailed(str(error)))
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await _close(contact.stream)
            self.idle.set()
        return greeted

    async def _greeting(self, stream: trio.abc.Stream, protocol: Connection) -> Greeting | None:
        """Wait for the greeting and answer it. None where the server refused instead, or speaks no version of ours."""
        with trio.move_on_after(self._greeting_seconds):
            message = await _next_message(stream, protocol)
            match message:
                case Greeting():
                    version = choose_version(message.versions)
                    if version is not None:
                        await stream_send(stream, protocol.send(self._hello(version)))
                        return message
                    text = f"it speaks the protocol versions {message.versions!r}, and none that is known here"
                    await self._events.send(Received(Refused(None, "version", text)))
                case Refused(code="certificate"):
                    # Not final: keys may be changed at any moment, like those that TLS refuses by an alert.
                    raise ContactError(f"the guest does not accept our key: {printable(message.text)}")
                case Refused():
                    await self._events.send(Received(message))
                case _:
                    raise ContactError(f"the server said {message.type_name!r} instead of a greeting")
            return None
        raise ContactError(f"the server accepted the connection, but did not greet within {self._greeting_seconds:g} s")

    async def _converse(self, contact: Contact, protocol: Connection) -> str:
        """Pump messages both ways until the connection ends. Give the reason."""
        outgoing, to_send = trio.open_memory_channel[ManagerMessage](MAX_OUTGOING_MESSAGES)
        self._outgoing = outgoing
        reasons: list[str] = []

        async def ending(pump: Callable[[], Awaitable[None]]) -> None:
            try:
                await pump()
            except ContactError as error:
                reasons.append(str(error))
            conversation.cancel_scope.cancel()

        self.idle = trio.Event()
        try:
            async with trio.open_nursery() as conversation:
                self._conversation = conversation.cancel_scope
                conversation.start_soon(ending, lambda: self._pump_out(contact.stream, protocol, to_send))
                await self._events.send(Connected())
                await ending(lambda: self._pump_in(contact.stream, protocol))
        finally:
            self._outgoing = self._conversation = None
            outgoing.close()
            to_send.close()
        return reasons[0] if reasons else "the connection was closed"

    async def _pump_in(self, stream: trio.abc.Stream, protocol: Connection) -> None:
        while True:
            await self._events.send(Received(await _next_message(stream, protocol)))

    async def _pump_out(
        self, stream: trio.abc.Stream, protocol: Connection, to_send: trio.MemoryReceiveChannel[ManagerMessage]
    ) -> None:
        async for message in to_send:
            await stream_send(stream, protocol.send(message))


async def stream_send(stream: trio.abc.Stream, data: bytes) -> None:
    """Send within `SEND_SECONDS`. Raises `ContactError`; the stream is of no use afterwards."""
    with trio.move_on_after(SEND_SECONDS) as scope:
        try:
            await stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ContactError(explain(error)) from error
    if scope.cancelled_caught:
        raise ContactError(f"the server takes nothing any more, for {SEND_SECONDS:g} s")


async def _next_message(stream: trio.abc.Stream, protocol: Connection) -> ServerMessage:
    """Wait for the next message that this version knows. Raises `ContactError` where the connection ends instead."""
    while True:
        try:
            event = protocol.next_event()
            if event is NEED_DATA:
                protocol.receive_data(await stream.receive_some(READ_BYTES))
                continue
        except ProtocolError as error:
            raise ContactError(f"protocol error: {error}") from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ContactError(explain(error)) from error
        if event is CLOSED:
            raise ContactError("the server closed the connection")
        if isinstance(event, ServerMessage):
            return event


async def _close(stream: trio.abc.Stream) -> None:
    try:
        await stream.aclose()
    except trio.BrokenResourceError:
        return
