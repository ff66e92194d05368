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
import errno
import os
import sys
from collections.abc import Iterator

from appserver.fileio import OPEN_FLAGS, make_directory, read_at, write_at
from appserver.recordformat import (
    MAX_REQUEST_BYTES,
    SLOT_BYTES,
    DamagedRecordError,
    RecordError,
    Request,
    State,
    UnreadableRecordError,
    newest,
    request_from_json,
    request_to_json,
    seal,
    sealed_text,
    slot,
    unseal,
)
from pki.frozen import replace
from pki.typed import final

SUBDIRECTORIES = ("runs", "aliases")
"""Of the state directory."""

LAUNCHER_LOCK = "launcher.lock"
"""In the state directory: locked by the launcher for as long as it lives; it holds its pid and start time."""

_MAKING, _GOING = ".new-", ".old-"
"""How the name of a directory begins that is no run yet, or no more."""

_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})
"""Errors that say that a file of a record is not there: nothing is left that could be read later."""

_READ_FLAGS = os.O_RDONLY | OPEN_FLAGS | getattr(os, "O_NONBLOCK", 0)
"""A pipe in the place of a file must not hold up the server."""


@final
class RunRecord:
    """The directory of one run. Cheap to make: it holds a path, nothing is open."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def run_id(self) -> str:
        """The run's id, which is the directory's name."""
        return os.path.basename(self.path)

    def file(self, name: str) -> str:
        """Give the path of one of the files of this run."""
        return f"{self.path}/{name}"  # joined at no cost: the launcher does this beside what its waiters share

    def read_request(self) -> Request:
        """Read what is to be run. Raises DamagedRecordError, UnreadableRecordError, ForeignRecordError."""
        return request_from_json(unseal(_read(self.file("request"), MAX_REQUEST_BYTES)))

    def read_request_text(self) -> bytes:
        """Read what is to be run as the JSON that it is. Raises DamagedRecordError, UnreadableRecordError."""
        return sealed_text(_read(self.file("request"), MAX_REQUEST_BYTES))

    def read_state(self) -> State:
        """Read the newest state that is whole. Raises DamagedRecordError where neither slot is,
        UnreadableRecordError, ForeignRecordError.
        """
        return newest(_read(self.file("state"), 2 * SLOT_BYTES))[1]

    def is_collected(self) -> bool:
        """Tell whether a manager has acknowledged the outcome; a record that cannot be read says no."""
        try:
            return _read(self.file("collected"), 1) == b"1"
        except DamagedRecordError:
            return False

    def mark_collected(self) -> None:
        """Note that a manager has the outcome. Raises RecordError."""
        with _record_errors(self.path):
            fd = os.open(self.file("collected"), os.O_WRONLY | OPEN_FLAGS)
            try:
                write_at(fd, b"1", 0)
            finally:
                os.close(fd)

    def mend_request(self, request: Request) -> None:
        """Write a request anew, as whoever still knows it tells. Raises RecordError, leaves the old one then."""
        new = self.file("request.new")
        with _record_errors(self.path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new)
            _write(new, seal(request_to_json(request)))
            os.replace(new, self.file("request"))


@final
class StateFile:
    """The writer of one run's state. There is one at a time: the waiter, or the server where no waiter lives."""

    def __init__(self, record: RunRecord) -> None:
        """Open the state for writing. Raises RecordError, DamagedRecordError."""
        with _record_errors(record.path):
            self._fd = os.open(record.file("state"), os.O_RDWR | OPEN_FLAGS)
        try:
            with _record_errors(record.path):
                data = read_at(self._fd, 2 * SLOT_BYTES, 0)
            self.sequence, self.state = newest(data)
        except BaseException:
            os.close(self._fd)
            raise

    @classmethod
    def take_over(cls, fd: int, sequence: int, state: State) -> StateFile:
        """Go on where another writer has ended, who tells what it wrote last; the file is open."""
        file = cls.__new__(cls)
        file._fd, file.sequence, file.state = fd, sequence, state  # noqa: SLF001  (it is one of us)
        return file

    def write(self, state: State, text: bytes | None = None) -> None:
        """Write `state` over the older slot. Raises RecordError; the state before it is then still whole.

        `text` is what `state_text` makes of the state, for whoever has it already.
        """
        sequence = self.sequence + 1
        write_slot(self._fd, sequence, slot(sequence, state, text))
        self.sequence = sequence
        self.state = state

    def close(self) -> None:
        """Close the file; what was written stays."""
        os.close(self._fd)


