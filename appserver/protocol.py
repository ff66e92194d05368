"""The wire protocol of both ends, without I/O: bytes in, messages out, and the other way round (contract, section 5).

A `Connection` stands for one TLS connection as one end sees it, and follows both ends' states. It knows no socket, no
clock and no task. Its user loops: `next_event()`; on `NEED_DATA` read some bytes and give them to `receive_data()`;
on `CLOSED` leave. To speak, write what `send()` returns.

Each end is in one of five states. START: nothing said yet. GREETED: the server has spoken. OPEN: the manager has said
hello, and from then on both say what they like. DONE: that end has taken its leave. ERROR: that end broke the rules;
for good. `_TRANSITIONS` is the whole of it: what is not in the table is out of order. The ends are followed one by
one, because their words cross on the wire: a server that has said goodbye may still receive a poll.

Two kinds of mistake, told apart by type: `ProtocolError` is the peer's, `LocalProtocolError` is ours. After either,
the end that made it is in ERROR, and every further call about it raises again. A server whose peer erred sends one
last `Error` and closes; a manager just closes. A value that no message can hold (`MessageError`) is found before
anything is sent and leaves the states as they were.
"""

from __future__ import annotations

import enum
from typing import Final, Literal, TypeAlias, final

from appserver.codec import decode, encode
from appserver.messages import (
    MAX_MESSAGE_BYTES,
    Ack,
    Attach,
    Bye,
    Ended,
    Error,
    Goodbye,
    Greeting,
    Hello,
    Message,
    MessageError,
    Poll,
    Refused,
    Run,
    Running,
    Status,
    Stop,
    Stopping,
    Unknown,
    Watch,
)

VERSIONS: Final = (1,)
"""Protocol versions that this release speaks, the best last."""

Role = Literal["manager", "server"]


class ProtocolError(Exception):
    """The peer broke the rules of the protocol: close the connection (a server says `Error` first)."""


class LocalProtocolError(Exception):
    """We were about to break the rules of the protocol: a bug on this side. Nothing was sent."""


class EndState(enum.Enum):
    """Where one end of a connection stands."""

    START = enum.auto()
    GREETED = enum.auto()
    OPEN = enum.auto()
    DONE = enum.auto()
    ERROR = enum.auto()

    __hash__ = object.__hash__  # that of enumerations is a function of Python's, called for each message


@final
class Pause(enum.Enum):
    """What `next_event` gives where there is no message."""

    NEED_DATA = enum.auto()
    CLOSED = enum.auto()


NEED_DATA: Final = Pause.NEED_DATA
CLOSED: Final = Pause.CLOSED

Event: TypeAlias = Message | Unknown | Literal[Pause.NEED_DATA, Pause.CLOSED]

_START, _GREETED, _OPEN, _DONE = EndState.START, EndState.GREETED, EndState.OPEN, EndState.DONE

_TRANSITIONS: dict[Role, dict[EndState, dict[type[Message], EndState]]] = {
    "server": {
        _START: {Greeting: _GREETED, Refused: _DONE, Goodbye: _DONE},
        _GREETED: {Refused: _DONE, Error: _GREETED, Goodbye: _DONE},
        _OPEN: {
            Running: _OPEN,
            Status: _OPEN,
            Stopping: _OPEN,
            Ended: _OPEN,
            Refused: _OPEN,
            Error: _OPEN,
            Goodbye: _DONE,
        },
        _DONE: {},
    },
    "manager": {
        _START: {},
        _GREETED: {Hello: _OPEN},
        _OPEN: {
            Run: _OPEN,
            Watch: _OPEN,
            Attach: _OPEN,
            Poll: _OPEN,
            Stop: _OPEN,
            Ack: _OPEN,
            Bye: _DONE,
        },
        _DONE: {},
    },
}

_DRAWS_ALONG: dict[type[Message], tuple[EndState, EndState]] = {
    Greeting: (_START, _GREETED),
    Hello: (_GREETED, _OPEN),
}
"""Two messages change the state of the end that hears them, too: (from, to)."""


