"""A true launcher and a true waiter, as the system shows them."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("waiters are made by fork", allow_module_level=True)

from test_waiting import room

from appserver.procfs import Stat, descendants


def signals(pid: int, kind: str) -> set[int]:
    """The signals that a process ignores (`SigIgn`), or has a handler for (`SigCgt`)."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(next(line for line in status.splitlines() if line.startswith(f"{kind}:")).split()[1], 16)
    return {number for number in signal.valid_signals() if mask >> (number - 1) & 1}


def names() -> dict[str, Stat]:
    """Those that we have started, by their names."""
    return {Path(f"/proc/{stat.pid}/comm").read_text().strip(): stat for stat in descendants(os.getpid())}


def files(pid: int) -> set[str]:
    """What a process has open."""
    return {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}


def words(pid: int) -> list[bytes]:
    """The command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


async def test_launcher_and_waiter_are_what_their_theory_says(tmp_path: Path) -> None:
    async with room(tmp_path, "/bin/sleep", "1000") as made:
        found = names()
        launcher, waiter, application = (found[name] for name in ("cmapp-launcher", "cmapp-waiter", "sleep"))
        ended = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        assert ended | {signal.SIGCHLD} <= signals(launcher.pid, "SigIgn")
        assert ended <= signals(waiter.pid, "SigIgn")
        assert signal.SIGCHLD in signals(waiter.pid, "SigCgt")
        assert not (ended | {signal.SIGCHLD, signal.SIGPIPE}) & signals(application.pid, "SigIgn")
        assert (waiter.ppid, application.ppid) == (launcher.pid, waiter.pid)
        assert os.getsid(waiter.pid) == waiter.pid
        assert os.getsid(application.pid) == application.pid
        assert words(launcher.pid)[:6] == [os.fsencode(sys.executable), b"-I", b"-S", b"-X", b"utf8", b"-c"]
        held = (tmp_path / "state" / "launcher.lock").read_text()
        assert held.split() == [str(launcher.pid), str(launcher.start_ticks)]
        assert len(held) == 63  # room was made for it once, and a full disk has to take it again
        assert made.states[-1].pid == application.pid


async def test_launcher_has_nothing_that_a_server_has_inherited(tmp_path: Path) -> None:
    """A log or a lock of whoever started the server would be held for as long as an application runs."""
    read, write = os.pipe()
    try:
        os.set_inheritable(write, True)
        async with room(tmp_path, "/bin/sleep", "1000"):
            for stat in names().values():
                assert os.readlink(f"/proc/self/fd/{write}") not in files(stat.pid)
    finally:
        os.close(read)
        os.close(write)
