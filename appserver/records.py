"""What is on disk about each run, written so that a crash at any byte leaves it whole.

One directory for each run, named by the run's id, under `STATE_DIR/runs`:

    request     what is to run: written whole before the directory gets its name, never changed
    state       two slots of 4 KiB; what became of it, written by whoever watches the process
    collected   one byte, `1` once a manager has acknowledged the outcome; written by the server
    lock        locked by the waiter for as long as it lives; it is never written
    control     the socket on which the waiter takes orders

Why two slots: a state is written over the older of the two with one `pwrite`, under a sequence number and a checksum. A
reader takes the newest slot that is whole, so a write torn anywhere leaves the state before it. Both slots are written
in full when the directory is made; from then on nothing is allocated, and a full disk cannot lose an outcome (a fresh
file there failed with ENOSPC). There is no fsync: what was written survives the death of any process, and a reboot
voids the record anyway. A directory appears by a rename and goes by a rename, so that a half-made one is never taken
for a run.

A manager that asked for a run with one id and was attached to another leaves an alias: a symbolic link named by its id
under `STATE_DIR/aliases`, whose target is the run's id.

The format is read by servers newer than the waiter that wrote it: `FORMAT` says which one it is, unknown fields are
ignored. Standard library only: waiters import this.
"""

from __future__ import annotations

import binascii
import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, final

from appserver.fileio import OPEN_FLAGS, read_at, write_at
from appserver.identity import Service, ServiceError
from appserver.outcome import Lost, Outcome, OutcomeError, from_json, to_json

FORMAT = 1
SUBDIRECTORIES = ("runs", "aliases")
"""Of the state directory."""

LAUNCHER_LOCK = "launcher.lock"
"""In the state directory: locked by the launcher for as long as it lives; it holds its pid and start time."""

SLOT_BYTES = 4096
"""One page: room for a state with the longest texts, every byte of them escaped; written at one go."""

MAX_NAME_BYTES = 600
MAX_REASON_BYTES = 1500
"""Who asked for a stop, and why a start failed, are cut to this, so that a state fits its slot."""

MAX_REQUEST_BYTES = 1024 * 1024
"""A service string fits into a message of 64 KiB; escaped twice it still stays far below this."""

Phase = Literal["starting", "running", "ended", "failed"]
Survivors = Literal["leave", "stop"]


class RecordError(Exception):
    """A record cannot be made or written: the disk is full or read-only, the directory gone. Refuse the start, say
    why.
    """


class DamagedRecordError(Exception):
    """A record cannot be read: torn, cut or foreign. Its run counts as lost."""


@final
@dataclass(frozen=True, slots=True)
class Request:
    """What is to be run; made by the server before anything is started.

    `argv` and `executable` are what was resolved in this guest; `log_path` is where the output goes, `log_max_bytes`
    its bound.
    """

    run_id: str
    service: Service
    executable: str
    argv: tuple[str, ...]
    log_path: str
    log_max_bytes: int
    boot: str
    requested_at: float


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
    more.
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


@final
class RunRecord:
    """The directory of one run. Cheap to make: it holds a path, nothing is open."""

    __slots__ = ("path", "run_id")

    def __init__(self, path: str) -> None:
        self.path = path
        self.run_id = os.path.basename(path)

    def file(self, name: str) -> str:
        """Give the path of one of the files of this run."""
        return os.path.join(self.path, name)

    def read_request(self) -> Request:
        """Read what is to be run. Raises DamagedRecordError."""
        return _request_from_json(_unseal(_read(self.file("request"), MAX_REQUEST_BYTES)))

    def read_state(self) -> State:
        """Read the newest state that is whole. Raises DamagedRecordError where neither slot is."""
        return _newest(_read(self.file("state"), 2 * SLOT_BYTES))[1]

    def is_collected(self) -> bool:
        """Tell whether a manager has acknowledged the outcome; a record that cannot be read says no."""
        try:
            return _read(self.file("collected"), 1) == b"1"
        except DamagedRecordError:
            return False

    def mark_collected(self) -> None:
        """Note that a manager has the outcome. Raises RecordError."""
        with _record_errors(self.path), open(self.file("collected"), "r+b", buffering=0) as file:
            file.write(b"1")


@final
class StateFile:
    """The writer of one run's state. There is one at a time: the waiter, or the server where no waiter lives."""

    def __init__(self, record: RunRecord) -> None:
        """Open the state for writing. Raises RecordError, DamagedRecordError."""
        with _record_errors(record.path):
            self._fd = os.open(record.file("state"), os.O_RDWR | OPEN_FLAGS)
        try:
            self._sequence, self.state = _newest(read_at(self._fd, 2 * SLOT_BYTES, 0))
        except BaseException:
            os.close(self._fd)
            raise

    def write(self, state: State) -> None:
        """Write `state` over the older slot. Raises RecordError; the state before it is then still whole."""
        sequence = self._sequence + 1
        with _record_errors("the state of a run"):
            if write_at(self._fd, _slot(sequence, state), (sequence % 2) * SLOT_BYTES) != SLOT_BYTES:
                raise OSError("the slot was written in part only")
        self._sequence = sequence
        self.state = state

    def close(self) -> None:
        """Close the file; what was written stays."""
        os.close(self._fd)


