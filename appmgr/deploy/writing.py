"""Changes reach the disk whole or not at all: a backup first, then a new file that takes the old one's place.

The new file has mode, owner and extended attributes (so also access lists and labels) of the old one. A symbolic
link stays one: what it leads to is replaced. Of two files (a legacy package) both are changed or none: where the
second fails, the first gets its old bytes back. Meanwhile signals wait, and so do others who run this program on the
same directory.

The backup lies in `.backup` beside the file, where the old script put what it replaced.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Final

from appmgr.deploy.errors import DeployError
from appmgr.deploy.packagefile import Change, read_file, reason

BACKUP_DIRECTORY: Final = ".backup"
BACKUP_DIRECTORY_MODE: Final = 0o700

MAX_BACKUPS_A_SECOND: Final = 100
"""A number tells apart those of one second."""


def write_changes(changes: Sequence[Change], now_unix: float) -> list[str]:
    """Carry out all changes or none, and give the paths of the backups.

    Raises `DeployError`; then every file is as it was, save that a backup may have been made.
    """
    with _signals_waiting(), contextlib.ExitStack() as locks:
        paths = [os.path.realpath(change.path) for change in changes]
        for directory in sorted({os.path.dirname(path) for path in paths}):
            locks.enter_context(_locked(directory))
        for change in changes:
            if read_file(change.path, "file") != change.before:
                raise DeployError(f"{change.path!r} was changed by somebody else in the meantime: run this again")
        backups = [_back_up(path, change.before, now_unix) for path, change in zip(paths, changes, strict=True)]
        done: list[tuple[str, Change]] = []
        try:
            for path, change in zip(paths, changes, strict=True):
                _replace(path, change.after)
                done.append((path, change))
        except DeployError:
            for path, change in done:
                _replace(path, change.before)
            raise
    return backups


@contextlib.contextmanager
def _signals_waiting() -> Iterator[None]:
    """Have the signals that end this program wait: half of a change would be worse than a late end."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Be the only one of this program to write in a directory. Raises `DeployError` where somebody is at it."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise DeployError(f"cannot open the directory {directory!r}: {reason(error)}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise DeployError(f"another cmdeployvpkg is writing in {directory!r}: run this again") from error
    finally:
        os.close(descriptor)


def _back_up(path: str, data: bytes, now_unix: float) -> str:
    """Keep the old bytes under a new name, private to the owner of the file. Raises `DeployError`."""
    directory = os.path.join(os.path.dirname(path), BACKUP_DIRECTORY)
    stamp = time.strftime("%Y%m%dT%H%M%S", time.localtime(now_unix))
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, BACKUP_DIRECTORY_MODE)
        for number in range(MAX_BACKUPS_A_SECOND):
            name = f"{os.path.basename(path)}.{stamp}{f'-{number}' if number else ''}"
            with contextlib.suppress(FileExistsError):
                _write_new(os.path.join(directory, name), data, like=path)
                return os.path.join(directory, name)
    except OSError as error:
        raise DeployError(f"cannot make a backup in {directory!r}: {reason(error)}") from error
    raise DeployError(f"there are {MAX_BACKUPS_A_SECOND} backups of this second in {directory!r}: run this again")


def _replace(path: str, data: bytes) -> None:
    draft = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.urandom(8).hex()}.new")
    try:
        try:
            _write_new(draft, data, like=path)
            os.replace(draft, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)
    except OSError as error:
        raise DeployError(f"cannot write {path!r}: {reason(error)}") from error


def _write_new(path: str, data: bytes, *, like: str) -> None:
    """Write a file that must not exist yet, with all that is not content taken from another; nothing half stays."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if sys.platform != "win32":
                _take_over(descriptor, like)
            os.fsync(descriptor)
    except BaseException:
        os.unlink(path)
        raise


def _take_over(descriptor: int, like: str) -> None:
    if sys.platform == "win32":
        return  # files inherit from their directory there
    found = os.stat(like)
    own = os.fstat(descriptor)
    if (found.st_uid, found.st_gid) != (own.st_uid, own.st_gid):
        os.fchown(descriptor, found.st_uid, found.st_gid)
    os.fchmod(descriptor, found.st_mode & 0o7777)
    if sys.platform == "linux":
        for name in os.listxattr(like):
            with contextlib.suppress(OSError):  # a label that only the kernel may set, or another file system
                os.setxattr(descriptor, name, os.getxattr(like, name))
