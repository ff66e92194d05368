"""Runs a container and takes it away again, also where whoever wanted it was killed.

A program of its own, `keeper.py NAME WORD...`: it makes control groups of that name, starts the words in them, says the
process's pid, and waits until that ends or its own standard input does, which is when its user is gone. Then it kills
what is left and removes the groups. Should the keeper itself be killed, the process goes with it (PR_SET_PDEATHSIG),
and all others with that: it is process 1 of a namespace around the container, whose own process 1 would outlive the
program that has booted it. Only empty groups stay then, for the next keeper to remove.

NAME is `PREFIX-PID-WORD`, with the pid of the user.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

REMOVE_SECONDS = 10.0
"""A process that was killed leaves its group a moment later."""


def main() -> None:
    # The user's interrupt, from the terminal or by a signal to all of the session, is answered by the end of our input.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    name, *words = sys.argv[1:]
    with control_groups(name) as groups:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *words],
            stdin=subprocess.DEVNULL,
            stdout=2,
            preexec_fn=lambda: _join(groups),  # noqa: PLW1509  (there are no threads here)
        )
        try:
            print(process.pid, flush=True)
            select.select([0, os.pidfd_open(process.pid)], [], [])
        finally:
            process.kill()
            process.wait()


def _join(groups: list[Path]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    for group in groups:
        (group / "cgroup.procs").write_text(str(os.getpid()))


@contextlib.contextmanager
def control_groups(name: str) -> Iterator[list[Path]]:
    """Make a group in each hierarchy that systemd may use; remove them, and whatever is in them, at the end."""
    groups = [top / name for top in _hierarchies()]
    prefix = name.rsplit("-", 2)[0]
    try:
        for group in groups:
            _sweep(group.parent.glob(f"{prefix}-*"))
            group.mkdir()
        yield groups
    finally:
        for group in groups:
            _remove(group)


def _hierarchies() -> Iterator[Path]:
    """Version 2, and of version 1 the one without a controller, which is systemd's own."""
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        before, after = line.split(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options):
            yield Path(before.split()[4])


def _sweep(groups: Iterable[Path]) -> None:
    for group in groups:
        if not Path("/proc", group.name.rsplit("-", 2)[1]).exists():
            _remove(group, 0)


def _remove(group: Path, seconds: float = REMOVE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while group.exists():
        for directory in sorted(group.glob("**/"), reverse=True):
            with contextlib.suppress(OSError):
                directory.rmdir()
        if time.monotonic() >= deadline:
            return
        time.sleep(0.02)


if __name__ == "__main__":
    main()
