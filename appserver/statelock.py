"""One server for each state directory: the lock that the second one finds taken."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator

from appserver.fileio import OPEN_FLAGS, make_directory, read_at
from appserver.records import SUBDIRECTORIES

LOCK_NAME = "server.lock"
_LOCK_AT_BYTE = 1 << 20
"""On Windows a lock keeps others from reading; it is taken far behind the pid that they want to read."""


class StateDirError(Exception):
    """The state directory cannot be used: it belongs to another server, or cannot be written. Mend that, or name
    another.
    """


@contextlib.contextmanager
def locked_state_dir(path: str) -> Iterator[None]:
    """Make the directory where it is missing, and hold its lock. Raises StateDirError.

    The lock is the open file's: it goes with this process, however that ends, and no child inherits it.
    """
    try:
        make_directory(path, 0o700)
        _require_ours(path)
        lock_path = os.path.join(path, LOCK_NAME)
        fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | OPEN_FLAGS, 0o600)
    except OSError as error:
        raise StateDirError(
            f"the state directory {path} cannot be used: {error.strerror} (errno:{error.errno})"
        ) from error
    try:
        _take_lock(fd, path)
        with contextlib.suppress(OSError):  # a full disk: the pid is a help for people, the lock is what counts
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(fd)


def _take_lock(fd: int, path: str) -> None:
    try:
        if _try_lock(fd):
            return
        owner = read_at(fd, 20, 0).decode("ascii", "replace").strip()
    except OSError as error:
        raise StateDirError(
            f"the state directory {path} cannot be locked: {error.strerror} (errno:{error.errno})"
        ) from error
    by = f" with pid {owner}" if owner else ""
    raise StateDirError(f"the state directory {path} is used by another server{by}: end that one, or name another")


def make_log_dir(path: str) -> None:
    """Make the directory of the logs where it is missing. Raises StateDirError."""
    try:
        make_directory(path, 0o750)
    except OSError as error:
        raise StateDirError(
            f"the log directory {path} cannot be made: {error.strerror} (errno:{error.errno})"
        ) from error


def check_state_dir(path: str) -> None:
    """See whether the directory, or where it is missing the nearest one above it, can be written. Raises
    StateDirError.
    """
    if os.path.isdir(path):
        _require_ours(path)
    nearest = path
    while not os.path.exists(nearest) and os.path.dirname(nearest) != nearest:
        nearest = os.path.dirname(nearest)
    if not os.path.isdir(nearest):
        raise StateDirError(f"{path} cannot be used: {nearest} is not a directory")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise StateDirError(f"{path} cannot be used: {nearest} cannot be written")


def _require_ours(path: str) -> None:
    """Refuse a directory in which anybody could plant a record: what is recorded there is started.

    One with the sticky bit is fine, as long as what we keep in it is ours.
    """
    if sys.platform == "win32":
        return
    for directory in (path, *(os.path.join(path, name) for name in SUBDIRECTORIES)):
        if not os.path.lexists(directory):
            continue
        status = os.lstat(directory) if directory != path else os.stat(directory)
        if status.st_uid != os.geteuid():
            raise StateDirError(f"{directory} belongs to user {status.st_uid}: it must be the server's own")
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            mode = stat.S_IMODE(status.st_mode)
            raise StateDirError(f"{directory} can be written by everybody (mode {mode:04o}): chmod o-w {directory}")


def _try_lock(fd: int) -> bool:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(fd, _LOCK_AT_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        os.lseek(fd, 0, os.SEEK_SET)
        return True
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
