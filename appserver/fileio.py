"""Reading and writing at a position, and the flags to open with: the one seam for files that systems do differently."""

from __future__ import annotations

import errno
import os
import stat
import sys

OUT_OF_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
"""Errors that say nothing of what was asked for, only that descriptors or memory ran out: try again later."""


def make_directory(path: str, mode: int) -> None:
    """Make a directory and those above it; one that exists is fine. Raises OSError, which says why it is none."""
    try:
        os.makedirs(path, mode=mode, exist_ok=True)
    except FileExistsError:
        # It only says that it saw no directory, be it that it could not look.
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None


if sys.platform == "win32":
    OPEN_FLAGS = os.O_BINARY | os.O_NOINHERIT
    """For every `os.open`: bytes as they are, and no child inherits the descriptor."""

    def read_at(fd: int, count: int, position: int) -> bytes:
        """Read `count` bytes at most from `position`. Moves the file's own position. Raises OSError."""
        os.lseek(fd, position, os.SEEK_SET)
        return os.read(fd, count)

    def write_at(fd: int, data: bytes, position: int) -> int:
        """Write `data` at `position`; give how much was written. Moves the file's own position. Raises OSError."""
        os.lseek(fd, position, os.SEEK_SET)
        return os.write(fd, data)

else:
    OPEN_FLAGS = os.O_CLOEXEC
    """For every `os.open`: no child inherits the descriptor."""

    def read_at(fd: int, count: int, position: int) -> bytes:
        """Read `count` bytes at most from `position`. Raises OSError."""
        return os.pread(fd, count, position)

    def write_at(fd: int, data: bytes, position: int) -> int:
        """Write `data` at `position`; give how much was written. Raises OSError."""
        return os.pwrite(fd, data, position)
