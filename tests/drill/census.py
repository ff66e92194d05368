"""Who lives, and what they use: looked up in /proc by the drill itself, with no help of the programs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

WAITER = "cmapp-waiter"
LAUNCHER = "cmapp-launcher"

SETTLE_SECONDS = 30.0
"""How long waiters and stopped processes may take to end on a busy machine; only a failure waits for this."""

LOOK_SECONDS = 0.1
"""How often it is looked whether they have: nothing tells whoever is not their parent."""

_RUN_LOCK = re.compile(r"/runs/([0-9a-f]+)/lock$")
_NOTES = re.compile(rb"notes=[^\s\"]*/(\d+)\b")


@dataclass(frozen=True)
class Usage:
    """What one process uses; memory in MiB, as /proc/PID/smaps_rollup has it."""

    descriptors: int
    rss: float
    pss: float
    anonymous: float

    def __str__(self) -> str:
        memory = f"RSS {self.rss:.1f}, PSS {self.pss:.1f}, anonymous {self.anonymous:.1f} MiB"
        return f"{self.descriptors} descriptors, {memory}"


def usage_of(pid: int) -> Usage:
    descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return Usage(descriptors, *(int(fields[name].split()[0]) / 1024 for name in ("Rss", "Pss", "Anonymous")))


async def wait_until(fact: Callable[[], bool], seconds: float) -> bool:
    """Wait until something is so that no event tells of; False where it was not within `seconds`."""
    with trio.move_on_after(seconds):
        while not fact():  # noqa: ASYNC110
            await trio.sleep(LOOK_SECONDS)
        return True
    return False


def name_of(pid: int) -> str | None:
    """Give a process's name; None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return None


def is_alive(pid: int, mark: str) -> bool:
    """Whether `pid` lives and has `mark` among its words, so that another's process is not taken for ours."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return mark.encode() in words.split(b"\0")  # a zombie has no words


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def waiters_of(state_dir: Path) -> dict[int, str]:
    """Find the waiters of a state directory: pid and the id of the run.

    An application that has been forked and not yet executed looks just like its waiter, but is the child of one.
    """
    found = {}
    for pid in _pids():
        if name_of(pid) == WAITER and (run_id := _run_of(pid, state_dir)) is not None:
            found[pid] = run_id
    return {pid: run_id for pid, run_id in found.items() if _parent_of(pid) not in found}


def _parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _run_of(pid: int, state_dir: Path) -> str | None:
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            link = os.readlink(f"/proc/{pid}/fd/{fd}")
            if link.startswith(str(state_dir)) and (match := _RUN_LOCK.search(link)):
                return match[1]
    except OSError:
        pass
    return None


def service_of_run(state_dir: Path, run_id: str) -> int | None:
    """Tell which service of the drill a run is one of, by the name of its notes in the record."""
    try:
        match = _NOTES.search((state_dir / "runs" / run_id / "request").read_bytes())
    except OSError:
        return None
    return int(match[1]) if match else None


def processes_in(directory: Path) -> list[int]:
    """List all processes that have the directory among their words, or work in it."""
    found = []
    for pid in _pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            works_in = os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            continue
        if pid != os.getpid() and (str(directory).encode() in words or works_in.startswith(str(directory))):
            found.append(pid)
    return found


def zombies_under(parents: set[int]) -> list[int]:
    """List the ended processes that these parents have not reaped."""
    found = []
    for pid in _pids():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] == "Z" and int(fields[1]) in parents:
            found.append(pid)
    return found
