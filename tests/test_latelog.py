"""When the log of a program with a loop is written."""

# ruff: noqa: ARG001 - a test asks for the clock to have it installed

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio
import trio.lowlevel
import trio.testing

from appserver.latelog import RETRY_SECONDS, written_late
from appserver.report import Report

SECONDS = 0.05


class Passed:
    """When a report was passed on."""

    def __init__(self, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: list[float] = []
        self._pass_on = report.pass_on
        monkeypatch.setattr(report, "pass_on", self)

    def __call__(self) -> bool:
        self.at.append(trio.current_time())
        return self._pass_on()


@pytest.fixture
def report() -> Iterator[Report]:
    reader, writer = os.pipe()
    report = Report("x", stderr_fd=writer, syslog=False)
    yield report
    report.close()
    os.close(reader)
    os.close(writer)


async def test_lines_are_written_together_a_moment_after_the_first(
    report: Report, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    passed = Passed(report, monkeypatch)
    with written_late(report, SECONDS):
        await trio.sleep(1)
        assert passed.at == []
        began = trio.current_time()
        report.info("a")
        await trio.sleep(SECONDS / 2)
        report.info("b")
        await trio.sleep(1)
        assert passed.at == [began + SECONDS]
        report.info("c")
        await trio.sleep(1)
        assert passed.at == [began + SECONDS, began + SECONDS / 2 + 1 + SECONDS]


async def test_what_is_kept_is_passed_on_at_the_end_and_nothing_is_kept_from_then_on(
    report: Report, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    passed = Passed(report, monkeypatch)
    with written_late(report, SECONDS):
        report.info("a")
    assert passed.at == [trio.current_time()]
    report.info("b")
    await trio.sleep(1)
    assert len(passed.at) == 1


async def test_a_line_of_another_thread_does_not_wait(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[bool] = []

    def pass_on() -> bool:
        passed.append(True)
        return True

    monkeypatch.setattr(report, "pass_on", pass_on)
    with written_late(report, SECONDS):
        await trio.to_thread.run_sync(report.info, "a")
        assert len(passed) == 1


async def test_where_no_thread_is_to_be_had_it_is_tried_again(
    report: Report, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    answers = [False, False, True]
    monkeypatch.setattr(report, "pass_on", lambda: answers.pop(0) if answers else True)
    with written_late(report, SECONDS):
        report.info("a")
        await trio.sleep(10 * RETRY_SECONDS)
        assert answers == []


async def test_a_system_without_threads_to_spare_is_not_asked_all_the_time(
    report: Report, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    asked: list[float] = []
    monkeypatch.setattr(report, "pass_on", lambda: asked.append(trio.current_time()))
    with written_late(report, 0.001):
        began = trio.current_time()
        report.info("a")
        await trio.sleep(10 * RETRY_SECONDS + 0.01)
        assert asked[0] == began + 0.001
        assert len(asked) == 11


def test_a_loop_that_broke_down_leaves_a_log_that_writes(report: Report) -> None:
    kept = []

    async def drive() -> None:
        kept.append(written_late(report, SECONDS))
        kept[0].__enter__()
        await trio.lowlevel.checkpoint()

    trio.run(drive)
    report.info("internal error")  # as the program says then; the context was not left
    kept[0].__exit__(None, None, None)
    report.info("the end")
