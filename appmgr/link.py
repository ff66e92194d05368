"""The link: a connection to the server that is made again whenever it is lost, for as long as the manager wants.

It knows how to dial, greet, pump messages both ways and wait between attempts, and nothing of what the messages mean.
What happens is told by a call from within, so the manager has seen the end of one connection before anything of the
next can be sent, and no message costs a turn of the loop more than it must. What is to be said goes in by `send`, which
never blocks.

At the end the manager says goodbye in words, `bye`. The goodbye of TLS is left out where the process ends first: the
cluster waits for that, and a server that has heard `bye` waits for nothing.

One task receives and one sends, since a TLS stream bears no more. Whatever ends a connection is translated to a
reason for the log here and in `dial`; nobody above knows `trio.BrokenResourceError`.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeAlias, final

import trio

from appmgr.dial import Contact, ContactError, explain
from appserver.atonce import send_at_once
from appserver.messages import Bye, Greeting, Hello, ManagerMessage, Refused, ServerMessage
from appserver.protocol import CLOSED, NEED_DATA, Connection, ProtocolError, choose_version
from appserver.report import printable
from pki.frozen import dataclass

GREETING_SECONDS = 10.0
"""From the handshake to the server's greeting. A frozen guest accepts connections in its kernel and says nothing."""

SEND_SECONDS = 10.0
"""For one message to leave. The buffers hold hundreds, so a blocked one means a dead peer."""

CLOSE_SECONDS = 0.5
"""For the last messages, and again for a polite end. A server that misses our end finds it out by itself."""

FIRST_PAUSE_SECONDS = 0.1
LAST_PAUSE_SECONDS = 1.0
"""Between two attempts, doubling from the first to the last and jittered down by up to half: thirty managers of one
guest must not knock in step, and contact returns within a second of the network."""

MAX_OUTGOING_MESSAGES = 100
"""Waiting to be sent. A manager has a handful under way; more means that the connection is stuck."""

READ_BYTES = 16384
"""What a record of TLS holds at most: no read gives more."""


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

Tell: TypeAlias = Callable[[LinkEvent], None]
"""Is told what happens, in its order; returns at once and raises nothing. It may `send`, `drop` and `leave`."""

Dial: TypeAlias = Callable[[], Awaitable[Contact]]
"""Makes one attempt: a stream to the server that has proved who it is. Raises `ContactError`."""


@final
class Link:
    """Keeps up contact with one server."""

    def __init__(
        self,
        dial: Dial,
        hello: Callable[[int], Hello],
        tell: Tell,
        *,
        greeting_seconds: float = GREETING_SECONDS,
        jitter: Callable[[], float] = random.random,  # noqa: S311 - no secret depends on it
    ) -> None:
        """Prepare; nothing happens before `run`.

        Args:
            dial: makes one attempt.
            hello: makes our introduction for the protocol version chosen.
            tell: is told what happens.
            greeting_seconds: how long to wait for the greeting.
            jitter: gives numbers from 0 to 1.
        """
        self._dial = dial
        self._hello = hello
        self._tell = tell
        self._greeting_seconds = greeting_seconds
        self._jitter = jitter
        self._conversation: _Conversation | None = None
        self._dropped = False
        self._leaving = False
        self.delivered = trio.Event()
        """Set after `leave`, once all that was sent is on its way or lost."""

    async def run(self) -> None:
        """Keep up contact until cancelled, or until what was sent before `leave` has been delivered.

        A connection is closed politely for `CLOSE_SECONDS`, then by force, also when cancelled.
        """
        pause_seconds = FIRST_PAUSE_SECONDS
        while not self._leaving:
            try:
                contact = await self._dial()
            except ContactError as error:
                self._tell(ContactFailed(str(error)))
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
        if self._conversation is not None and not self._conversation.put(message):
            self.drop()

    def drop(self) -> None:
        """Give up the connection there is, without an event, and make a new one."""
        self._dropped = True
        if self._conversation is not None:
            self._conversation.scope.cancel()

    def leave(self) -> None:
        """Deliver what was sent, say goodbye, set `delivered`, close, and end `run`."""
        if self._leaving:
            return
        self._leaving = True
        if self._conversation is None or self._conversation.finish():
            self.delivered.set()

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
                    self._tell(Disconnected(reason))
        except ContactError as error:
            self._tell(ContactFailed(str(error)))
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await _close(contact.stream)
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
                    self._tell(Received(Refused(None, "version", text)))
                case Refused(code="certificate"):
                    # Not final: keys may be changed at any moment, like those that TLS refuses by an alert.
                    raise ContactError(f"the guest does not accept our key: {printable(message.text)}")
                case Refused():
                    self._tell(Received(message))
                case _:
                    raise ContactError(f"the server said {message.type_name!r} instead of a greeting")
            return None
        raise ContactError(f"the server accepted the connection, but did not greet within {self._greeting_seconds:g} s")

    async def _converse(self, contact: Contact, protocol: Connection) -> str:
        """Pump messages both ways until the connection ends. Give the reason."""
        reasons: list[str] = []

        async def ending(pump: Callable[[], Awaitable[None]]) -> None:
            try:
                await pump()
            except ContactError as error:
                reasons.append(str(error))
            tasks.cancel_scope.cancel()

        try:
            async with trio.open_nursery() as tasks:
                conversation = _Conversation(contact.stream, protocol, tasks.cancel_scope)
                self._conversation = conversation
                tasks.start_soon(ending, conversation.pump_out)
                self._tell(Connected())
                await ending(lambda: self._pump_in(contact.stream, protocol))
        finally:
            self._conversation = None
            if self._leaving:
                self.delivered.set()
        return reasons[0] if reasons else "the connection was closed"

    async def _pump_in(self, stream: trio.abc.Stream, protocol: Connection) -> None:
        while True:
            message = await _next_message(stream, protocol)
            if self._dropped:  # in the very turn in which it came: the manager has done with this connection
                return
            self._tell(Received(message))


@final
class _Conversation:
    """What is to be said over one connection."""

    def __init__(self, stream: trio.abc.Stream, protocol: Connection, scope: trio.CancelScope) -> None:
        self._stream = stream
        self._protocol = protocol
        self.scope = scope
        """Cancelled, it ends."""
        self._waiting: list[bytes] = []
        self._news = trio.Event()
        self._sending = False
        self._finished = False

    def put(self, message: ManagerMessage) -> bool:
        """Have a message sent; False where too many wait already."""
        if self._finished:
            return True  # after a goodbye nothing is said
        if len(self._waiting) >= MAX_OUTGOING_MESSAGES:
            return False
        self._waiting.append(self._protocol.send(message))
        self._news.set()
        return True

    def finish(self) -> bool:
        """Have what waits sent, and a goodbye; tell whether it is on its way by now."""
        self._finished = True
        self._waiting.append(self._protocol.send(Bye()))
        self._news.set()
        # What is being sent comes first: a record must not begin in the middle of another.
        try:
            if self._sending or not send_at_once(self._stream, b"".join(self._waiting)):
                return False
        except trio.BrokenResourceError:
            pass  # no more can be said; whoever needs an answer does not speak his last words
        self._waiting.clear()
        return True

    async def pump_out(self) -> None:
        """Send until told to `finish`. Raises `ContactError`."""
        while True:
            while self._waiting:
                data = b"".join(self._waiting)
                self._waiting.clear()
                self._sending = True
                await stream_send(self._stream, data)
                self._sending = False
            if self._finished:
                return
            await self._news.wait()
            self._news = trio.Event()


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
