"""Who lives, and who of them belongs to a main process, told by psutil: for systems without a subreaper.

A process is a member of a tree if its parent is, or if it is of the main process's session (POSIX). Parents die and
pids are used again, so membership is kept from look to look: a member that has died vouches for the children that it
left at the next two looks; afterwards they are members by themselves. Once nobody of the session lives its number
counts no more. A process that leaves both its session and its parents between two looks escapes; Linux has waiters for
that.

A look is not one moment: a parent may fork when the pids are listed already and end before its turn comes, and then
neither is seen. So a tree, or a session, has died out only when `EMPTY_LOOKS` in a row show nobody.

A creation time is absolute here, in hundredths of a second: a process of an older boot is never taken for one of ours.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Mapping
from typing import NamedTuple, final

import psutil
import trio

EMPTY_LOOKS = 2
"""Looks in a row that must show nobody: one may miss a process that was forked during it, by one that then ended."""


class Seen(NamedTuple):
    """One living process at one look; `session` is None where it is not known."""

    pid: int
    ppid: int
    created: int
    session: int | None


@final
class Tree:
    """Who belongs to a main process, from look to look. Pure; `main` is its pid and creation time."""

    def __init__(self, main: tuple[int, int]) -> None:
        self.living: dict[tuple[int, int], Seen] = {}
        self._main = main
        self._main_lives = True
        self._before = {main}
        self._empty_looks = 0
        self._empty_looks_at_session = 0

    @property
    def has_died_out(self) -> bool:
        """Whether it is certain that nobody lives."""
        return self._empty_looks >= EMPTY_LOOKS

    def main_ended(self) -> None:
        """Count the main process as dead, even where the system shows it while somebody holds it open (Windows)."""
        self._main_lives = False
        self._before.add(self._main)
        self.living.pop(self._main, None)

    def update(self, everybody: Iterable[Seen]) -> None:
        """Take in a look at all processes."""
        now = {seen.pid: seen for seen in everybody}
        known = self._before | self.living.keys()
        found = {_key(seen): seen for seen in self._look_at_session(now)}
        found |= {key: now[key[0]] for key in known if key[0] in now and _key(now[key[0]]) == key}
        parents = dict(known | found.keys())
        grown = True
        while grown:
            children = [seen for seen in now.values() if _key(seen) not in found and _is_child(seen, parents, now)]
            grown = bool(children)
            found |= {_key(seen): seen for seen in children}
            parents |= dict(map(_key, children))
        if not self._main_lives:
            found.pop(self._main, None)
        self._before = set(self.living)
        self.living = found
        self._empty_looks = 0 if found else self._empty_looks + 1

    def _look_at_session(self, now: Mapping[int, Seen]) -> list[Seen]:
        pid, created = self._main
        if pid in now and now[pid].created != created:
            self._empty_looks_at_session = EMPTY_LOOKS  # the pid is somebody else's now, and so may its session be
        if self._empty_looks_at_session >= EMPTY_LOOKS:
            return []
        members = [seen for seen in now.values() if seen.session == pid and seen.created >= created]
        self._empty_looks_at_session = 0 if members else self._empty_looks_at_session + 1
        return members


def _key(seen: Seen) -> tuple[int, int]:
    return seen.pid, seen.created


def _is_child(seen: Seen, parents: Mapping[int, int], now: Mapping[int, Seen]) -> bool:
    born = parents.get(seen.ppid)
    if born is None or seen.created < born:
        return False
    holder = now.get(seen.ppid)
    return holder is None or holder.created == born or holder.created > seen.created


@final
class Census:
    """Looks at all processes, once for all who ask at about the same time."""

    def __init__(self) -> None:
        self._lock = trio.Lock()
        self._looked_at = float("-inf")
        self._seen: list[Seen] = []

    async def look(self, max_age_seconds: float) -> list[Seen]:
        """Give what was seen at a look that began no longer ago than that. Nothing is awaited once it is known."""
        wanted = trio.current_time() - max_age_seconds
        async with self._lock:
            if self._looked_at < wanted:
                looked_at = trio.current_time()
                self._seen = await trio.to_thread.run_sync(_see_everybody)
                self._looked_at = looked_at
            return self._seen


def creation_time(pid: int) -> int | None:
    """Tell when a process was created, in hundredths of a second since 1970; None where it has gone."""
    try:
        return _created(psutil.Process(pid))
    except psutil.Error:
        return None


def is_alive(pid: int, created: int) -> bool:
    """Tell whether this very process lives; one that has ended and was not waited for does not."""
    return _find(pid, created) is not None


def end_process(pid: int, created: int, *, kill: bool) -> None:
    """Kill a process, or ask it to end; one that is not there any more, or may not be signalled, is let be."""
    with contextlib.suppress(psutil.Error):
        process = _find(pid, created)
        if process is None:
            return
        if kill:
            process.kill()
            return
        process.terminate()
        if sys.platform != "win32":
            process.resume()  # one that is stopped would not notice


def used_by(pid: int, created: int) -> tuple[float, int] | None:
    """Tell the seconds of processor time and the bytes of memory that a process uses; None where it has gone."""
    with contextlib.suppress(psutil.Error):
        process = _find(pid, created)
        if process is not None:
            times = process.cpu_times()
            return times.user + times.system, process.memory_info().rss
    return None


def _find(pid: int, created: int) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        if _created(process) != created or (sys.platform != "win32" and process.status() == psutil.STATUS_ZOMBIE):
            return None
    except psutil.Error:
        return None
    return process


def _created(process: psutil.Process) -> int:
    return round(process.create_time() * 100)


def _see_everybody() -> list[Seen]:
    found: list[Seen] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if sys.platform == "win32" or process.status() != psutil.STATUS_ZOMBIE:
                found.append(Seen(process.pid, process.ppid(), _created(process), _session(process.pid)))
    return found


def _session(pid: int) -> int | None:
    if sys.platform == "win32":
        return None
    try:
        return os.getsid(pid)
    except OSError:  # gone, or of another session where the system keeps that to itself (OpenBSD)
        return None
