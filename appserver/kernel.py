"""The few Linux calls that Python's standard library does not offer: subreaper, process name, the end told by a pidfd.

Kept apart because they need `ctypes` or the kernel's own numbers. Standard library only: the launcher imports this
before it forks, so that no waiter pays for `ctypes` again (measured: 60 to 100 MB for thirty waiters when imported
after the fork).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
import time

assert sys.platform != "win32"

import fcntl

from appserver.outcome import Exited, Outcome, Signaled
from appserver.procfs import process_stat

_PR_SET_CHILD_SUBREAPER = 36

# struct pidfd_info of <linux/pidfd.h>, first published size (64 bytes): mask, cgroupid, eleven ids, exit_code.
_PIDFD_INFO = struct.Struct("=QQ11Ii")
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_GET_INFO = (
    (3 << 30) | (_PIDFD_INFO.size << 16) | (0xFF << 8) | 11
)  # _IOWR(PIDFS_IOCTL_MAGIC, 11, struct pidfd_info)

RELEASE_TRIES = 10
"""How often, a millisecond apart, the kernel is asked about a process that is ending. One that nobody waits for is told
to be dead (state X) some microseconds before the kernel has written down how it ended."""

_CAP_SYS_PTRACE = 1 << 19

_prctl = ctypes.CDLL(None).prctl
"""Made ready once, without `errno` and without types for its arguments, small numbers all of them: each waiter calls
it, and what it touches it has for itself from then on."""


def become_subreaper() -> None:
    """Let descendants whose parent ends become children of this process instead of pid 1. Raises OSError."""
    if _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(errno.EINVAL, "this kernel has no subreapers")


def set_process_name(name: bytes) -> None:
    """Show `name` (15 bytes at most) in ps and top; a system that does not let us changes nothing."""
    try:
        fd = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        os.write(fd, name)
    finally:
        os.close(fd)


def outcome_of_stranger(pidfd: int, pid: int, start_ticks: int) -> Outcome | None:
    """Ask the kernel how a process that is not our child ended; call it when `pidfd` has become readable.

    A zombie shows its code in /proc to whoever may trace it; once it is reaped, `PIDFD_GET_INFO` tells (Linux 6.15).
    Returns None where the kernel does not tell: the outcome is lost then. Blocks for `RELEASE_TRIES` milliseconds at
    most.
    """
    for _ in range(RELEASE_TRIES):
        stat = process_stat(pid)
        ending = stat is not None and stat.start_ticks == start_ticks and stat.state in "ZX"
        if stat is not None and ending and (stat.exit_code or _may_trace()):
            return outcome_from_wait_status(stat.exit_code)
        outcome = _outcome_by_pidfd(pidfd)
        if outcome is not None or not ending:
            return outcome
        time.sleep(0.001)
    return None


def _outcome_by_pidfd(pidfd: int) -> Outcome | None:
    buffer = bytearray(_PIDFD_INFO.size)
    _PIDFD_INFO.pack_into(buffer, 0, _PIDFD_INFO_EXIT, *[0] * 13)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError as error:
        if error.errno in {errno.ENOTTY, errno.EINVAL, errno.ESRCH, errno.EBADF, errno.EPERM}:
            return None
        raise
    mask, *_, exit_code = _PIDFD_INFO.unpack(buffer)
    return outcome_from_wait_status(exit_code) if mask & _PIDFD_INFO_EXIT else None


def _may_trace() -> bool:
    # Whoever may not trace a process is shown 0 as its exit code: taken at its word, that would be a success made up.
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        capabilities = next((line for line in file if line.startswith("CapEff:")), "CapEff: 0")
    return bool(int(capabilities.split()[1], 16) & _CAP_SYS_PTRACE)


def outcome_from_wait_status(status: int) -> Outcome:
    """Translate what waitpid gives for an ended process."""
    if os.WIFSIGNALED(status):
        return Signaled(os.WTERMSIG(status))
    return Exited(os.WEXITSTATUS(status))