@final
class Records:
    """All runs of one state directory."""

    def __init__(self, state_dir: str) -> None:
        self.state_dir = state_dir
        self._runs, self._aliases = (os.path.join(state_dir, name) for name in SUBDIRECTORIES)

    def prepare(self) -> None:
        """Make the directories and throw away what a crash left half made. Raises RecordError."""
        with _record_errors(self.state_dir):
            for path in (self._runs, self._aliases):
                os.makedirs(path, mode=0o700, exist_ok=True)
            for name in os.listdir(self._runs):
                if name.startswith("."):
                    shutil.rmtree(os.path.join(self._runs, name), ignore_errors=True)

    def get(self, run_id: str) -> RunRecord:
        """Give the record of a run, whether it exists or not."""
        return RunRecord(os.path.join(self._runs, run_id))

    def create(self, request: Request, state: State) -> RunRecord:
        """Record a run before it is started, with all the room that it will ever need. Raises RecordError, leaves
        nothing then.
        """
        making = os.path.join(self._runs, f".new-{request.run_id}")
        with _record_errors(self._runs):
            try:
                os.mkdir(making, 0o700)
                _write(os.path.join(making, "request"), _seal(_request_to_json(request)))
                _write(os.path.join(making, "state"), _slot(0, state) + _slot(1, state))
                _write(os.path.join(making, "collected"), b"0")
                _write(os.path.join(making, "lock"), b"")
                os.rename(making, os.path.join(self._runs, request.run_id))
            except BaseException:
                shutil.rmtree(making, ignore_errors=True)
                raise
        return self.get(request.run_id)

    def all(self) -> list[RunRecord]:
        """List the records that exist, in the order of their making. Raises RecordError."""
        with _record_errors(self._runs):
            found = [entry for entry in os.scandir(self._runs) if not entry.name.startswith(".") and entry.is_dir()]
            found.sort(key=lambda entry: entry.stat().st_mtime_ns)
        return [RunRecord(entry.path) for entry in found]

    def remove(self, run_id: str) -> None:
        """Forget a run and its aliases; one that does not exist is fine. What cannot be removed is left behind."""
        going = os.path.join(self._runs, f".old-{run_id}")
        with contextlib.suppress(OSError):
            os.rename(os.path.join(self._runs, run_id), going)
        shutil.rmtree(going, ignore_errors=True)
        for alias, target in self.aliases():
            if target == run_id:
                self.remove_alias(alias)

    def add_alias(self, alias: str, run_id: str) -> None:
        """Note that asking for run `alias` led to run `run_id`. Raises RecordError; one that exists is fine."""
        with _record_errors(self._aliases), contextlib.suppress(FileExistsError):
            os.symlink(run_id, os.path.join(self._aliases, alias))

    def remove_alias(self, alias: str) -> None:
        """Forget an alias; one that does not exist is fine."""
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._aliases, alias))

    def aliases(self) -> Iterator[tuple[str, str]]:
        """Give the aliases and the runs that they mean."""
        with contextlib.suppress(OSError):
            for alias in os.listdir(self._aliases):
                with contextlib.suppress(OSError):
                    yield alias, os.readlink(os.path.join(self._aliases, alias))


@contextlib.contextmanager
def _record_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordError(f"{error.filename or path}: {error.strerror or error}") from error


def _read(path: str, limit: int) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(limit) or b""
    except OSError as error:
        raise DamagedRecordError(f"{path}: {error.strerror}") from error


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN_FLAGS, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)


def _seal(value: dict[str, object]) -> bytes:
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    return b"%08x %s\n" % (binascii.crc32(body), body)


def _unseal(data: bytes) -> dict[str, object]:
    line, newline, _ = data.partition(b"\n")
    checksum, _, body = line.partition(b" ")
    if not newline or checksum != b"%08x" % binascii.crc32(body):
        raise DamagedRecordError("the record is torn: its checksum does not match")
    try:
        value = json.loads(body)
    except ValueError as error:
        raise DamagedRecordError(f"the record is not JSON: {error}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise DamagedRecordError(f"the record has another format than {FORMAT}")
    return value


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


def _slot(sequence: int, state: State) -> bytes:
    sealed = _seal({"format": FORMAT, "sequence": sequence} | _state_to_json(state))
    if len(sealed) > SLOT_BYTES:
        raise RecordError(f"a state of {len(sealed)} bytes does not fit into a slot of {SLOT_BYTES}")
    return sealed.ljust(SLOT_BYTES, b"\0")


def _newest(data: bytes) -> tuple[int, State]:
    found: tuple[int, State] | None = None
    for start in (0, SLOT_BYTES):
        with contextlib.suppress(DamagedRecordError):
            value = _unseal(data[start : start + SLOT_BYTES])
            sequence = value.get("sequence")
            if isinstance(sequence, int) and (found is None or sequence > found[0]):
                found = (sequence, _state_from_json(value))
    if found is None:
        raise DamagedRecordError("neither slot of the state is whole")
    return found


def _request_to_json(request: Request) -> dict[str, object]:
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
    }


def _request_from_json(value: dict[str, object]) -> Request:
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
            vector = tuple(map(str, argv))
            return Request(run_id, service, executable, vector, log_path, log_max_bytes, boot, requested_at)
        case _:
            raise DamagedRecordError("the request lacks a field")


def _state_to_json(state: State) -> dict[str, object]:
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
    if state.stop is not None:
        value["stop"] = {"by": _cut(state.stop.by, MAX_NAME_BYTES), "kill_at": state.stop.kill_at}
    if state.outcome is not None:
        value["outcome"] = to_json(_cut_outcome(state.outcome))
    if state.failure is not None:
        value["failure"] = [state.failure[0], _cut(state.failure[1], MAX_REASON_BYTES)]
    return value


def _state_from_json(value: dict[str, object]) -> State:
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
            )
        case _:
            raise DamagedRecordError("the state lacks a field")


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
