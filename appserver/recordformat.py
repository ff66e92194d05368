"""How a run's request and state look on disk: JSON under a checksum, and the two slots of a state.

The format is read by servers newer than the waiter that wrote it: `FORMAT` says which one it is, unknown fields are
ignored. Pure; standard library only: waiters import this.
"""

from __future__ import annotations

import binascii
import contextlib
import json

from appserver.attributes import PLAIN, Attributes, attributes_from_json, attributes_to_json
from appserver.identity import Service, ServiceError
from appserver.outcome import Lost, Outcome, OutcomeError, from_json, to_json
from pki.frozen import dataclass, replace
from pki.typed import Literal, final

FORMAT = 1

SLOT_BYTES = 4096
"""One page: room for a state with the longest texts, every byte of them escaped; written at one go."""

MAX_NAME_BYTES = 600
MAX_REASON_BYTES = 1500
"""Who asked for a stop, and why a start failed, are cut to this, so that a state fits its slot."""

MAX_REQUEST_BYTES = 1024 * 1024
"""A service string fits into a message of 64 KiB; escaped twice it still stays far below this."""

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
"""Made once: `json.dumps` makes an encoder for each call that wants another form than its own."""

Phase = Literal["starting", "running", "ended", "failed"]
Survivors = Literal["leave", "stop"]


class RecordError(Exception):
    """A record cannot be made or written: the disk is full or read-only, the directory gone. Refuse the start, say
    why.
    """


class DamagedRecordError(Exception):
    """A record cannot be read: torn or cut. Its run counts as lost."""


@final
class UnreadableRecordError(DamagedRecordError):
    """The system does not let us read a record: a bad disk, no rights, no descriptors. What is in it may be whole, so
    leave it alone. `number` is the errno.
    """

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


@final
class ForeignRecordError(DamagedRecordError):
    """A record is whole, but of a format that is not ours: a newer server's. Leave it to that one."""


@final
@dataclass(frozen=True, slots=True)
class Request:
    """What is to be run; made by the server before anything is started.

    `argv` and `executable` are what was resolved in this guest; `log_path` is where the output goes, `log_max_bytes`
    its bound. `serial` tells the order in which a server's runs were made, whatever becomes of the clock. `program` is
    the executable with all links resolved, which rules are matched on. `owner` is the fingerprint of the certificate on
    whose behalf it was asked for, `asked_by` says who that was for the log; `user` is the user that a rule names, None
    for the server's own.
    """

    run_id: str
    service: Service
    executable: str
    argv: tuple[str, ...]
    log_path: str
    log_max_bytes: int
    boot: str
    requested_at: float
    serial: int = 0
    program: str | None = None
    owner: str = ""
    asked_by: str = ""
    user: str | None = None
    attributes: Attributes = PLAIN


@final
@dataclass(frozen=True, slots=True)
class StopOrder:
    """A stop that was accepted: who asked, and the moment (system-wide monotonic clock) at which TERM gives way to
    KILL.
    """

    by: str
    kill_at: float


@final
@dataclass(frozen=True, slots=True)
class State:
    """What became of a run.

    `pid` and `start_ticks` identify the main process; `started_monotonic` is of this boot. `failure` is a code of the
    wire protocol and a text, in phase `failed` only. `gone` says that nobody of the tree lives, or is watched, any
    more. `boot` and `service_digest` repeat what follows from the request, for the case that it cannot be read.
    """

    phase: Phase = "starting"
    pid: int | None = None
    start_ticks: int | None = None
    started_at: float | None = None
    started_monotonic: float | None = None
    oom_kills: int = 0
    survivors: Survivors = "leave"
    stop_timeout_seconds: float = 30.0
    stop: StopOrder | None = None
    outcome: Outcome | None = None
    failure: tuple[str, str] | None = None
    gone: bool = False
    boot: str | None = None
    service_digest: str | None = None


def seal(value: dict[str, object]) -> bytes:
    """Make one line of JSON with its checksum."""
    return _sealed(_encode(value).encode("utf-8", "surrogatepass"))


def _sealed(body: bytes) -> bytes:
    return b"%08x %s\n" % (binascii.crc32(body), body)


def sealed_text(data: bytes) -> bytes:
    """Give the JSON of what `seal` made, up to the first newline. Raises DamagedRecordError where it is torn."""
    line, newline, _ = data.partition(b"\n")
    checksum, _, body = line.partition(b" ")
    if not newline or checksum != b"%08x" % binascii.crc32(body):
        raise DamagedRecordError("the record is torn: its checksum does not match")
    return body


