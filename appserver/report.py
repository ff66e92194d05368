"""The log of both programs: lines on standard error, and syslog, neither of which can hold its caller up.

Standard error is the package log on the host: a pipe that may be full, a file on a full disk, a terminal that was
closed. Syslog may be a socket whose daemon hangs. Whatever they do must not delay a program nor alter its exit status
(contract, section 1). So each sink is a thread of its own behind a queue of `MAX_QUEUED_LINES`: a full queue drops
lines and the next one that passes says how many. Leaving waits `FLUSH_SECONDS` at most for what is queued. The
threads are daemons, so that a write that never returns does not keep the program alive.

A thread that wakes takes the interpreter from whoever woke it, in the middle of what that was about to say to the other
side. Between `hold` and `release` lines are therefore only queued, until `pass_on` (see `latelog`). For the same reason
a thread takes all lines that wait at one go. And a program that `leave`s writes its last lines itself, under an alarm
that ends it where that takes too long: three threads that handed the interpreter to each other took a millisecond of a
manager's last seven, and many times that where thirty ended at once. An alarm does not interrupt the wait for a file
system that hangs. One on a disk of this machine would not let the process end in any case, but one on the network would
(it lets a KILL through, which is what the end of a process is to its threads): there the threads write, as ever.

Every line of the manager starts with `Jul 28 17:26:06 HOST cmappmgr[PID]: `. Under systemd, where standard error is
the journal (`JOURNAL_STREAM` names it), a daemon writes `<priority>text` there and nothing to syslog: the journal has
the time, and hands on to syslog by itself.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn, final

from appserver.disks import lies_here
from appserver.sinks import Level as Level
from appserver.sinks import Line, Sink

PRIORITIES: Final[dict[Level, int]] = {"info": 6, "warning": 4, "error": 3}
"""The numbers of RFC 5424, which syslog and the journal share."""

MAX_LINE_CHARACTERS = 2000
"""A longer line is cut: journald and rsyslog cut theirs too, at sizes of their own choosing."""

FLUSH_SECONDS = 0.25
"""How long leaving may wait for the sinks. A cluster that sees the end late starts the application again late."""

TURN_SECONDS = 0.02
"""How long each sink has for itself, at least: far more than a log that is not blocked needs."""

RETRY_SECONDS = 0.05
"""Between two tries on a standard error that somebody made non-blocking and that is full; and between two alarms, since
the C library tries a message to syslog twice."""

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@final
class Report:
    """The log of one program. Every method returns at once and raises nothing."""

    def __init__(
        self,
        program: str,
        *,
        stderr_fd: int = 2,
        syslog: bool = True,
        journal: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Name the program and choose the sinks; nothing is opened or started before the first line.

        Args:
            program: the name in each line and the ident in syslog.
            stderr_fd: the descriptor to write to.
            syslog: write to syslog too, where the platform has one.
            journal: heed `JOURNAL_STREAM`, as a daemon under systemd should.
            clock: Unix time, for the lines on standard error.
        """
        self._clock = clock
        self._in_journal = journal and _is_journal(stderr_fd)
        self._prefix = f"{host_name()} {program}[{os.getpid()}]: "
        self._stderr_fd = stderr_fd
        self._on_held: Callable[[], None] | None = None
        self._interruptible = False
        self._stderr = Sink("log to standard error", self._write_to_stderr)
        self._syslog = None if not syslog or self._in_journal else Sink("log to syslog", _SyslogWriter(program))

    def info(self, text: str) -> None:
        """Log something that happens in the normal course."""
        self.log("info", text)

    def warning(self, text: str) -> None:
        """Log something that somebody should look at when there is time."""
        self.log("warning", text)

    def error(self, text: str) -> None:
        """Log a failure."""
        self.log("error", text)

    def log(self, level: Level, text: str) -> None:
        """Log `text`, each of its lines as one line of the log."""
        now = self._clock()
        on_held = self._on_held
        for line in text.split("\n"):
            safe = printable(line)
            for sink in (self._stderr, self._syslog):
                if sink is not None:
                    sink.put((now, level, safe), held=on_held is not None)
        if on_held is not None:
            on_held()

    def hold(self, on_line: Callable[[], None]) -> None:
        """From now on keep lines until `pass_on`, `release` or `close`; `MAX_HELD_LINES` of them at most.

        `on_line` is called, in the thread that logs, after whatever was kept.
        """
        self._on_held = on_line

    def pass_on(self) -> bool:
        """Have what is kept written; False where that is not possible now. Costs next to nothing where nothing is."""
        passed_on = [sink.wake() for sink in (self._stderr, self._syslog) if sink is not None]
        return all(passed_on)

    def release(self) -> None:
        """Keep lines no longer."""
        self._on_held = None
        self.pass_on()

    def close(self, seconds: float = FLUSH_SECONDS) -> None:
        """Write what is queued, waiting at most `seconds` altogether; later lines are dropped."""
        deadline = time.monotonic() + seconds
        sinks = [sink for sink in (self._stderr, self._syslog) if sink is not None]
        for sink in sinks:
            sink.finish()
            sink.wait(min(TURN_SECONDS, seconds))
        for sink in sinks:
            sink.wait(deadline - time.monotonic())

    def leave(
        self, status: int, seconds: float = FLUSH_SECONDS, *, end: Callable[[int], NoReturn] | None = None
    ) -> NoReturn:
        """Write what is queued, for `seconds` at most and `TURN_SECONDS` more for syslog; end with `status`.

        To be called in the main thread, whose alarm it uses. Where there is no `end` to call, `os._exit` is.
        """
        try:
            deadline = time.monotonic() + seconds
            sinks = [sink for sink in (self._stderr, self._syslog) if sink is not None]
            if sys.platform != "win32" and _can_be_interrupted(self._stderr_fd):
                signal.signal(signal.SIGALRM, self._interrupt)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])  # whoever started us may have blocked it
                sinks = [sink for sink in sinks if not self._write_now(sink, deadline - time.monotonic())]
            if sinks:
                self.close(deadline - time.monotonic())
        finally:
            (end or os._exit)(status)  # whatever becomes of the log

    def _write_now(self, sink: Sink, seconds: float) -> bool:
        """Write what a sink has queued, as far as that goes in so many seconds; False where its thread is writing."""
        lines = sink.relieve()
        if lines is None:
            return False
        if sys.platform != "win32":
            signal.setitimer(signal.ITIMER_REAL, max(TURN_SECONDS, seconds), RETRY_SECONDS)
        try:
            self._interruptible = True
            sink.write_out(lines)
            self._interruptible = False
        except InterruptedError:
            pass  # just before or after it
        return True

    def _interrupt(self, *_: object) -> None:
        """End a write that waits: to the sink it is one that failed."""
        if self._interruptible:
            self._interruptible = False
            raise InterruptedError

    def _write_to_stderr(self, lines: Sequence[Line]) -> int:
        data = "".join(self._shown(*line) for line in lines).encode("utf-8", "backslashreplace")
        return data[: _write_all(self._stderr_fd, data)].count(b"\n")

    def _shown(self, logged_at: float, level: Level, text: str) -> str:
        start = f"<{PRIORITIES[level]}>" if self._in_journal else f"{timestamp(logged_at)} {self._prefix}"
        return f"{start}{text}\n"


