"""Messages to lines of JSON and back.

Every message is one JSON object, tagged by `type`, in UTF-8, ended by a newline, at most `MAX_MESSAGE_BYTES` long.
What is sent is held to the rules for what is received: `encode` reads back what it made, so that no peer has to
refuse a line of ours. Unknown fields are ignored and an absent optional field means null, so that a newer peer can
talk to an older one.

The standard library's `json`, not msgspec: measured, msgspec takes 20 ms to import and `json` 7, and a manager starts
for every application at once when a package starts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NoReturn, TypeVar, cast

from appserver import outcome as outcomes
from appserver.identity import Form, Service, ServiceError
from appserver.messages import (
    MAX_MESSAGE_BYTES,
    MAX_NAME_CHARACTERS,
    MAX_SECONDS,
    MAX_TAIL_LINES,
    MAX_TEXT_CHARACTERS,
    MAX_VERSIONS,
    MAX_WHOLE,
    RUN_ID_DIGITS,
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
    Previous,
    Refused,
    Run,
    Running,
    State,
    Status,
    Stop,
    Stopping,
    Survivors,
    Unknown,
    Watch,
    is_run_id,
)
from pki.frozen import fields

_T = TypeVar("_T")


def encode(message: Message) -> bytes:
    """Give the line, newline included, at most `MAX_MESSAGE_BYTES`.

    Text that is no Unicode (a path with odd bytes) is escaped; a service with such text cannot be made.
    Raises `MessageError` for a value that a peer would have to refuse.
    """
    plain: dict[str, object] = {"type": message.type_name}
    for field in fields(message):
        plain[field.name] = _plain(getattr(message, field.name))
    if isinstance(message, Run | Attach):
        plain["instance"] = message.service.instance
    _read(message.type_name, plain)
    line = _ENCODER.encode(plain).encode("utf-8") + b"\n"
    if len(line) > MAX_MESSAGE_BYTES:
        raise MessageError(f"a {message.type_name} of {len(line)} bytes: a message holds at most {MAX_MESSAGE_BYTES}")
    return line


def decode(line: bytes) -> Message | Unknown:
    """Read one line, with or without its newline.

    Raises `MessageError` for everything that is not a message: not UTF-8, not JSON, nested too deep, not an object, a
    field missing, of the wrong type or out of bounds.
    """
    try:
        return _decode(line)
    except RecursionError as error:
        raise MessageError("a message that is nested too deep") from error


def _decode(line: bytes) -> Message | Unknown:
    try:
        value = _read_json(line)
    except ValueError as error:
        raise MessageError(f"a message that is not JSON in UTF-8: {str(error)[:200].lower()}") from error
    if not isinstance(value, dict):
        raise MessageError(f"a message must be an object, not {type(value).__name__}")
    type_name = value.get("type")
    if not isinstance(type_name, str):
        raise MessageError("a message must have a type, which is a text")
    if type_name not in _READERS:
        return Unknown(_clean(type_name)[:MAX_NAME_CHARACTERS], _sequence_number(value))
    return _read(type_name, value)


def _read_json(line: bytes) -> object:
    """Do what `JSONDecoder.decode` does, which looks for white space by two regular expressions."""
    text = line.decode("utf-8").strip(" \t\r\n")
    value, end = _DECODER.raw_decode(text)
    if end != len(text):
        raise ValueError(f"more after character {end}")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
"""Made once: the functions of `json` would make one of each for every message."""


def _sequence_number(value: dict[str, object]) -> int | None:
    try:
        return _Fields("unknown", value).whole("seq", 1)
    except MessageError:
        return None


def _read(type_name: str, value: dict[str, object]) -> Message:
    return _READERS[type_name](_Fields(type_name, value))


def _plain(value: object) -> object:
    """Turn a field's value into JSON values."""
    match value:
        case str():
            return _clean(value)
        case Service(form="line"):
            return {"form": "line", "line": value.words[0]}
        case Service():
            return {"form": "vector", "argv": list(value.words)}
        case outcomes.Exited() | outcomes.Signaled() | outcomes.Lost():
            return {name: _plain(part) for name, part in outcomes.to_json(value).items()}
        case tuple():
            return [_plain(part) for part in value]
        case Previous():
            return {"run": value.run, "outcome": _plain(value.outcome)}
        case _:
            return value


