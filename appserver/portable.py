"""Processes where there is no fork or pidfd (Windows, older Unix): the server itself is the parent, psutil tells the rest.

Only a parent learns how a process ended, and here the parent is the server. So the applications outlive a server that dies,
but their outcomes do not. The differences to the contract's table "What survives what":

    dies       process goes on   true outcome
    manager    yes               yes
    server     yes               lost: the next server finds the process again by its pid and creation time, watches and
                                 stops it, and says `Lost` when it is gone
    guest      no                lost: a creation time is absolute, so nothing of an older boot is taken for it

What the next server cannot take over is given up, never guessed: a run whose server died in the middle of its start is lost
(it may or may not execute; it is not started twice under the same id), and survivors of a run that had ended are nobody's. A
stop goes on record, so the next server completes it as long as the main process lives. Logs are not trimmed while no server runs.

The tree. A process is a member if its parent is, or if it is of the main process's session (POSIX). Parents die and pids are
used again, so membership is kept from look to look: a member that was alive at the last look still vouches, once, for
children that it left; afterwards they are members by themselves. A process that does both between two looks, leaving session
and parent, escapes; Linux has waiters for that. Once nobody of the session lives its number counts no more.

Windows knows no TERM: a stop there ends each process at once (TerminateProcess), with exit code 15. Exit codes are unsigned
numbers of 32 bits there; only POSIX systems have ends by a signal.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple, final

import psutil
import trio

from appserver import runlog
from appserver.outcome import MAX_EXIT_CODE, Account, Exited, Lost, Outcome, Signaled
from appserver.processes import StartError, Usage
from appserver.procfs import boot_id
from appserver.records import RecordError, Records, Request, RunRecord, State, StateFile, StopOrder
from appserver.services import Terms

LOOK_SECONDS = 0.8
"""How often trees and logs are looked at: a log must be trimmed within a second of passing its bound."""

SWEEP_SECONDS = 0.2
"""How often a tree that is being stopped is looked through for processes that were not there before."""

KILL_SWEEP_SECONDS = 0.05
"""The same after the KILL: what is killed ends at once."""

WATCH_SECONDS = 0.25
"""How often it is looked whether a main process that is not our child still lives."""

_REFUSALS = {
    errno.ENOENT: ("no-such-command", "there is no such command, or its interpreter is missing"),
    errno.ENOTDIR: ("no-such-command", "a part of the path is not a directory"),
    errno.EACCES: ("not-executable", "permission denied"),
    errno.ENOEXEC: ("start-failed", "it is neither a binary of this machine nor a script with a #! line"),
}
_NOT_OUR_CHILD = (
    "on this system only the parent learns how a process ended, and the server that was its parent has ended"
)


class Seen(NamedTuple):
    """One living process at one look; `created` is its creation time in hundredths of a second, `session` None where unknown."""

    pid: int
    ppid: int
    created: int
    session: int | None


@final
class Tree:
    """Who belongs to a main process, from look to look. Pure; `main` is its pid and creation time."""

    def __init__(self, main: tuple[int, int]) -> None:
        self._main = main
        self._session_lives = True
        self.living: dict[tuple[int, int], Seen] = {}
        self._vouchers = {main}

    def update(self, everybody: Iterable[Seen]) -> None:
        """Take in a look at all processes."""
        now = {seen.pid: seen for seen in everybody}
        holder = now.get(self._main[0])
        if holder is not None and holder.created != self._main[1]:
            self._session_lives = False  # the pid is somebody else's now, and so may its session be
        session = [seen for seen in now.values() if self._session_lives and self._is_of_session(seen)]
        self._session_lives = bool(session)
        self.living = {(seen.pid, seen.created): seen for seen in session}
        self.living |= {key: now[key[0]] for key in self._vouchers if key[0] in now and now[key[0]].created == key[1]}
        parents = dict(self._vouchers | self.living.keys())
        grown = True
        while grown:
            children = [seen for seen in now.values() if self._is_child(seen, parents, now)]
            grown = bool(children)
            self.living |= {(seen.pid, seen.created): seen for seen in children}
            parents |= {seen.pid: seen.created for seen in children}
        self._vouchers = set(self.living)

    def _is_of_session(self, seen: Seen) -> bool:
        return seen.session == self._main[0] and seen.created >= self._main[1]

    def _is_child(self, seen: Seen, parents: Mapping[int, int], now: Mapping[int, Seen]) -> bool:
        born = parents.get(seen.ppid)
        if born is None or seen.created < born or (seen.pid, seen.created) in self.living:
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


@final
class _Follower:
    """Follows one run. `child` is its main process where this server started it already and let go of it."""

    def __init__(
        self,
        request: Request,
        file: StateFile,
        census: Census,
        changed: Callable[[State], None],
        stopping: Callable[[], None],
        child: trio.Process | None,
    ) -> None:
        self._request = request
        self._file = file
        self.state = file.state
        self._census = census
        self._changed = changed
        self._stopping = stopping
        self.child = child
        self._tree: Tree | None = None
        self._asked: set[tuple[int, int]] = set()
        self._next_trim = trio.current_time() + LOOK_SECONDS
        self._wake = trio.Event()

    def order_stop(self, by: str, timeout_seconds: float) -> None:
        """Have the tree stopped; the shorter of two times wins."""
        kill_at = time.monotonic() + timeout_seconds
        current = self.state.stop
        if current is None or kill_at < current.kill_at:
            self.write(stop=StopOrder(current.by if current else by, kill_at))
        self._stopping()
        self._wake.set()

    async def follow(self, environment: Mapping[str, str]) -> None:
        """Start or find the process, then go on until nobody of its tree lives."""
        self._changed(self.state)
        if self.state.phase == "starting" and self.state.started_at is None:
            await self._start(environment)
        elif not self.state.gone and self.child is None:
            self._find_again()
        if self.state.gone:
            return
        assert self.state.pid is not None
        self._tree = Tree((self.state.pid, self.state.start_ticks or 0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_main)
            await self._attend(self._tree)

    async def _start(self, environment: Mapping[str, str]) -> None:
        # From here on the start has been tried, whatever becomes of this server.
        self.write(started_at=time.time(), started_monotonic=time.monotonic())
        with trio.CancelScope(shield=True):  # a process must not be left unrecorded
            try:
                self.child = await _open_process(self._request, environment)
            except (OSError, ValueError) as error:
                self.write(phase="failed", failure=_refusal(self._request.executable, error), gone=True)
                return
        with contextlib.suppress(psutil.Error):
            self.write(pid=self.child.pid, start_ticks=_created(psutil.Process(self.child.pid)))
        self.write(phase="running", pid=self.child.pid)

    def _find_again(self) -> None:
        state = self.state
        if state.phase == "ended":
            self.write(gone=True)
        elif self._request.boot != boot_id():
            self._main_ended(Lost("the guest was rebooted while it ran"), gone=True)
        elif state.pid is None:
            self._main_ended(Lost("the server ended while it was being started"), gone=True)
        elif state.start_ticks is None or _find(state.pid, state.start_ticks) is None:
            self._main_ended(Lost(_NOT_OUR_CHILD), gone=True)

    async def _watch_main(self) -> None:
        state = self.state
        if state.outcome is not None:
            return
        outcome: Outcome = Lost(_NOT_OUR_CHILD)
        if self.child is not None:
            outcome = outcome_from_returncode(await self.child.wait())
        else:
            assert state.pid is not None
            assert state.start_ticks is not None
            while _find(state.pid, state.start_ticks) is not None:
                await trio.sleep(WATCH_SECONDS)
        with trio.CancelScope(shield=True):  # an outcome that is known must get on record
            await self._look(0)
        self._main_ended(outcome)
        self._wake.set()

    def _main_ended(self, outcome: Outcome, *, gone: bool = False) -> None:
        state = self.state
        stop = state.stop
        survivors = len(self._tree.living) if self._tree is not None else None
        began = state.started_monotonic
        account = Account(
            ended_at=time.time(),
            ran_seconds=None if began is None or gone else round(time.monotonic() - began, 3),
            stopped_by=stop.by if stop else None,
            survivors=survivors,
        )
        if stop is None and survivors and state.survivors == "stop":
            stop = StopOrder("the survivors policy", time.monotonic() + state.stop_timeout_seconds)
        self.write(phase="ended", outcome=replace(outcome, account=account), stop=stop, gone=gone)

    async def _attend(self, tree: Tree) -> None:
        while not self.state.gone:
            ended = self.state.outcome is not None  # asked before the look, which takes a while
            await self._look((SWEEP_SECONDS if self.state.stop else LOOK_SECONDS) / 2 if not ended else 0)
            stop = self.state.stop
            if ended and not tree.living:
                self.write(gone=True)
                return
            if stop is not None:
                self._signal(tree, kill=time.monotonic() >= stop.kill_at)
            if trio.current_time() >= self._next_trim:
                self._next_trim = trio.current_time() + LOOK_SECONDS
                with contextlib.suppress(OSError):
                    await trio.to_thread.run_sync(runlog.trim, self._request.log_path, self._request.log_max_bytes)
            with trio.move_on_after(self._pause_seconds()):
                await self._wake.wait()
            self._wake = trio.Event()

    def _pause_seconds(self) -> float:
        stop = self.state.stop
        if stop is None:
            return LOOK_SECONDS
        remaining = stop.kill_at - time.monotonic()
        return min(SWEEP_SECONDS, remaining) if remaining > 0 else KILL_SWEEP_SECONDS

    async def _look(self, max_age_seconds: float) -> None:
        assert self._tree is not None
        self._tree.update(await self._census.look(max_age_seconds))

    def _signal(self, tree: Tree, *, kill: bool) -> None:
        for key in tree.living:
            with contextlib.suppress(psutil.Error):
                process = _find(*key)
                if process is not None and kill:
                    process.kill()
                elif process is not None and key not in self._asked:
                    self._asked.add(key)
                    process.terminate()
                    if sys.platform != "win32":
                        process.resume()  # one that is stopped would not notice

    def write(self, **changes: object) -> None:
        """Put changes on record and tell of them; a disk that is broken must not end the watch."""
        self.state = replace(self.state, **changes)  # type: ignore[arg-type]  # checked by the fields of State
        with contextlib.suppress(RecordError):
            self._file.write(self.state)
        self._changed(self.state)


@final
class PortableProcesses:
    """`Processes` with the server as the parent; `environment` is what applications get."""

    def __init__(self, records: Records, environment: Mapping[str, str]) -> None:
        self._records = records
        self._environment = dict(environment)
        self._census = Census()
        self._followers: dict[str, _Follower] = {}
        self._let_go: dict[str, trio.Process] = {}
        self._early_stops: dict[str, tuple[str, float]] = {}

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Do nothing until cancelled: there is no launcher to be kept."""
        task_status.started()
        await trio.sleep_forever()

    async def follow(self, run_id: str, *, changed: Callable[[State], None], stopping: Callable[[], None]) -> None:
        """Follow a run to its end; see `Processes.follow`. Raises StartError, DamagedRecordError."""
        record = self._records.get(run_id)
        request, file = record.read_request(), _open_state(record)
        follower = _Follower(request, file, self._census, changed, stopping, self._let_go.pop(run_id, None))
        self._followers[run_id] = follower
        try:
            if run_id in self._early_stops:
                follower.order_stop(*self._early_stops.pop(run_id))
            await follower.follow(self._environment)
        finally:
            del self._followers[run_id]
            file.close()
            if follower.child is not None and follower.state.outcome is None:
                self._let_go[run_id] = follower.child  # whoever follows it again in this server is told how it ended

    def order_stop(self, run_id: str, by: str, timeout_seconds: float) -> None:
        """Stop a tree. An order that comes before its run is followed is kept until it is."""
        if run_id in self._followers:
            self._followers[run_id].order_stop(by, timeout_seconds)
        else:
            self._early_stops[run_id] = (by, timeout_seconds)

    def set_terms(self, run_id: str, terms: Terms) -> None:
        """Say what becomes of survivors; where the run is not followed there are none."""
        if run_id in self._followers:
            self._followers[run_id].write(survivors=terms.survivors, stop_timeout_seconds=terms.stop_timeout_seconds)

    def usage(self, pid: int, start_ticks: int | None) -> Usage | None:
        """Ask psutil what a main process uses."""
        process = _find(pid, start_ticks) if start_ticks is not None else None
        if process is None:
            return None
        try:
            times = process.cpu_times()
            return Usage(times.user + times.system, process.memory_info().rss)
        except psutil.Error:
            return None