def unseal(data: bytes) -> dict[str, object]:
    """Read what `seal` made, up to the first newline. Raises DamagedRecordError."""
    body = sealed_text(data)
    try:
        value = json.loads(body)
    except ValueError as error:
        raise DamagedRecordError(f"the record is not JSON: {error}") from error
    number = value.get("format") if isinstance(value, dict) else None
    if isinstance(number, int) and number > FORMAT:
        raise ForeignRecordError(f"the record has format {number}, of a newer server; this one knows {FORMAT}")
    if number != FORMAT:
        raise DamagedRecordError(f"the record has another format than {FORMAT}")
    return dict(value)


def _cut(text: str, max_bytes: int) -> str:
    """Shorten a text until it takes no more than `max_bytes` in a record, however much of it has to be escaped."""
    while len(json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")) > max_bytes:
        text = text[: len(text) * 3 // 4]
    return text


def _cut_outcome(outcome: Outcome) -> Outcome:
    by = outcome.account.stopped_by
    if by is not None:
        outcome = replace(outcome, account=replace(outcome.account, stopped_by=_cut(by, MAX_NAME_BYTES)))
    return Lost(_cut(outcome.reason, MAX_REASON_BYTES), outcome.account) if isinstance(outcome, Lost) else outcome


def state_text(state: State) -> bytes:
    """Write a state as JSON, as it stands in a slot and as a waiter tells it."""
    return _encode(state_to_json(state)).encode("utf-8", "surrogatepass")


def ended_text(running: bytes, outcome: bytes) -> bytes:
    """Make of what `state_text` gave for a process that executes, without a stop, what it gives when all is over.

    `outcome` is JSON. Two replacements in a text that is there, in place of a state of fourteen fields.
    """
    ended = running.replace(b'"phase":"running"', b'"phase":"ended"', 1).replace(b'"gone":false', b'"gone":true', 1)
    return b'%s,"outcome":%s}' % (ended[:-1], outcome)


def slot(sequence: int, state: State, text: bytes | None = None) -> bytes:
    """Make one slot, of exactly `SLOT_BYTES`. Raises RecordError where the state does not fit.

    `text` is what `state_text` makes of the state, for whoever has it already.
    """
    return sealed_state(sequence, text or state_text(state)).ljust(SLOT_BYTES, b"\0")


def sealed_state(sequence: int, text: bytes) -> bytes:
    """Make what counts of a slot, of what `state_text` made: what lies behind it is not read. Raises RecordError where
    it does not fit.
    """
    sealed = _sealed(b'{"format":%d,"sequence":%d,%s' % (FORMAT, sequence, text[1:]))
    if len(sealed) > SLOT_BYTES:
        raise RecordError(f"a state of {len(sealed)} bytes does not fit into a slot of {SLOT_BYTES}")
    return sealed


def newest(data: bytes) -> tuple[int, State]:
    """Read the newer of the two slots that are whole, and its number. Raises DamagedRecordError where neither is, or
    where one is of a newer server's format, since what the other says may be out of date.
    """
    found: tuple[int, State] | None = None
    foreign: ForeignRecordError | None = None
    for start in (0, SLOT_BYTES):
        with contextlib.suppress(DamagedRecordError):
            try:
                value = unseal(data[start : start + SLOT_BYTES])
            except ForeignRecordError as error:
                foreign = error
            else:
                sequence = value.get("sequence")
                if isinstance(sequence, int) and (found is None or sequence > found[0]):
                    found = (sequence, state_from_json(value))
    if foreign is not None:
        raise foreign
    if found is None:
        raise DamagedRecordError("neither slot of the state is whole")
    return found


def request_to_json(request: Request) -> dict[str, object]:
    """Turn a request into plain JSON values."""
    return {
        "format": FORMAT,
        "run": request.run_id,
        "form": request.service.form,
        "words": request.service.words,
        "instance": request.service.instance,
        "executable": request.executable,
        "argv": request.argv,
        "log": request.log_path,
        "log_max_bytes": request.log_max_bytes,
        "boot": request.boot,
        "requested_at": request.requested_at,
        "serial": request.serial,
        "program": request.program,
        "owner": request.owner,
        "asked_by": request.asked_by,
        "user": request.user,
        "attributes": attributes_to_json(request.attributes),
    }


def request_from_json(value: dict[str, object]) -> Request:
    """Read what `request_to_json` made. Raises DamagedRecordError."""
    match value:
        case {
            "run": str(run_id),
            "form": ("line" | "vector") as form,
            "words": [*words],
            "instance": (str() | None) as instance,
            "executable": str(executable),
            "argv": [*argv],
            "log": str(log_path),
            "log_max_bytes": int(log_max_bytes),
            "boot": str(boot),
            "requested_at": float() | int() as requested_at,
        }:
            try:
                service = Service(form, tuple(map(str, words)), instance)
            except ServiceError as error:
                raise DamagedRecordError(f"the request of run {run_id} names no service: {error}") from error
            serial = value.get("serial")
            return Request(
                run_id=run_id,
                service=service,
                executable=executable,
                argv=tuple(map(str, argv)),
                log_path=log_path,
                log_max_bytes=log_max_bytes,
                boot=boot,
                requested_at=requested_at,
                serial=serial if isinstance(serial, int) else 0,
                program=_text_or_none(value.get("program")),
                owner=str(value.get("owner") or ""),
                asked_by=str(value.get("asked_by") or ""),
                user=_text_or_none(value.get("user")),
                attributes=_attributes(value),
            )
        case _:
            raise DamagedRecordError("the request lacks a field")


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)


def _attributes(value: dict[str, object]) -> Attributes:
    if "attributes" not in value:
        return PLAIN  # made by a release that had none
    try:
        return attributes_from_json(value["attributes"])
    except ValueError as error:
        raise DamagedRecordError(str(error)) from error


def state_to_json(state: State) -> dict[str, object]:
    """Turn a state into plain JSON values; long texts are cut."""
    value: dict[str, object] = {
        "phase": state.phase,
        "pid": state.pid,
        "start_ticks": state.start_ticks,
        "started_at": state.started_at,
        "started_monotonic": state.started_monotonic,
        "oom_kills": state.oom_kills,
        "survivors": state.survivors,
        "stop_timeout_seconds": state.stop_timeout_seconds,
        "gone": state.gone,
    }
    if state.boot is not None:
        value["boot"] = state.boot
    if state.service_digest is not None:
        value["service_digest"] = state.service_digest
    if state.stop is not None:
        value["stop"] = {"by": _cut(state.stop.by, MAX_NAME_BYTES), "kill_at": state.stop.kill_at}
    if state.outcome is not None:
        value["outcome"] = to_json(_cut_outcome(state.outcome))
    if state.failure is not None:
        value["failure"] = [state.failure[0], _cut(state.failure[1], MAX_REASON_BYTES)]
    return value


def state_from_json(value: dict[str, object]) -> State:
    """Read what `state_to_json` made. Raises DamagedRecordError."""
    match value:
        case {
            "phase": ("starting" | "running" | "ended" | "failed") as phase,
            "pid": (int() | None) as pid,
            "start_ticks": (int() | None) as start_ticks,
            "started_at": (int() | float() | None) as started_at,
            "started_monotonic": (int() | float() | None) as started_monotonic,
            "oom_kills": int(oom_kills),
            "survivors": ("leave" | "stop") as survivors,
            "stop_timeout_seconds": int() | float() as stop_timeout_seconds,
            "gone": bool(gone),
        }:
            return State(
                phase=phase,
                pid=pid,
                start_ticks=start_ticks,
                started_at=started_at,
                started_monotonic=started_monotonic,
                oom_kills=oom_kills,
                survivors=survivors,
                stop_timeout_seconds=stop_timeout_seconds,
                stop=_stop_from_json(value),
                outcome=_outcome_from_json(value),
                failure=_failure_from_json(value),
                gone=gone,
                boot=_text(value.get("boot")),
                service_digest=_text(value.get("service_digest")),
            )
        case _:
            raise DamagedRecordError("the state lacks a field")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _stop_from_json(value: dict[str, object]) -> StopOrder | None:
    match value.get("stop"):
        case {"by": str(by), "kill_at": int() | float() as kill_at}:
            return StopOrder(by, kill_at)
        case _:
            return None


def _outcome_from_json(value: dict[str, object]) -> Outcome | None:
    if "outcome" not in value:
        return None
    try:
        return from_json(value["outcome"])
    except OutcomeError as error:
        raise DamagedRecordError(str(error)) from error


def _failure_from_json(value: dict[str, object]) -> tuple[str, str] | None:
    match value.get("failure"):
        case [str(code), str(text)]:
            return code, text
        case _:
            return None