def _clean(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class _Fields:
    """The fields of one object, each read by what it has to be. All methods raise `MessageError`."""

    def __init__(self, type_name: str, values: dict[str, object]) -> None:
        self._type_name = type_name
        self._values = values

    def _wrong(self, name: str, expected: str) -> MessageError:
        return MessageError(f"{self._type_name}: {name} must be {expected}, not {self._values.get(name)!r:.100}")

    def optional(self, name: str, read: Callable[[str], _T]) -> _T | None:
        """Read the field, or None where it is absent or null."""
        return None if self._values.get(name) is None else read(name)

    def whole(self, name: str, minimum: int = 0, maximum: int = MAX_WHOLE) -> int:
        found = self._values.get(name)
        if isinstance(found, int) and not isinstance(found, bool) and minimum <= found <= maximum:
            return found
        raise self._wrong(name, f"a whole number from {minimum} to {maximum}")

    def sequence(self, name: str) -> int:
        return self.whole(name, 1)

    def flag(self, name: str) -> bool:
        found = self._values.get(name)
        if isinstance(found, bool):
            return found
        raise self._wrong(name, "true or false")

    def number(self, name: str) -> float:
        found = self._values.get(name)
        if isinstance(found, int | float) and not isinstance(found, bool) and abs(found) <= MAX_WHOLE:
            return float(found)
        raise self._wrong(name, "a finite number")

    def seconds(self, name: str) -> float:
        found = self.number(name)
        if 0 <= found <= MAX_SECONDS:
            return found
        raise self._wrong(name, f"seconds from 0 to {MAX_SECONDS:.0f}")

    def text(self, name: str, maximum: int = MAX_TEXT_CHARACTERS) -> str:
        found = self._values.get(name)
        if isinstance(found, str) and len(found) <= maximum:
            return found
        raise self._wrong(name, f"a text of at most {maximum} characters")

    def name(self, name: str) -> str:
        return self.text(name, MAX_NAME_CHARACTERS)

    def run_id(self, name: str) -> str:
        found = self.text(name)
        if is_run_id(found):
            return found
        raise self._wrong(name, f"{RUN_ID_DIGITS} lowercase hexadecimal digits")

    def state(self, name: str) -> State:
        found = self.text(name)
        if found in ("starting", "running", "stopping"):
            return cast("State", found)
        raise self._wrong(name, "starting, running or stopping")

    def survivors(self, name: str) -> Survivors:
        found = self.text(name)
        if found in ("leave", "stop"):
            return cast("Survivors", found)
        raise self._wrong(name, "leave or stop")

    def versions(self, name: str) -> tuple[int, ...]:
        found = self._values.get(name)
        if isinstance(found, list | tuple) and len(found) <= MAX_VERSIONS:
            parts = [_Fields(self._type_name, {name: part}) for part in found]
            return tuple(part.whole(name, 1) for part in parts)
        raise self._wrong(name, f"a list of at most {MAX_VERSIONS} whole numbers")

    def lines(self, name: str) -> tuple[str, ...]:
        found = self._values.get(name)
        if isinstance(found, list) and len(found) <= MAX_TAIL_LINES:
            return tuple(_Fields(self._type_name, {name: part}).text(name) for part in found)
        raise self._wrong(name, f"a list of at most {MAX_TAIL_LINES} texts")

    def form(self, name: str) -> Form:
        found = self.text(name)
        if found in ("line", "vector"):
            return cast("Form", found)
        raise self._wrong(name, "line or vector")

    def word(self, name: str) -> str:
        return self.text(name, MAX_MESSAGE_BYTES)

    def words(self, name: str) -> tuple[str, ...]:
        found = self._values.get(name)
        if isinstance(found, list):
            return tuple(_Fields(self._type_name, {name: part}).word(name) for part in found)
        raise self._wrong(name, "a list of texts")

    def object(self, name: str) -> _Fields:
        found = self._values.get(name)
        if isinstance(found, dict):
            return _Fields(f"{self._type_name}.{name}", found)
        raise self._wrong(name, "an object")

    def outcome(self, name: str) -> outcomes.Outcome:
        try:
            found = outcomes.from_json(self._values.get(name))
        except outcomes.OutcomeError as error:
            raise MessageError(f"{self._type_name}: {error}") from error
        account = found.account
        for seconds in (account.ended_at, account.ran_seconds, account.user_seconds, account.system_seconds):
            if seconds is not None and not abs(seconds) <= MAX_WHOLE:
                raise self._wrong(name, "an outcome with finite numbers")
        return found

    def previous(self, name: str) -> Previous:
        inner = self.object(name)
        return Previous(inner.run_id("run"), inner.outcome("outcome"))

    def service(self, name: str) -> Service:
        inner = self.object(name)
        instance = self.optional("instance", self.name)
        form = inner.form("form")
        words = (inner.word("line"),) if form == "line" else inner.words("argv")
        try:
            return Service(form, words, instance)
        except ServiceError as error:
            raise MessageError(f"{self._type_name}: {error}") from error


def _read_running(f: _Fields) -> Running:
    return Running(
        re=f.sequence("re"),
        run=f.run_id("run"),
        state=f.state("state"),
        attached=f.flag("attached"),
        pid=f.optional("pid", f.sequence),
        started_at=f.optional("started_at", f.number),
        ran_seconds=f.optional("ran_seconds", f.number),
        log=f.optional("log", f.text),
        previous=f.optional("previous", f.previous),
    )


def _read_status(f: _Fields) -> Status:
    return Status(
        re=f.sequence("re"),
        run=f.run_id("run"),
        state=f.state("state"),
        pid=f.optional("pid", f.sequence),
        ran_seconds=f.optional("ran_seconds", f.number),
        cpu_seconds=f.optional("cpu_seconds", f.number),
        rss_bytes=f.optional("rss_bytes", f.whole),
    )


def _read_terms(f: _Fields) -> tuple[Survivors, float, int]:
    tail_lines = f.whole("tail_lines", 0, MAX_TAIL_LINES)
    return f.survivors("survivors"), f.seconds("stop_timeout_seconds"), tail_lines


def _read_run(f: _Fields) -> Run:
    return Run(f.sequence("seq"), f.run_id("run"), f.service("service"), *_read_terms(f))


def _read_attach(f: _Fields) -> Attach:
    return Attach(f.sequence("seq"), f.run_id("run"), f.service("service"), *_read_terms(f))


def _read_watch(f: _Fields) -> Watch:
    return Watch(f.sequence("seq"), f.run_id("run"), *_read_terms(f))


def _read_hello(f: _Fields) -> Hello:
    return Hello(
        f.whole("version", 1), f.name("software"), f.name("host"), f.whole("pid", 1), f.seconds("poll_seconds")
    )


def _read_ended(f: _Fields) -> Ended:
    return Ended(
        re=f.optional("re", f.sequence),
        run=f.run_id("run"),
        outcome=f.outcome("outcome"),
        tail=f.optional("tail", f.lines),
        previous=f.optional("previous", f.previous),
    )


_READERS: dict[str, Callable[[_Fields], Message]] = {
    "greeting": lambda f: Greeting(f.versions("versions"), f.name("software"), f.name("host")),
    "hello": _read_hello,
    "run": _read_run,
    "watch": _read_watch,
    "attach": _read_attach,
    "poll": lambda f: Poll(f.sequence("seq")),
    "stop": lambda f: Stop(f.sequence("seq"), f.run_id("run"), f.seconds("timeout_seconds")),
    "ack": lambda f: Ack(f.run_id("run")),
    "bye": lambda _: Bye(),
    "running": _read_running,
    "status": _read_status,
    "stopping": lambda f: Stopping(f.sequence("re"), f.run_id("run")),
    "ended": _read_ended,
    "refused": lambda f: Refused(f.optional("re", f.sequence), f.name("code"), f.text("text")),
    "error": lambda f: Error(f.optional("re", f.sequence), f.text("text")),
    "goodbye": lambda f: Goodbye(f.text("reason")),
}