def outcome_from_returncode(code: int) -> Outcome:
    """Translate what subprocess gives: a negative number is a signal on POSIX, a code of 32 bits read as signed on Windows."""
    if code < 0 and sys.platform != "win32":
        return Signaled(-code)
    return Exited(code & MAX_EXIT_CODE)


async def _open_process(request: Request, environment: Mapping[str, str]) -> trio.Process:
    log_fd = _open_log(request.log_path)
    try:
        if sys.platform == "win32":
            return await trio.lowlevel.open_process(
                request.argv,
                executable=request.executable,
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                cwd=os.environ.get("SystemDrive", "C:") + "\\",
                env=environment,
                creationflags=subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW,
            )
        return await trio.lowlevel.open_process(
            request.argv,
            executable=request.executable,
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            cwd="/",
            env=environment,
            umask=0o022,
            start_new_session=True,
        )
    finally:
        os.close(log_fd)


def _open_log(path: str) -> int:
    if sys.platform != "win32":
        return runlog.open_log(path)
    # The C library's O_APPEND is not inherited there, and a child would write on where the log was before it was trimmed:
    # only a handle that may append and nothing else always writes to the end.
    import _winapi
    import msvcrt

    append_data, synchronize, share_all, open_always = 0x4, 0x100000, 0x7, 4
    handle = _winapi.CreateFile(path, append_data | synchronize, share_all, 0, open_always, 0, 0)
    return msvcrt.open_osfhandle(handle, os.O_APPEND)


