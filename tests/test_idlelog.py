"""When the log of a program with a loop is written. The log is a real pipe."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio

from appserver.idlelog import MAX_BUSY_ROUNDS, written_when_idle
from appserver.report import Report


class Passed:
    """Counts how often a report is passed on."""

    def __init__(self, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
        self.times = 0
        self._pass_on = report.pass_on
        monkeypatch.setattr(report, "pass_on", self)

    def __call__(self) -> None:
        self.times += 1
        self._pass_on()


@pytest.fixture
def report() -> Iterator[Report]:
    reader, writer = os.pipe()
    report = Report("x", stderr_fd=writer, syslog=False)
    yield report
    report.close()
    os.close(reader)
    os.close(writer)


async def test_the_log_is_passed_on_when_the_loop_sleeps(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = Passed(report, monkeypatch)
    with written_when_idle(report):
        await trio.lowlevel.checkpoint()
        assert passed.times == 0  # the loop had something to do
        await trio.sleep(0.001)
        assert passed.times > 0
    times = passed.times
    await trio.sleep(0.001)
    assert passed.times == times  # nobody looks any more


async def test_a_loop_that_is_never_idle_has_its_log_written_all_the_same(
    report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = Passed(report, monkeypatch)
    with written_when_idle(report):
        for _ in range(3 * MAX_BUSY_ROUNDS):
            await trio.lowlevel.checkpoint()
        assert passed.times >= 2
