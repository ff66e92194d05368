"""Readings of processes from `/proc`: whose child, how much memory, how much processor. Linux only.

Memory is told in two ways. PSS counts each page by the share that a process has of it, so the sum over processes is
what they take together. The private part counts the pages that nobody else maps: what one more such process costs.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

_KIBIBYTES_OF_MEBIBYTE = 1024
_CPUCLOCK_SCHED = 2


@final
@dataclass(frozen=True, slots=True)
class Memory:
    """Memory in MiB, in the two ways of counting."""

    pss_mib: float
    private_mib: float


def memory_of(pid: int) -> Memory:
    """Read the memory of a process. Raises OSError where it is gone or not ours to look at."""
    kibibytes: dict[str, int] = {}
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if rest.endswith(" kB\n"):
                kibibytes[name] = int(rest.split()[0])
    private = kibibytes["Private_Clean"] + kibibytes["Private_Dirty"]
    return Memory(kibibytes["Pss"] / _KIBIBYTES_OF_MEBIBYTE, private / _KIBIBYTES_OF_MEBIBYTE)


def memory_together(pids: Iterable[int]) -> Memory:
    """Add up the memory of several processes. Raises OSError."""
    each = [memory_of(pid) for pid in pids]
    return Memory(sum(memory.pss_mib for memory in each), sum(memory.private_mib for memory in each))


def cpu_seconds(pid: int) -> float:
    """Read the processor time that a process has used, threads that have ended included, to the nanosecond.

    Raises OSError where it is gone.
    """
    return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)  # what clock_getcpuclockid(3) makes of a pid


def descendants(root: int) -> set[int]:
    """Find all that live under a process, itself left out, zombies included."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(_stat(int(name))[1]), []).append(int(name))
    found: set[int] = set()
    waiting = [root]
    while waiting:
        new = children.get(waiting.pop(), [])
        found.update(new)
        waiting += new
    return found


def without_zombies(pids: Iterable[int]) -> set[int]:
    """Leave out those that have ended, reaped or not."""
    living = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            if _stat(pid)[0] not in {"Z", "X"}:
                living.add(pid)
    return living


def name_of(pid: int) -> str:
    """Read the name that a process gave itself, or that of its program; empty where it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
        return file.read().rstrip("\n")
    return ""


def available_mib() -> float:
    """Tell how much memory could be had without swapping."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / _KIBIBYTES_OF_MEBIBYTE
    raise OSError("/proc/meminfo does not tell MemAvailable")


def _stat(pid: int) -> list[str]:
    # From the state on: the name before it, in parentheses, may hold anything. [0] state, [1] parent.
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()
