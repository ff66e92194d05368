"""The applications that are run: they say when they run, and end when they are told, all at one instant.

Each is a shell that opens a FIFO to read its end from, announces its number and pid through another FIFO, and then
reads. The harness holds the writing end; closing it ends everybody who reads there, at a time that the harness knows,
with the same few system calls for every subject. An application announces itself only when the FIFO is open, so none
can miss its end. Its own way from there to `exit` is a fraction of a millisecond, which the floor has too.
"""

from __future__ import annotations

import itertools
import os
import shlex
import time
from typing import final

SHELL = "/bin/sh"
EXIT_STATUS = 7
"""What each application ends with: that it arrived shows that the right thing was measured."""

_MAX_ANNOUNCEMENT_BYTES = 65536


@final
class Applications:
    """The applications of one run of the benchmark, in a directory of their own."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._numbers = itertools.count(1)
        self._announced: dict[int, tuple[int, float]] = {}
        self._partial = b""
        ready = os.path.join(directory, "ready")
        os.mkfifo(ready, 0o600)
        self._ready_fd = os.open(ready, os.O_RDWR | os.O_CLOEXEC)
        self._script = os.path.join(directory, "application")
        text = f'exec 3<"$2"\necho "$1 $$" >{shlex.quote(ready)}\nread word <&3\nexit {EXIT_STATUS}\n'
        with open(self._script, "w", encoding="ascii") as file:
            file.write(text)

    def group(self) -> Group:
        """Make a group of applications that will end together."""
        return Group(self, os.path.join(self._directory, f"end-{next(self._numbers)}"))

    def words(self, number: int, fifo: str) -> list[str]:
        """Give the command of one application."""
        return [SHELL, self._script, str(number), fifo]

    def number(self) -> int:
        """Give a number that no application has had."""
        return next(self._numbers)

    def wait_announced(self, number: int) -> tuple[int, float]:
        """Wait until an application runs; give its pid and the monotonic time when it said so."""
        while number not in self._announced:
            data = self._partial + os.read(self._ready_fd, _MAX_ANNOUNCEMENT_BYTES)
            now = time.monotonic()
            *lines, self._partial = data.split(b"\n")
            for line in lines:
                which, pid = line.split()
                self._announced[int(which)] = (int(pid), now)
        return self._announced[number]

    def close(self) -> None:
        """Let go of the descriptors; the files go with the directory."""
        os.close(self._ready_fd)


@final
class Group:
    """Applications that end at one instant."""

    def __init__(self, applications: Applications, fifo: str) -> None:
        os.mkfifo(fifo, 0o600)
        self._applications = applications
        self._fifo = fifo
        # For writing only, or our own reading end would keep nobody waiting; there must be a reader to open it so.
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._writer: int | None = os.open(fifo, os.O_WRONLY | os.O_CLOEXEC)
        os.close(reader)

    def add(self) -> tuple[int, list[str]]:
        """Give the number and the command of one more application of this group."""
        number = self._applications.number()
        return number, self._applications.words(number, self._fifo)

    def finish(self) -> float:
        """End all that run; give the monotonic time just before."""
        assert self._writer is not None, "a group ends once"
        writer, self._writer = self._writer, None
        began = time.monotonic()
        os.close(writer)
        os.unlink(self._fifo)
        return began