@final
class Connection:
    """One end's view of one connection, as `role`. Not to be used by two tasks at the same moment."""

    def __init__(self, role: Role) -> None:
        self._role: Role = role
        self._peer: Role = "server" if role == "manager" else "manager"
        self._states: dict[Role, EndState] = {"manager": _START, "server": _START}
        self._buffer = bytearray()
        self._searched_bytes = 0
        self._at_end = False

    @property
    def our_state(self) -> EndState:
        """Where this end stands."""
        return self._states[self._role]

    @property
    def their_state(self) -> EndState:
        """Where the peer stands."""
        return self._states[self._peer]

    @property
    def has_unread(self) -> bool:
        """Tell whether bytes of the peer wait for `next_event`, a whole message or not."""
        return bool(self._buffer)

    def receive_data(self, data: bytes | bytearray) -> None:
        """Keep what the peer sent; empty means that it will send no more. Only buffers, never raises for what is in it.

        Call `next_event` until it needs data before giving more: the bound is on each message, not on the sum.
        """
        if data:
            self._buffer += data
        else:
            self._at_end = True

    def next_event(self) -> Event:
        """Give the next message; `NEED_DATA` where more bytes are needed; `CLOSED` where the peer has ended its stream.

        A message of a type not known here comes as `Unknown`, once both ends have introduced themselves.
        Raises `ProtocolError` for anything malformed, too long or out of order, and then again at every call.
        """
        if self.their_state is EndState.ERROR:
            raise ProtocolError(f"the {self._peer} has broken the protocol before")
        try:
            line = self._next_line()
            if line is None:
                return CLOSED if self._at_end else NEED_DATA
            message = decode(line)
            self._advance(self._peer, message)
        except MessageError as error:
            self._states[self._peer] = EndState.ERROR
            raise ProtocolError(f"the {self._peer} sent {error}") from error
        return message

    def send(self, message: Message) -> bytes:
        """Give the bytes to write for `message`.

        Raises `LocalProtocolError` where it is not ours to say now, and `MessageError` for a value that no message
        holds (too long, not finite, not Unicode), which leaves the connection as it was.
        """
        state = self.our_state
        if state is EndState.ERROR:
            raise LocalProtocolError(f"this {self._role} has broken the protocol before")
        if type(message) not in _TRANSITIONS[self._role][state]:
            self._states[self._role] = EndState.ERROR
            raise LocalProtocolError(f"a {self._role} cannot send {message.type_name!r} in state {state.name}")
        line = encode(message)
        self._advance(self._role, message)
        return line

    def _next_line(self) -> bytes | None:
        """Cut the next line off the buffer. Searching goes on where it ended: one byte at a time must stay linear."""
        end = self._buffer.find(b"\n", self._searched_bytes, MAX_MESSAGE_BYTES)
        if end < 0:
            if len(self._buffer) >= MAX_MESSAGE_BYTES:
                raise MessageError(f"a message of more than {MAX_MESSAGE_BYTES} bytes")
            if self._at_end and self._buffer:
                raise MessageError(f"only the first {len(self._buffer)} bytes of a message")
            self._searched_bytes = len(self._buffer)
            return None
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        self._searched_bytes = 0
        return line

    def _advance(self, speaker: Role, message: Message | Unknown) -> None:
        if isinstance(message, Unknown):
            if self._states[speaker] is not EndState.OPEN:
                raise MessageError(f"a message of the unknown type {message.type!r} before hello, or after the end")
            return
        legal = _TRANSITIONS[speaker][self._states[speaker]]
        if type(message) not in legal:
            raise MessageError(f"a {message.type_name} out of order, in state {self._states[speaker].name}")
        self._states[speaker] = legal[type(message)]
        hearer: Role = "server" if speaker == "manager" else "manager"
        if type(message) in _DRAWS_ALONG:
            before, after = _DRAWS_ALONG[type(message)]
            if self._states[hearer] is before:
                self._states[hearer] = after


def choose_version(offered: tuple[int, ...]) -> int | None:
    """Choose the highest protocol version that both ends know; None where there is none."""
    return max((version for version in offered if version in VERSIONS), default=None)
