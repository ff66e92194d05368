"""The log: its lines, and that no sink holds anybody up. Blocked sinks are real pipes that nobody reads."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from appserver import report as report_module
from appserver.report import (
    MAX_LINE_CHARACTERS,
    Report,
    host_name,
    printable,
    timestamp,
)
from appserver.sinks import MAX_HELD_LINES, MAX_QUEUED_LINES

PATIENCE_SECONDS = 20.0

posix = pytest.mark.skipif(sys.platform == "win32", reason="there is no alarm there")


_open: set[int] = set()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    _open.update(ends)
    yield ends
    for descriptor in _open.intersection(ends):
        close(descriptor)


def close(descriptor: int) -> None:
    _open.remove(descriptor)
    os.close(descriptor)


def read_all(reader: int, writer: int) -> list[str]:
    close(writer)
    with open(reader, encoding="utf-8", closefd=False) as file:
        return file.read().splitlines()


def test_a_line_starts_with_time_host_program_and_pid(pipe: tuple[int, int]) -> None:
    report = Report("cmappmgr", stderr_fd=pipe[1], syslog=False)
    report.info("PROGRAM EXIT CODE 7")
    report.close(PATIENCE_SECONDS)
    (line,) = read_all(*pipe)
    start = rf"[A-Z][a-z][a-z] [ 123]\d \d\d:\d\d:\d\d {re.escape(host_name())} cmappmgr\[{os.getpid()}\]: "
    assert re.fullmatch(start + "PROGRAM EXIT CODE 7", line)


def test_the_day_of_the_month_is_padded_as_syslog_pads_it() -> None:
    when = time.mktime((2026, 11, 2, 7, 5, 9, 0, 0, -1))
    assert timestamp(when) == "Nov  2 07:05:09"
    when = time.mktime((2026, 7, 28, 17, 26, 6, 0, 0, -1))
    assert timestamp(when) == "Jul 28 17:26:06"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 漢字", "plain ü 漢字"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\tb\rc\0", r"a\x09b\x0dc\x00"),
        ("byte \udcff", r"byte \xff"),
        ("\u2028\u202e", r"\u2028\u202e"),
        ("\ud800", r"\ud800"),
        ("\U000e0001", r"\U000e0001"),
        ("x" * 3000, "x" * (MAX_LINE_CHARACTERS - 3) + "..."),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_each_line_of_a_text_is_a_line_of_the_log(pipe: tuple[int, int]) -> None:
    report = Report("x", stderr_fd=pipe[1], syslog=False)
    report.error("one\ntwo\x1b")
    report.close(PATIENCE_SECONDS)
    assert [line.partition("]: ")[2] for line in read_all(*pipe)] == ["one", r"two\x1b"]


def test_under_the_journal_a_line_is_priority_and_text(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.fstat(pipe[1])
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    report = Report("cmappserver", stderr_fd=pipe[1], journal=True)
    report.info("a")
    report.warning("b")
    report.error("c")
    report.close(PATIENCE_SECONDS)
    assert read_all(*pipe) == ["<6>a", "<4>b", "<3>c"]


@pytest.mark.parametrize("stream", ["", "1:2", "nonsense"])
def test_a_journal_that_is_not_ours_changes_nothing(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    report = Report("cmappserver", stderr_fd=pipe[1], journal=True, syslog=False)
    report.info("a")
    report.close(PATIENCE_SECONDS)
    assert read_all(*pipe)[0].endswith(f"cmappserver[{os.getpid()}]: a")


def test_a_blocked_standard_error_holds_nobody_up_and_loses_lines_audibly(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    report = Report("x", stderr_fd=writer, syslog=False)
    began = time.monotonic()
    long_text = "y" * 1900
    for _ in range(MAX_QUEUED_LINES * 2):
        report.info(long_text)
    report.close(0.01)
    assert time.monotonic() - began < PATIENCE_SECONDS / 2
    # Now somebody reads: what was queued comes, and then how much did not.
    lines: list[str] = []
    with open(reader, encoding="utf-8", closefd=False) as file:
        for line in file:
            lines.append(line)
            if "were dropped" in line:
                break
            if len(lines) >= MAX_QUEUED_LINES:
                break
    assert any(re.search(r": \d+ lines of this log were dropped", line) for line in lines)
    close(reader)
    report.close(PATIENCE_SECONDS)


def test_a_non_blocking_standard_error_that_is_full_is_waited_for(pipe: tuple[int, int]) -> None:
    if sys.platform == "win32":
        pytest.skip("pipes always block on this system")
    reader, writer = pipe
    os.set_blocking(writer, False)
    filled = 0
    try:
        while True:
            filled += os.write(writer, b"z" * 65536)
    except BlockingIOError:
        pass
    report = Report("x", stderr_fd=writer, syslog=False)
    report.info("after the flood")
    report.close(0.01)
    while filled > 0:
        filled -= len(os.read(reader, filled))
    report.close(PATIENCE_SECONDS)
    (line,) = read_all(*pipe)
    assert line.endswith(": after the flood")


def test_a_closed_standard_error_raises_nothing(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    close(reader)
    report = Report("x", stderr_fd=writer, syslog=False)
    report.info("a")
    report.close(PATIENCE_SECONDS)
    close(writer)
    report = Report("x", stderr_fd=writer, syslog=False)
    report.info("b")
    report.close(PATIENCE_SECONDS)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_raises_nothing() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    report = Report("x", stderr_fd=descriptor, syslog=False)
    report.info("a")
    report.close(PATIENCE_SECONDS)
    os.close(descriptor)


def test_lines_after_the_end_are_dropped(pipe: tuple[int, int]) -> None:
    report = Report("x", stderr_fd=pipe[1], syslog=False)
    report.close(PATIENCE_SECONDS)
    report.info("too late")
    report.close(PATIENCE_SECONDS)
    assert read_all(*pipe) == []


def test_lines_that_are_held_wait_for_being_passed_on_or_for_the_end(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    report = Report("x", stderr_fd=writer, syslog=False)
    report.hold(lambda: None)
    before = threading.active_count()
    report.info("first")
    assert threading.active_count() == before  # nobody is there who could have written it
    report.pass_on()
    assert os.read(reader, 1000).endswith(b"first\n")
    report.info("second")
    report.release()
    assert os.read(reader, 1000).endswith(b"second\n")
    report.hold(lambda: None)
    report.info("third")
    report.close(PATIENCE_SECONDS)
    (line,) = read_all(*pipe)
    assert line.endswith("third")


def test_no_more_than_a_bound_of_lines_is_held(pipe: tuple[int, int]) -> None:
    report = Report("x", stderr_fd=pipe[1], syslog=False)
    report.hold(lambda: None)
    for number in range(MAX_HELD_LINES):
        report.info(str(number))
    assert os.read(pipe[0], 100)
    report.close(PATIENCE_SECONDS)


def test_a_system_without_threads_to_spare_costs_lines_only(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report("x", stderr_fd=pipe[1], syslog=False)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", lambda _self: (_ for _ in ()).throw(RuntimeError("can't start")))
        report.info("lost")
    report.info("found")
    report.close(PATIENCE_SECONDS)
    first, second = read_all(*pipe)
    assert first.endswith("1 lines of this log were dropped: it was blocked, closed or full")
    assert second.endswith(": found")


def test_syslog_gets_ident_facility_and_priority(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    if sys.platform == "win32":
        pytest.skip("no syslog on this system")
    import syslog

    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(syslog, "openlog", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(syslog, "syslog", lambda *arguments: calls.append(arguments))
    report = Report("cmappmgr", stderr_fd=pipe[1])
    report.warning("w\0")
    report.info("i")
    report.close(PATIENCE_SECONDS)
    assert calls == [("cmappmgr", syslog.LOG_PID, syslog.LOG_DAEMON), (4, r"w\x00"), (6, "i")]


def test_a_hanging_syslog_delays_neither_the_log_nor_the_end(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(report_module._SyslogWriter, "__call__", lambda *_: release.wait(PATIENCE_SECONDS))
    report = Report("cmappmgr", stderr_fd=pipe[1])
    report.info("a")
    began = time.monotonic()
    report.close(0.05)
    assert time.monotonic() - began < PATIENCE_SECONDS / 2
    release.set()
    assert read_all(*pipe)[0].endswith(": a")


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are another matter there")
def test_closed_standard_descriptors_are_held_by_the_null_device() -> None:
    code = (
        "import os, sys; [os.close(n) for n in (0, 1, 2)]\n"
        "from appserver.report import hold_standard_descriptors\n"
        "hold_standard_descriptors()\n"
        "null = os.stat(os.devnull).st_rdev\n"
        "os._exit(0 if all(os.fstat(n).st_rdev == null for n in (0, 1, 2)) and os.dup(0) == 3 else 1)\n"
    )
    root = str(Path(__file__).resolve().parent.parent)
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60, check=False).returncode == 0


class Ended(BaseException):
    """The process would have ended."""


@pytest.fixture
def statuses(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The statuses that the process would have ended with."""
    seen: list[int] = []

    def end(status: int) -> NoReturn:
        seen.append(status)
        raise Ended

    monkeypatch.setattr("appserver.report.os._exit", end)
    before = signal.getsignal(signal.SIGALRM)
    yield seen
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def syslog(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, threading.Thread]]:
    """What goes to syslog, and who wrote it."""
    seen: list[tuple[str, threading.Thread]] = []

    def write(_self: object, lines: Sequence[tuple[float, str, str]]) -> int:
        seen.extend((text, threading.current_thread()) for _, _, text in lines)
        return len(lines)

    monkeypatch.setattr(report_module._SyslogWriter, "__call__", write)
    return seen


