"""A sink of the log: a bounded queue of lines, and the thread that writes them, which may be stuck as long as it likes.

The thread ends when there was nothing to write for a while: each thread that lives has to be taken apart before a
process has ended. Whoever ends it may write what is left by himself, where the thread is not writing: see `report`.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, final

Level = Literal["info", "warning", "error"]

Line: TypeAlias = tuple[float, Level, str]
"""When it was logged (Unix time), the level, the text: printable, one line."""

MAX_QUEUED_LINES = 1000
"""Per sink: a burst, such as thirty outcomes with their last lines, fits; a blocked log costs 2 MB at the very most."""

MAX_HELD_LINES = 100
"""Per sink: with so many the threads are woken although nobody has passed them on, long before lines are dropped."""

MAX_LINES_AT_ONCE = 50
"""Taken from the queue and written together."""

IDLE_SECONDS = 1.0
"""Without a line, until the thread ends; the next line starts another."""


@final
class Sink:
    """A bounded queue of lines and the thread that writes them."""

    def __init__(self, name: str, write: Callable[[Sequence[Line]], int]) -> None:
        """Name the thread, and say how it writes lines: `write` gives how many of them it could write."""
        self._name = name
        self._write = write
        self._lines: deque[Line] = deque()
        self._dropped = 0
        self._finished = False
        self._runs = False
        """There is a thread."""
        self._writes = False
        self._changed = threading.Condition()

    def put(self, line: Line, *, held: bool) -> None:
        """Queue a line, or drop it where the queue is full; where it is `held` nobody is woken for it."""
        with self._changed:
            if self._finished:
                return
            if len(self._lines) >= MAX_QUEUED_LINES or not (held or self._start()):
                self._dropped += 1
                return
            self._lines.append(line)
            if not held or len(self._lines) >= MAX_HELD_LINES:
                self._wake()

    def wake(self) -> bool:
        """Have the thread write what is held; False where there is none to be had now."""
        if self._lines:
            with self._changed:
                self._wake()
                return self._runs or not self._lines
        return True

    def finish(self) -> None:
        """Take no more lines, and have the thread end once it has written those that are queued."""
        with self._changed:
            self._finished = True
            self._wake()

    def wait(self, seconds: float) -> None:
        """After `finish`: wait until all is written, for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._runs, max(0.0, seconds))

    def relieve(self) -> list[Line] | None:
        """Take what is queued out of the thread's hands, to be written by `write_out`; the thread writes no more.

        None where it is writing.
        """
        with self._changed:
            if self._writes:
                return None
            self._finished = True
            lines = list(self._lines)
            self._lines.clear()
            return lines

    def write_out(self, lines: list[Line]) -> None:
        """Write, in the thread of the caller, after how many were lost before."""
        if not lines:
            return
        with self._changed:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            notice = f"{dropped} lines of this log were dropped: it was blocked, closed or full"
            lines.insert(0, (lines[0][0], "warning", notice))
        try:
            written = self._write(lines)
        except Exception:  # noqa: BLE001  (a module of the system that cannot be loaded, say: nobody is there to be told)
            written = 0
        if written < len(lines):
            is_told = dropped and written
            with self._changed:
                self._dropped += len(lines) - written if is_told or not dropped else dropped + len(lines) - 1

    def _wake(self) -> None:
        if self._lines:
            self._start()
        self._changed.notify_all()

    def _start(self) -> bool:
        """Start the thread if it does not run; False where the system gives us none now."""
        if not self._runs:
            if sys.is_finalizing():
                return False  # it would never run, and be waited for
            self._runs = True
            try:
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()
            except RuntimeError:
                self._runs = False
                return False
        return True

    def _serve(self) -> None:
        while lines := self._next():
            self.write_out(lines)

    def _next(self) -> list[Line]:
        """Wait for lines; none means that the thread is to end."""
        with self._changed:
            self._writes = False
            self._changed.wait_for(lambda: self._lines or self._finished, IDLE_SECONDS)
            if not self._lines:
                self._runs = False
                self._changed.notify_all()
                return []
            self._writes = True
            return [self._lines.popleft() for _ in range(min(len(self._lines), MAX_LINES_AT_ONCE))]