def write_slot(fd: int, sequence: int, data: bytes) -> None:
    """Write the slot of this number, or what counts of it, into the state that is open as `fd`. Raises RecordError."""
    try:
        written = write_at(fd, data, (sequence % 2) * SLOT_BYTES)
    except OSError as error:
        raise RecordError(f"the state of a run: {error.strerror or error}") from error
    if written != len(data):
        raise RecordError("the state of a run: the slot was written in part only")


@final
class Records:
    """All runs of one state directory."""

    def __init__(self, state_dir: str) -> None:
        self.state_dir = state_dir
        self._runs, self._aliases = (os.path.join(state_dir, name) for name in SUBDIRECTORIES)
        self._alias_targets: dict[str, str] | None = None
        """What is in the directory of aliases, once it has been looked at: nobody else changes it."""
        self._aliases_of: dict[str, set[str]] = {}

    def prepare(self) -> None:
        """Make the directories and throw away what a crash left half made. Raises RecordError."""
        with _record_errors(self.state_dir):
            for path in (self._runs, self._aliases):
                make_directory(path, 0o700)
            for name in os.listdir(self._runs):
                if name.startswith((_MAKING, _GOING)):
                    _clear_away(os.path.join(self._runs, name))

    def get(self, run_id: str) -> RunRecord:
        """Give the record of a run, whether it exists or not."""
        return RunRecord(os.path.join(self._runs, run_id))

    def create(self, request: Request, state: State) -> RunRecord:
        """Record a run before it is started, with all the room that it will ever need. Raises RecordError, leaves
        nothing then.
        """
        making = os.path.join(self._runs, _MAKING + request.run_id)
        with _record_errors(self._runs):
            _clear_away(making)  # a failed attempt that could not be cleared away
            try:
                os.mkdir(making, 0o700)
                _write(os.path.join(making, "request"), seal(request_to_json(request)))
                _write(os.path.join(making, "state"), slot(0, state) + slot(1, state))
                _write(os.path.join(making, "collected"), b"0")
                _write(os.path.join(making, "lock"), b"")
                os.rename(making, os.path.join(self._runs, request.run_id))
            except BaseException:
                _clear_away(making)
                raise
        return self.get(request.run_id)

    def all(self) -> list[RunRecord]:
        """List the records that exist, in no order. Raises RecordError."""
        with _record_errors(self._runs):
            return [RunRecord(entry.path) for entry in self._entries() if _is_our_directory(entry)]

    def junk(self) -> list[str]:
        """List what lies among the runs and is none: files, links, what is somebody else's. Raises RecordError."""
        with _record_errors(self._runs):
            return [entry.path for entry in self._entries() if not _is_our_directory(entry)]

    def _entries(self) -> list[os.DirEntry[str]]:
        with os.scandir(self._runs) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]

    def remove(self, run_id: str) -> None:
        """Forget a run and its aliases; one that does not exist is fine.

        Raises RecordError where the record has to stay. One that was not started is void then, if that can be written
        at least: the next server must not start it.
        """
        going = os.path.join(self._runs, _GOING + run_id)
        _clear_away(going)  # of a run with this id that could not be removed whole
        try:
            with _record_errors(self._runs), contextlib.suppress(FileNotFoundError):
                os.rename(os.path.join(self._runs, run_id), going)
        except RecordError:
            _make_void(self.get(run_id))
            raise
        _clear_away(going)  # what stays is thrown away by the next `prepare`
        for alias in list(self._known_aliases_of(run_id)):
            self.remove_alias(alias)

    def add_alias(self, alias: str, run_id: str) -> None:
        """Note that asking for run `alias` led to run `run_id`. Raises RecordError; one that exists is fine."""
        with _record_errors(self._aliases), contextlib.suppress(FileExistsError):
            os.symlink(run_id, os.path.join(self._aliases, alias))
        if self._alias_targets is not None:
            self._note_alias(alias, run_id)

    def remove_alias(self, alias: str) -> None:
        """Forget an alias; one that does not exist is fine."""
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._aliases, alias))
        target = (self._alias_targets or {}).pop(alias, None)
        if target is not None:
            self._aliases_of[target].discard(alias)
            if not self._aliases_of[target]:
                del self._aliases_of[target]

    def aliases(self) -> list[tuple[str, str]]:
        """List the aliases and the runs that they mean; what is no link is left out. Raises RecordError."""
        if self._alias_targets is None:
            found: dict[str, str] = {}
            with _record_errors(self._aliases):
                for alias in os.listdir(self._aliases):
                    with contextlib.suppress(FileNotFoundError):
                        target = _read_alias(os.path.join(self._aliases, alias))
                        if target is not None:
                            found[alias] = target
            self._alias_targets = {}
            for alias, target in found.items():
                self._note_alias(alias, target)
        return list(self._alias_targets.items())

    def _note_alias(self, alias: str, run_id: str) -> None:
        assert self._alias_targets is not None
        if self._alias_targets.setdefault(alias, run_id) == run_id:
            self._aliases_of.setdefault(run_id, set()).add(alias)

    def _known_aliases_of(self, run_id: str) -> set[str]:
        with contextlib.suppress(RecordError):
            self.aliases()
        return self._aliases_of.get(run_id, set())


