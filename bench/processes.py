"""Processes of the benchmark: started as a cluster would, waited for to the microsecond, and none left behind.

The end of a client is seen by `waitpid`, which returns when it happens: `subprocess.wait` with a timeout looks again
in growing pauses, and would measure those. What bounds a wait is an alarm, which `Deadline` sets and which raises.

Everything that is started stays our descendant, orphans too (we are a subreaper), so whatever happens all of it can be
ended: the applications of the pair outlive their server on purpose.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterable, Mapping
from types import FrameType, TracebackType
from typing import NoReturn, final

from bench.measure import descendants

WAIT_SECONDS = 180
"""Longer than anything takes: three hundred managers at once on a busy machine. Only a failure waits for it."""

_PR_SET_CHILD_SUBREAPER = 36
_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class BenchError(Exception):
    """It cannot be measured: something did not start, ended in another way, or took too long."""


class InterruptedBenchError(BenchError):
    """Somebody wants the benchmark to end."""


def watch_over_descendants() -> None:
    """Become the one that orphans come to, and have the signals that end the program raise."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in _HANDLED:
        signal.signal(number, _interrupt)
    signal.signal(signal.SIGALRM, _too_late)


def end_descendants() -> None:
    """Kill and reap whatever lives of what was started. A second signal does not disturb it."""
    for number in (*_HANDLED, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    while living := descendants(os.getpid()):
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


@final
class Deadline:
    """Raises BenchError in the main thread, naming `what`, when its block takes longer than `WAIT_SECONDS`."""

    what = ""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        Deadline.what = self._what
        signal.alarm(WAIT_SECONDS)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.alarm(0)


def start(words: list[str], log: str, environment: Mapping[str, str] | None = None) -> int:
    """Start a program in a session of its own; give its pid.

    Standard input is the null device, output and errors are appended to the file `log`, the environment is empty
    unless one is given, as a cluster does it. Raises OSError.
    """
    return os.posix_spawn(
        words[0],
        words,
        dict(environment or {}),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
    )


def wait_all(pids: Iterable[int]) -> tuple[float, dict[int, int]]:
    """Wait until all have ended; give the monotonic time when the last one had, and the exit statuses.

    A process that was ended by a signal has minus its number. What else ends meanwhile is reaped and forgotten.
    """
    waiting = set(pids)
    statuses: dict[int, int] = {}
    while waiting:
        pid, status = os.waitpid(-1, 0)
        if pid in waiting:
            waiting.remove(pid)
            statuses[pid] = os.waitstatus_to_exitcode(status)
    return time.monotonic(), statuses


def end(pid: int) -> None:
    """End one process of ours with TERM and wait for it; with KILL where that takes longer than a few seconds."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGTERM)
        patience = time.monotonic() + 5
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > patience:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)


def tail(path: str, lines: int = 5) -> str:
    """Give the last lines of a log for an error's text; empty where there is none."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return "".join(file.readlines()[-lines:]).strip()
    return ""


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    raise InterruptedBenchError(f"interrupted by {signal.Signals(number).name}")


def _too_late(_number: int, _frame: FrameType | None) -> NoReturn:
    raise BenchError(f"{Deadline.what} took longer than {WAIT_SECONDS} s")
