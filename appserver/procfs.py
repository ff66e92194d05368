"""What Linux says about processes under /proc: who somebody is, who descends from whom, how a zombie ended.

A pid names whoever has it now. A process is identified by its pid *and* its start time within one boot (contract, "What
survives what"). Shared by the server, the launcher and the waiters; standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from appserver.fileio import OPEN_FLAGS, OUT_OF_RESOURCES
from pki.typed import NamedTuple

UNKNOWN_BOOT = "unknown"

_MAX_STAT_BYTES = 4096
"""Of /proc/PID/stat: 52 numbers and a name of 16 bytes are a quarter of it at most."""


class Stat(NamedTuple):
    """The fields of /proc/PID/stat that matter here; times in clock ticks, memory in pages."""

    pid: int
    state: str
    ppid: int
    session: int
    user_ticks: int
    system_ticks: int
    start_ticks: int
    rss_pages: int
    exit_code: int
    """In the form of waitpid; filled in only for a zombie, and only for whoever may trace it."""


def boot_id() -> str:
    """Name this boot of the machine; `unknown` where the kernel does not tell.

    Raises OSError where only this one look failed: a name that is not this boot's would make every run that is on
    record one of another boot.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except (FileNotFoundError, PermissionError):
        return UNKNOWN_BOOT


def process_stat(pid: int) -> Stat | None:
    """Read the state of `pid`; None where there is no such process. Raises OSError where descriptors or memory ran
    out.
    """
    try:
        # Not by a file object: the kernel gives all of it at one go, and each poll of each manager asks.
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | OPEN_FLAGS)
        try:
            text = os.read(fd, _MAX_STAT_BYTES).decode("ascii", "replace")
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in OUT_OF_RESOURCES:
            raise  # that says nothing of the process, and must not be taken for its end
        return None
    # The name in parentheses may hold anything, blanks and parentheses included: the fields start behind the last one.
    fields = text[text.rfind(")") + 2 :].split()
    # A program may end its first thread and go on in others: the kernel shows a zombie, but nobody can reap it yet.
    lives_on = fields[0] == "Z" and int(fields[17]) > 1
    return Stat(
        pid=pid,
        state="S" if lives_on else fields[0],
        ppid=int(fields[1]),
        session=int(fields[3]),
        user_ticks=int(fields[11]),
        system_ticks=int(fields[12]),
        start_ticks=int(fields[19]),
        rss_pages=int(fields[21]),
        exit_code=int(fields[49]) if len(fields) > 49 else 0,
    )


def is_same_process(pid: int, start_ticks: int) -> bool:
    """Tell whether `pid` is still the process that started at `start_ticks`, and not yet a zombie."""
    stat = process_stat(pid)
    return stat is not None and stat.start_ticks == start_ticks and stat.state not in "ZX"


def all_processes() -> Iterator[Stat]:
    """Give every process that can be seen, in no order; those that end meanwhile are left out."""
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := process_stat(int(name))) is not None:
            yield stat


def descendants(root: int, *, session: int | None = None, processes: Iterable[Stat] | None = None) -> list[Stat]:
    """List the living descendants of `root`, without `root` itself and without zombies.

    Args:
        root: the process to begin at.
        session: take in the members of this session and their descendants too, also where they have lost their parent.
        processes: the processes to look at; all of them where not given.
    """
    everybody = list(all_processes() if processes is None else processes)
    children: dict[int, list[Stat]] = {}
    for stat in everybody:
        children.setdefault(stat.ppid, []).append(stat)
    found: dict[int, Stat] = {}
    pending = list(children.get(root, ()))
    if session is not None:
        pending += [stat for stat in everybody if stat.session == session]
    while pending:
        stat = pending.pop()
        if stat.pid not in found and stat.pid != root:
            found[stat.pid] = stat
            pending += children.get(stat.pid, ())
    return [stat for stat in found.values() if stat.state not in "ZX"]


def tree_without_parent(pid: int, start_ticks: int) -> list[Stat]:
    """List who lives of the tree of a main process, itself included, by descent and session: for whoever is not its
    parent.

    Where the pid is somebody else's by now, so may be the session of that number: nobody is listed then.
    """
    main = process_stat(pid)
    if main is not None and main.start_ticks != start_ticks:
        return []
    found = descendants(pid, session=pid)
    return [main, *found] if main is not None and main.state not in "ZX" else found


def oom_kills() -> int:
    """Count the processes that this kernel has killed for memory since it booted; 0 where it does not tell."""
    try:
        with open("/proc/vmstat", "rb") as file:
            for line in file:
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0