def _clear_away(path: str) -> None:
    """Remove a directory with all that is in it, as far as that can be done; links are not followed.

    Nobody else can write there, so the care that `shutil.rmtree` takes against a directory that becomes a link
    meanwhile is not needed; nor are the formats of archives that come with it.
    """
    with contextlib.suppress(OSError):
        if os.path.islink(path):
            return
        with os.scandir(path) as entries:
            inside = list(entries)
        for entry in inside:
            if entry.is_dir(follow_symlinks=False):
                _clear_away(entry.path)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
        os.rmdir(path)


def _is_our_directory(entry: os.DirEntry[str]) -> bool:
    # A link may lead anywhere, and what somebody else could have written must not be started.
    if not entry.is_dir(follow_symlinks=False):
        return False
    return sys.platform == "win32" or entry.stat(follow_symlinks=False).st_uid == os.geteuid()


def _read_alias(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return None  # a file or a directory that somebody has put there
        raise


def _make_void(record: RunRecord) -> None:
    with contextlib.suppress(RecordError, DamagedRecordError):
        file = StateFile(record)
        try:
            if file.state.phase == "starting" and file.state.pid is None:
                file.write(replace(file.state, phase="failed", gone=True))
        finally:
            file.close()


@contextlib.contextmanager
def _record_errors(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordError(f"{error.filename or path}: {error.strerror or error}") from error


def _read(path: str, limit: int) -> bytes:
    try:
        fd = os.open(path, _READ_FLAGS)
        try:
            return read_at(fd, limit, 0)
        finally:
            os.close(fd)
    except OSError as error:
        text = f"{path}: {error.strerror}"
        if error.errno in _MISSING or error.errno == errno.ESPIPE:  # a pipe in its place
            raise DamagedRecordError(text) from error
        raise UnreadableRecordError(text, error.errno or 0) from error


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | OPEN_FLAGS, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)
