"""System calls that fail on purpose: the n-th of those that an operation makes, for every n until none is left.

`failing` stands in for the calls of `os`, `fcntl` and the built-in `open` while it is entered, counts them, and has one
of them fail. What a disk does to a write in the middle are faults of their own.
"""

from __future__ import annotations

import builtins
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import pytest

if sys.platform != "win32":
    import fcntl

CALLS = (
    "open",
    "read",
    "pread",
    "write",
    "pwrite",
    "ftruncate",
    "mkdir",
    "rmdir",
    "rename",
    "replace",
    "unlink",
    "symlink",
    "readlink",
    "listdir",
    "scandir",
    "stat",
    "lstat",
    "fstat",
)
"""Of module `os`. Closing is left out: no file system that a guest has reports an error there for the first time."""

TORN = -1
"""Half is written, then comes EIO."""
CUT_SHORT = -2
"""Half is written, which is told; calls other than writes are made as ever."""
FAULTS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE, errno.EACCES, TORN)
_TORN_BYTES = 100
"""Less than what is written of anything, the padding behind it left out."""

MAX_CALLS = 400
"""No operation of ours makes so many; one that seems to is going in circles."""


class Call(Protocol):
    def __call__(self, *args: object, **kwargs: object) -> object: ...


@dataclass
class Injector:
    """Counts calls; the one of number `nth` fails, counted from 1. With 0 none does."""

    nth: int
    fault: int
    count: int = 0
    hit: str = ""
    said: str = ""
    """For the test: what the operation said of it."""

    def wrap(self, name: str, real: Call) -> Call:
        def call(*args: object, **kwargs: object) -> object:
            self.count += 1
            if self.count != self.nth:
                return real(*args, **kwargs)
            self.hit = name
            if self.fault in {TORN, CUT_SHORT} and name in {"write", "pwrite"}:
                fd, data, *rest = args
                assert isinstance(data, bytes | memoryview)
                written = real(fd, bytes(data)[: min(len(data) // 2, _TORN_BYTES)], *rest)
                if self.fault == CUT_SHORT:
                    return written
            if self.fault == CUT_SHORT:
                return real(*args, **kwargs)
            number = errno.EIO if self.fault == TORN else self.fault
            raise OSError(number, os.strerror(number), args[0] if args and isinstance(args[0], str) else None)

        return call


@contextmanager
def failing(nth: int, fault: int) -> Iterator[Injector]:
    """Have the `nth` call fail with `fault`, an errno or `TORN`."""
    injector = Injector(nth, fault)
    with pytest.MonkeyPatch.context() as patch:
        where: list[tuple[object, str]] = [(builtins, "open"), *((os, name) for name in CALLS)]
        if sys.platform != "win32":
            where.append((fcntl, "flock"))
        for module, name in where:
            patch.setattr(module, name, injector.wrap(name, getattr(module, name)))
        yield injector


def words_of(fault: int) -> str:
    return os.strerror(errno.EIO if fault == TORN else fault)


def name_of(fault: int) -> str:
    return "torn write" if fault == TORN else errno.errorcode[fault]