def idle(report: Report) -> Report:
    """Wait until what was logged is written."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    sinks = [sink for sink in (report._stderr, report._syslog) if sink is not None]
    while any(sink._writes or sink._lines for sink in sinks):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return report


def fill(writer: int) -> None:
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"z" * 65536)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"z")
    os.set_blocking(writer, True)


@posix
def test_who_leaves_writes_the_last_lines_itself(
    pipe: tuple[int, int], statuses: list[int], syslog: list[tuple[str, threading.Thread]]
) -> None:
    report = Report("cmappmgr", stderr_fd=pipe[1])
    report.info("a")
    idle(report).hold(lambda: None)
    report.info("b")
    report.info("c")
    with pytest.raises(Ended):
        report.leave(7)
    assert statuses == [7]
    assert [line[-3:] for line in read_all(*pipe)] == [": a", ": b", ": c"]
    assert [text for text, _ in syslog] == ["a", "b", "c"]
    assert [thread is threading.current_thread() for _, thread in syslog] == [False, True, True]


@posix
def test_who_leaves_is_not_held_up_by_a_blocked_standard_error_and_syslog_has_its_turn(
    pipe: tuple[int, int], statuses: list[int], syslog: list[tuple[str, threading.Thread]]
) -> None:
    fill(pipe[1])
    report = Report("cmappmgr", stderr_fd=pipe[1])
    report.hold(lambda: None)
    report.info("a")
    began = time.monotonic()
    with pytest.raises(Ended):
        report.leave(7, 0.05)
    assert statuses == [7]
    assert time.monotonic() - began < PATIENCE_SECONDS / 2
    assert [text for text, _ in syslog] == ["a"]


@posix
def test_who_leaves_while_the_log_is_being_written_waits_for_that_no_longer_than_it_may(
    pipe: tuple[int, int], statuses: list[int], syslog: list[tuple[str, threading.Thread]]
) -> None:
    reader, writer = pipe
    fill(writer)
    report = Report("cmappmgr", stderr_fd=writer)
    report.info("a")
    while not report._stderr._writes:
        time.sleep(0.001)
    report.info("b")
    with pytest.raises(Ended):
        report.leave(7, 0.05)
    assert statuses == [7]
    assert [text for text, _ in syslog] == ["a", "b"]
    close(reader)
    report.close(PATIENCE_SECONDS)


@posix
def test_a_file_system_that_no_signal_interrupts_is_left_to_the_threads(
    tmp_path: Path,
    statuses: list[int],
    syslog: list[tuple[str, threading.Thread]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("appserver.report.lies_here", lambda *_: False)
    with open(tmp_path / "log", "w", encoding="utf-8") as file:
        report = Report("cmappmgr", stderr_fd=file.fileno())
        report.hold(lambda: None)
        report.info("a")
        with pytest.raises(Ended):
            report.leave(7, PATIENCE_SECONDS)
        assert (tmp_path / "log").read_text().endswith(": a\n")
    assert statuses == [7]
    assert [thread is threading.current_thread() for _, thread in syslog] == [False]


def test_a_thread_without_lines_ends_and_the_next_line_starts_another(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appserver.sinks.IDLE_SECONDS", 0.0)
    report = Report("x", stderr_fd=pipe[1], syslog=False)
    for text in ("a", "b"):
        report.info(text)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while report._stderr._runs:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    report.close(PATIENCE_SECONDS)
    assert [line[-3:] for line in read_all(*pipe)] == [": a", ": b"]


@posix
def test_an_alarm_that_was_blocked_by_whoever_started_the_program_is_heard_all_the_same(
    pipe: tuple[int, int], statuses: list[int]
) -> None:
    fill(pipe[1])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    try:
        report = Report("cmappmgr", stderr_fd=pipe[1], syslog=False)
        report.hold(lambda: None)
        report.info("a")
        with pytest.raises(Ended):
            report.leave(7, 0.05)
        assert signal.SIGALRM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert statuses == [7]


@posix
def test_a_syslog_that_cannot_be_loaded_changes_no_status(
    pipe: tuple[int, int], statuses: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise ImportError("Too many open files")

    monkeypatch.setattr(report_module._SyslogWriter, "__call__", fail)
    report = Report("cmappmgr", stderr_fd=pipe[1])
    report.hold(lambda: None)
    report.info("a")
    with pytest.raises(Ended):
        report.leave(7)
    assert statuses == [7]
    assert read_all(*pipe)[0].endswith(": a")


@posix
def test_whatever_goes_wrong_at_the_end_the_status_stands(statuses: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report("cmappmgr", syslog=False)
    monkeypatch.setattr(report, "_write_now", lambda *_: 1 // 0)
    with pytest.raises(Ended):
        report.leave(7)
    assert statuses == [7]