def timestamp(unix_seconds: float) -> str:
    """Write local time as syslog does, whatever the locale: `Nov  2 17:26:06`."""
    now = time.localtime(unix_seconds)
    return f"{_MONTHS[now.tm_mon - 1]} {now.tm_mday:2d} {now.tm_hour:02d}:{now.tm_min:02d}:{now.tm_sec:02d}"


def printable(line: str) -> str:
    r"""Escape what a terminal or a log reader could take for a command, and bound the length.

    Control characters become `\x1b` or `\u2028`; bytes that were no UTF-8 (surrogate escapes) become `\xff` again.
    """
    cut = line if len(line) <= MAX_LINE_CHARACTERS else line[: MAX_LINE_CHARACTERS - 3] + "..."
    if cut.isprintable():
        return cut
    return "".join(character if character.isprintable() else _escape(ord(character)) for character in cut)


def host_name() -> str:
    """Give this machine's name without its domain, as syslog writes it."""
    if sys.platform == "win32":
        name = os.environ.get("COMPUTERNAME", "")
    else:
        name = os.uname().nodename
    return printable(name.split(".")[0]) or "localhost"


def hold_standard_descriptors() -> None:
    """Open the null device in place of a standard descriptor that is closed.

    Otherwise the next socket would get number 2, and the log would be written into a TLS connection. Call it first.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest free number is `descriptor`, since all below it are open by now.
            os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)


def _can_be_interrupted(descriptor: int) -> bool:
    """Tell whether a signal interrupts whoever waits for that, or only disks of this machine are waited for."""
    if sys.platform == "win32":
        return False
    try:
        status = os.fstat(descriptor)
    except OSError:
        return True  # there will be no waiting
    return not stat.S_ISREG(status.st_mode) or lies_here(descriptor, status.st_dev)


def _escape(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _is_journal(descriptor: int) -> bool:
    stream = os.environ.get("JOURNAL_STREAM")
    if not stream:
        return False
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"


def _write_all(descriptor: int, data: bytes) -> int:
    """Write, waiting as long as it takes or until an alarm, and tell how many bytes could be written."""
    written = 0
    while written < len(data):
        try:
            written += os.write(descriptor, data[written:])
        except BlockingIOError:
            time.sleep(RETRY_SECONDS)
        except OSError:
            break
    return written


class _SyslogWriter:
    """Writes to syslog by the standard library's module, imported in the sink's thread when the first line comes."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._opened = False

    def __call__(self, lines: Sequence[Line]) -> int:
        if sys.platform != "win32":
            import syslog

            if not self._opened:
                syslog.openlog(self._program, syslog.LOG_PID, syslog.LOG_DAEMON)
                self._opened = True
            for _, level, text in lines:
                syslog.syslog(PRIORITIES[level], text)
        return len(lines)
