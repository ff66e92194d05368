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

What stands in the files is the business of `recordformat`. Standard library only: waiters import this.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import final

from appserver.fileio import OPEN_FLAGS, read_at, write_at
from appserver.recordformat import (
    MAX_REQUEST_BYTES,
    SLOT_BYTES,
    DamagedRecordError,
    RecordError,
    Request,
    State,
    newest,
    request_from_json,
    request_to_json,
    seal,
    slot,
    unseal,
)

SUBDIRECTORIES = ("runs", "aliases")
"""Of the state directory."""

LAUNCHER_LOCK = "launcher.lock"
"""In the state directory: locked by the launcher for as long as it lives; it holds its pid and start time."""


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
        return request_from_json(unseal(_read(self.file("request"), MAX_REQUEST_BYTES)))

    def read_state(self) -> State:
        """Read the newest state that is whole. Raises DamagedRecordError where neither slot is."""
        return newest(_read(self.file("state"), 2 * SLOT_BYTES))[1]

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
            self._sequence, self.state = newest(read_at(self._fd, 2 * SLOT_BYTES, 0))
        except BaseException:
            os.close(self._fd)
            raise

    def write(self, state: State) -> None:
        """Write `state` over the older slot. Raises RecordError; the state before it is then still whole."""
        sequence = self._sequence + 1
        with _record_errors("the state of a run"):
            if write_at(self._fd, slot(sequence, state), (sequence % 2) * SLOT_BYTES) != SLOT_BYTES:
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
                _write(os.path.join(making, "request"), seal(request_to_json(request)))
                _write(os.path.join(making, "state"), slot(0, state) + slot(1, state))
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
