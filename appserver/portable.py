"""Processes where there is no fork or pidfd (Windows, older Unix): the server is the parent, psutil tells the rest.

Only a parent learns how a process ended, and here the parent is the server. So the applications outlive a server that
dies, but their outcomes do not. The differences to the contract's table "What survives what":

    dies       process goes on   true outcome
    manager    yes               yes
    server     yes               lost: the next server finds the process again by its pid and creation time, watches
                                 and stops it, and says `Lost` when it is gone
    guest      no                lost: a creation time is absolute, so nothing of an older boot is taken for it

What the next server cannot take over is given up, never guessed: a run whose server died in the middle of its start is
lost (it may or may not execute; it is not started again under the same id), and survivors of a run that had ended are
nobody's. A stop goes on record, so the next server completes it as long as the main process lives; until there is one,
nobody does. Logs are not trimmed while no server runs. Who belongs to a tree is a matter of looking often enough: see
`census`. What a process used in all is known to nobody once it has ended.

Windows knows no TERM: a stop there ends each process at once (TerminateProcess), with exit code 15. Exit codes are
unsigned numbers of 32 bits there; only POSIX systems have ends by a signal.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import final

import trio

from appserver import runlog
from appserver.census import Census, Tree, creation_time, end_process, is_alive, used_by
from appserver.effects import Terms
from appserver.opening import open_process, outcome_from_returncode, refusal
from appserver.outcome import Account, Lost, Outcome
from appserver.processes import StartError, Usage
from appserver.procfs import boot_id
from appserver.recordformat import RecordError, Request, State, StopOrder
from appserver.records import Records, RunRecord, StateFile
from pki.frozen import replace

LOOK_SECONDS = 0.8
"""How often trees and logs are looked at: a log must be trimmed within a second of passing its bound."""

SWEEP_SECONDS = 0.2
"""How often a tree that is being stopped is looked through for processes that were not there before."""

KILL_SWEEP_SECONDS = 0.05
"""The same after the KILL: what is killed ends at once."""

WATCH_SECONDS = 0.25
"""How often it is looked whether a main process that is not our child still lives."""

_NOT_OUR_CHILD = (
    "on this system only the parent learns how a process ended, and the server that was its parent has ended"
)


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
        self._found_at = 0.0
        self._asked: set[tuple[int, int]] = set()
        self._asked_at = 0
        """When the first were asked to end, as `created` has it."""
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

    def set_terms(self, terms: Terms) -> None:
        """Say what becomes of survivors."""
        self.write(survivors=terms.survivors, stop_timeout_seconds=terms.stop_timeout_seconds)

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
        self._found_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_main)
            await self._attend(self._tree)

    async def _start(self, environment: Mapping[str, str]) -> None:
        # From here on the start has been tried, whatever becomes of this server.
        self.write(started_at=time.time(), started_monotonic=time.monotonic())
        with trio.CancelScope(shield=True):  # a process must not be left unrecorded
            try:
                child = self.child = await open_process(self._request, environment)
            except (OSError, ValueError) as error:
                self.write(phase="failed", failure=refusal(self._request, error), gone=True)
                return
        self.write(phase="running", pid=child.pid, start_ticks=creation_time(child.pid))

    def _find_again(self) -> None:
        state = self.state
        if state.phase == "ended":
            self.write(gone=True)
        elif self._request.boot != boot_id():
            self._main_ended(Lost("the guest was rebooted while it ran"), gone=True)
        elif state.pid is None:
            self._main_ended(Lost("the server ended while it was being started"), gone=True)
        elif state.start_ticks is None or not is_alive(state.pid, state.start_ticks):
            self._main_ended(Lost(_NOT_OUR_CHILD), gone=True)

    async def _watch_main(self) -> None:
        state = self.state
        if state.outcome is not None:
            return
        assert self._tree is not None
        outcome: Outcome = Lost(_NOT_OUR_CHILD)
        if self.child is not None:
            outcome = outcome_from_returncode(await self.child.wait())
        else:
            assert state.pid is not None
            assert state.start_ticks is not None
            while is_alive(state.pid, state.start_ticks):  # noqa: ASYNC110  (nothing tells of a stranger's end)
                await trio.sleep(WATCH_SECONDS)
        self._tree.main_ended()
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
            ended_at=None if gone else time.time(),
            ran_seconds=None if began is None or gone else round(time.monotonic() - began, 3),
            stopped_by=stop.by if stop else None,
            survivors=survivors,
        )
        if stop is None and survivors and state.survivors == "stop":
            stop = StopOrder("the survivors policy", time.monotonic() + state.stop_timeout_seconds)
        self.write(phase="ended", outcome=replace(outcome, account=account), stop=stop, gone=gone)

    async def _attend(self, tree: Tree) -> None:
        while not self.state.gone:
            # Asked before the look: one that began earlier proves no end, and may lack whom a signal would orphan.
            ended, stop = self.state.outcome is not None, self.state.stop
            await self._look(0 if stop else LOOK_SECONDS / 2)
            if ended and not tree.living:
                await self._look(0)
                if tree.has_died_out:
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
            return max(0.0, self._next_trim - trio.current_time())
        remaining = stop.kill_at - time.monotonic()
        return min(SWEEP_SECONDS, remaining) if remaining > 0 else KILL_SWEEP_SECONDS

    async def _look(self, max_age_seconds: float) -> None:
        assert self._tree is not None
        # A look that began before the main process did would show a tree that has gone.
        age_seconds = min(max_age_seconds, trio.current_time() - self._found_at)
        self._tree.update(await self._census.look(age_seconds))

    def _signal(self, tree: Tree, *, kill: bool) -> None:
        """End each process, or ask it to, once. Who was born after the first were asked is one by which they end."""
        first = not self._asked
        if first:
            self._asked_at = int(time.time() * 100)
        for key in tree.living:
            if kill or (key not in self._asked and (first or key[1] < self._asked_at)):
                self._asked.add(key)
                end_process(*key, kill=kill)

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
        self._early_terms: dict[str, Terms] = {}

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
            if run_id in self._early_terms:
                follower.set_terms(self._early_terms.pop(run_id))
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
        """Say what becomes of survivors; kept, too, until the run is followed."""
        if run_id in self._followers:
            self._followers[run_id].set_terms(terms)
        else:
            self._early_terms[run_id] = terms

    def is_watched(self, run_id: str) -> bool:
        """Tell that nobody is: there are no waiters here."""
        return run_id in self._followers

    def describe(self, run_id: str) -> tuple[Request | None, State] | None:
        """Tell nothing: there are no waiters here."""

    def forget(self, run_id: str) -> None:
        """Drop orders that were kept for a run that will never be followed."""
        self._early_stops.pop(run_id, None)
        self._early_terms.pop(run_id, None)

    def usage(self, pid: int, start_ticks: int | None) -> Usage | None:
        """Ask psutil what a main process uses."""
        used = used_by(pid, start_ticks) if start_ticks is not None else None
        return Usage(*used) if used is not None else None


def _open_state(record: RunRecord) -> StateFile:
    try:
        return StateFile(record)
    except RecordError as error:
        raise StartError(f"its state cannot be written: {error}") from error
