"""The log of a program that runs a trio loop: written when the loop has nothing better to do.

An outcome passes from the waiter to the server and on to the manager within a few milliseconds, and on its way each
logs it. A thread that writes the line at once contends with the loop for the interpreter: measured on an idle machine
with two processors, some thirty wake-ups of one thread by another, more than half of the time from the end of an
application to the end of its manager. So lines wait until the loop is about to sleep.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import final

import trio

from appserver.report import Report

MAX_BUSY_ROUNDS = 100
"""A loop that is never idle has its log written after so many rounds: some tens of milliseconds of work."""


@final
class _WhenIdle(trio.abc.Instrument):
    """Passes the log on whenever the loop is about to wait."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._busy_rounds = 0

    def before_io_wait(self, timeout: float) -> None:
        self._busy_rounds += 1
        if timeout > 0 or self._busy_rounds >= MAX_BUSY_ROUNDS:
            self._busy_rounds = 0
            self._report.pass_on()


@contextlib.contextmanager
def written_when_idle(report: Report) -> Iterator[None]:
    """Keep the lines of `report` until the loop that runs is idle. Enter it inside that loop; what is kept is passed
    on upon leaving.
    """
    instrument = _WhenIdle(report)
    trio.lowlevel.add_instrument(instrument)
    report.hold()
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(instrument)
        report.release()