def _open_state(record: RunRecord) -> StateFile:
    try:
        return StateFile(record)
    except RecordError as error:
        raise StartError(f"its state cannot be written: {error}") from error


def _refusal(executable: str, error: OSError | ValueError) -> tuple[str, str]:
    number = error.errno if isinstance(error, OSError) else None
    if os.path.isdir(executable):
        return "is-a-directory", f"{executable!r} is a directory, a command was expected"
    if number is None:
        return "start-failed", f"{executable!r} cannot be executed: {error}"
    code, text = _REFUSALS.get(number, ("start-failed", os.strerror(number)))
    return code, f"{executable!r} cannot be executed: {text} (errno:{number})"


def _created(process: psutil.Process) -> int:
    return round(process.create_time() * 100)


def _find(pid: int, created: int) -> psutil.Process | None:
    """Find a living process by its identity; one that has ended and was not waited for does not live."""
    try:
        process = psutil.Process(pid)
        if _created(process) != created or (sys.platform != "win32" and process.status() == psutil.STATUS_ZOMBIE):
            return None
    except psutil.Error:
        return None
    return process


def _see_everybody() -> list[Seen]:
    found: list[Seen] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            session = None
            if sys.platform != "win32":
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                session = os.getsid(process.pid)
            found.append(Seen(process.pid, process.ppid(), _created(process), session))
    return found
