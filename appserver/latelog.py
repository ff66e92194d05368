"""The log of a program that runs a trio loop: written a moment later, when the loop has nothing better to do.

An outcome passes from the waiter to the server and on to the manager within a few milliseconds, and on its way each
logs it. A thread that writes the line at once contends with the loop for the interpreter: measured on an idle machine
with two processors, some thirty wake-ups of one thread by another, more than half of the time from the end of an
application to the end of its manager. So lines wait for a moment: in a server until the outcome is on
its way, in a manager so long that one of something short ends before it has started a thread at all.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import final

import trio

from appserver.report import Report

RETRY_SECONDS = 0.1
"""Between two tries to have a thread write where the system gives none: what took all that there are may last, and a
server that is a millisecond late otherwise would do nothing but ask."""


@final
class _Later:
    """Passes the log on some time after a line has come."""

    def __init__(self, report: Report, seconds: float) -> None:
        self._report = report
        self._seconds = seconds
        self._thread = threading.get_ident()
        self._waiting = trio.CancelScope()
        self._over = False

    def begin(self) -> None:
        trio.lowlevel.spawn_system_task(self._pass_on, name="log")
        self._report.hold(self._on_line)

    def end(self) -> None:
        self._over = True
        self._report.release()
        with contextlib.suppress(RuntimeError, AttributeError):  # a loop that broke down has no scopes any more
            self._waiting.cancel()

    async def _pass_on(self) -> None:
        while not self._over:
            with self._waiting:
                await trio.sleep_forever()
            self._waiting = trio.CancelScope()
            if not self._report.pass_on():
                self._waiting.deadline = trio.current_time() + RETRY_SECONDS

    def _on_line(self) -> None:
        if threading.get_ident() != self._thread:
            self._report.pass_on()  # a thread that works for the loop: it is not in the middle of anything
        elif self._waiting.deadline == math.inf:
            try:
                self._waiting.deadline = trio.current_time() + self._seconds
            except (RuntimeError, AttributeError):
                self._report.pass_on()  # the loop broke down, and somebody says so


@contextlib.contextmanager
def written_late(report: Report, seconds: float) -> Iterator[None]:
    """Have lines of `report` written so many seconds after the first that is kept. Enter it inside the loop; what is
    kept is passed on upon leaving.
    """
    later = _Later(report, seconds)
    later.begin()
    try:
        yield
    finally:
        later.end()
