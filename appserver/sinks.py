"""A sink of the log: a bounded queue of lines, and the thread that writes them, which may be stuck as long as it likes.

Whoever ends the process may write what is left by himself, where the thread is idle: see `report`.
"""

from __future__ import annotations

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


def nothing() -> None:
    """Do nothing."""


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
        self._idle = False
        self._last_task: Callable[[], None] = nothing
        self._changed = threading.Condition()
        self._serving = threading.Lock()
        """Held for as long as the thread may have something to write. (Its own end comes later.)"""
        self._started = False

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

    def wake(self) -> None:
        """Have the thread write what is held."""
        if self._lines:
            with self._changed:
                self._wake()

    def finish(self) -> None:
        """Take no more lines, and have the thread end once it has written those that are queued."""
        with self._changed:
            self._finished = True
            self._wake()

    def _wake(self) -> None:
        if self._lines:
            self._start()
        self._changed.notify()

    def wait(self, seconds: float) -> None:
        """After `finish`: wait until all is written, for so long at most."""
        if self._serving.acquire(timeout=max(0.0, seconds)):
            self._serving.release()

    def _start(self) -> bool:
        """Start the thread if it does not run; False where the system gives us none now."""
        if not self._started:
            self._serving.acquire()
            try:
                threading.Thread(target=self._serve, name=self._name, daemon=True).start()
            except RuntimeError:
                self._serving.release()
                return False
            self._started = True
        return True

    def _serve(self) -> None:
        try:
            while lines := self._next():
                self.write_out(lines)
        finally:
            self._serving.release()
        self._last_task()

    def relieve(self, task: Callable[[], None]) -> list[Line] | None:
        """Take what is queued out of the thread's hands, and have it do `task` instead, once; it writes no more.

        None where it is writing, or does not run.
        """
        with self._changed:
            if not self._idle:
                return None
            self._finished = True
            self._last_task = task
            lines = list(self._lines)
            self._lines.clear()
            self._changed.notify()
            return lines

    def _next(self) -> list[Line]:
        """Wait for lines; none means that there will be no more."""
        with self._changed:
            while not self._lines and not self._finished:
                self._idle = True
                self._changed.wait()
                self._idle = False
            return [self._lines.popleft() for _ in range(min(len(self._lines), MAX_LINES_AT_ONCE))]

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
        except (OSError, ValueError):
            written = 0
        if written < len(lines):
            is_told = dropped and written
            with self._changed:
                self._dropped += len(lines) - written if is_told or not dropped else dropped + len(lines) - 1
