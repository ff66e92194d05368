"""Signal a whole tree of processes without ever hitting a stranger.

A process is signalled through a pidfd that was opened before its start time was compared: if the pid has meanwhile
become somebody else's, the comparison fails; if it becomes so afterwards, the pidfd still means the old one. Standard
library only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable

assert sys.platform != "win32"

from appserver.procfs import Stat, process_stat


def signal_process(pid: int, start_ticks: int, number: int) -> bool:
    """Send signal `number` to the process `pid` that started at `start_ticks`; tell whether it was there.

    Raises PermissionError where it may not be signalled.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        stat = process_stat(pid)
        if stat is None or stat.start_ticks != start_ticks:
            return False
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def terminate(processes: Iterable[Stat], already: set[tuple[int, int]]) -> None:
    """Ask each process to end, once: those in `already` (pid, start ticks) are left out, those asked are added.

    Who was born after the first were asked is left out, too: mostly it is a program by which one of them ends in
    order, as a script does that stops its database. Only who was born before, and not seen then, is still asked. When
    that was, is in `already` as the start ticks of the process 0, which there is not.

    A stopped process is continued, or it would not notice.
    """
    processes = list(processes)
    if processes and not already:
        already.add((0, _ticks_now()))
        latest = None
    else:
        latest = next((ticks for pid, ticks in already if pid == 0), None)
    for stat in processes:
        if (stat.pid, stat.start_ticks) not in already and (latest is None or stat.start_ticks < latest):
            already.add((stat.pid, stat.start_ticks))
            with contextlib.suppress(PermissionError):
                signal_process(stat.pid, stat.start_ticks, signal.SIGTERM)
                signal_process(stat.pid, stat.start_ticks, signal.SIGCONT)


def _ticks_now() -> int:
    """Give what the start ticks of a process are that is born now."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def kill(processes: Iterable[Stat]) -> None:
    """Kill each process."""
    for stat in processes:
        with contextlib.suppress(PermissionError):
            signal_process(stat.pid, stat.start_ticks, signal.SIGKILL)
