"""Stop every application of a guest: `cmappserver --stop-all`, for the shutdown of the system or for an administrator.

It needs no server and disturbs none. The records say what there is, and the waiters carry the stops out, as they do for
a server; one that runs hears of the ends from them, and tells its managers. Where a waiter was killed, nobody would
carry out the stop while no server runs, so the tree is signalled from here.

    the run is over, or of another boot    nothing to be done
    somebody holds its lock                order the waiter to stop it, and wait
    nobody does, nothing was executed      nothing to be done, once no launcher can be at it any more
    nobody does, its tree lives            TERM to each process, KILL when the time is up

Meanwhile nothing is started (`closing`); what was on the way is found, since the records are looked through until
nothing is left.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from typing import final

assert sys.platform != "win32"

from appserver.closing import closed
from appserver.control import connect
from appserver.launching import is_locked
from appserver.outcome import describe
from appserver.procfs import UNKNOWN_BOOT, boot_id, tree_without_parent
from appserver.recordformat import DamagedRecordError, State
from appserver.records import LAUNCHER_LOCK, Records, RunRecord
from appserver.report import Report
from appserver.signalling import kill, terminate
from appserver.statelock import StateDirError, check_state_dir

LOOK_SECONDS = 0.05
"""How often it is looked who still lives."""

GRACE_SECONDS = 10.0
"""After the last KILL: what the kernel does not let go of by then is reported, and left to it."""

TELL_SECONDS = 10.0
"""How often it is said whom we wait for."""

_MAX_EVENT_BYTES = 4096
"""Only whether there is an event matters; what is too long for this is cut."""


def stop_all(state_dir: str, seconds: float, report: Report, *, until_boot: bool) -> bool:
    """Stop what runs, and what applications have left behind; tell whether nobody is left. Blocks.

    Each run has its own stop timeout between TERM and KILL, as its manager set it, but `seconds` at most; so this ends
    within `seconds` and `GRACE_SECONDS`. With `until_boot` nothing is started any more. Raises StateDirError.
    """
    check_state_dir(state_dir)
    if not os.path.isdir(state_dir):
        report.info(f"nothing to stop: there is no {state_dir}")
        return True
    by = "the shutdown of the guest" if until_boot else "cmappserver --stop-all in the guest"
    try:
        with closed(state_dir, until_boot=until_boot), contextlib.closing(_Everything(state_dir, seconds, by)) as all_:
            return _stop(all_, seconds, report)
    except OSError as error:
        raise StateDirError(
            f"the state directory {state_dir} cannot be used: {error.strerror} (errno:{error.errno})"
        ) from error


def _stop(everything: _Everything, seconds: float, report: Report) -> bool:
    deadline = time.monotonic() + seconds + GRACE_SECONDS
    left = everything.advance(report)
    if not left:
        report.info("nothing to stop: no application runs")
        return True
    report.info(f"stopping {_count(left)}: TERM now, KILL after the stop timeout of each, {seconds:g} s at most")
    tell_at = time.monotonic() + TELL_SECONDS
    while left and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
        left = everything.advance(report)
        if left and time.monotonic() >= tell_at:
            tell_at += TELL_SECONDS
            report.info(f"still waiting for {_count(left)}: {'; '.join(left[:3])}{'; ...' if len(left) > 3 else ''}")
    for name in left:
        report.error(f"{name} cannot be stopped: a process of it is stuck in the kernel, or may not be signalled")
    if not left:
        report.info("every application has been stopped")
    return not left


def _count(names: list[str]) -> str:
    return "1 application" if len(names) == 1 else f"{len(names)} applications"


@final
class _Everything:
    """All runs on record, those that come to be there included."""

    def __init__(self, state_dir: str, seconds: float, by: str) -> None:
        self._records = Records(state_dir)
        self._launcher_lock = os.path.join(state_dir, LAUNCHER_LOCK)
        self._seconds = seconds
        self._by = by
        self._here = boot_id()
        self._runs: dict[str, _Ending] = {}
        self._over: set[str] = set()

    def advance(self, report: Report) -> list[str]:
        """Do for each run what is to be done now; give the names of those that are not over yet."""
        # Asked before the records are read: nobody takes up again what is seen unexecuted after that.
        may_launch = is_locked(self._launcher_lock, in_doubt=False)
        for record in self._records.all() if os.path.isdir(os.path.join(self._records.state_dir, "runs")) else []:
            if record.run_id not in self._over and record.run_id not in self._runs:
                self._runs[record.run_id] = _Ending(record, self._seconds, self._by, self._here)
        for run_id, run in list(self._runs.items()):
            if run.advance(may_launch=may_launch):
                run.close()
                self._over.add(run_id)
                del self._runs[run_id]
                if run.was_asked:
                    report.info(f"stopped {run.name()}: {run.fate()}")
        return [run.name() for run in self._runs.values()]

    def close(self) -> None:
        for run in self._runs.values():
            run.close()


@final
class _Ending:
    """One run on its way to its end."""

    def __init__(self, record: RunRecord, seconds: float, by: str, here: str) -> None:
        self._record = record
        self._seconds = seconds
        self._by = by
        self._here = here
        self._connection: socket.socket | None = None
        self._kill_at: float | None = None
        self._signalled: set[tuple[int, int]] = set()
        self.was_asked = False

    def advance(self, *, may_launch: bool) -> bool:
        """Do what is to be done now; True where nobody of it lives."""
        state = self._read()
        if state is not None and (state.gone or state.phase == "failed" or self._is_of_another_boot(state)):
            return True
        if is_locked(self._record.file("lock"), in_doubt=False):
            self._order(state)  # also where the record is damaged: its waiter knows what it is about
            return False
        state = self._read()  # its waiter may have finished in between
        if state is None or state.gone:
            return True
        if state.pid is None or state.start_ticks is None:
            return not may_launch
        return self._signal(state, state.pid, state.start_ticks)

    def name(self) -> str:
        """Say whose it is."""
        try:
            return f"{self._record.read_request().service.describe()}, run {self._record.run_id}"
        except DamagedRecordError:
            return f"run {self._record.run_id}"

    def fate(self) -> str:
        """Say how it ended, as far as that is on record."""
        state = self._read()
        return describe(state.outcome) if state is not None and state.outcome is not None else "nobody saw how it ended"

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _read(self) -> State | None:
        """Read what became of it; None where the record is damaged, or removed."""
        try:
            return self._record.read_state()
        except DamagedRecordError:
            return None

    def _is_of_another_boot(self, state: State) -> bool:
        try:
            boot: str | None = self._record.read_request().boot
        except DamagedRecordError:
            boot = state.boot
        return boot is not None and UNKNOWN_BOOT not in {boot, self._here} and boot != self._here

    def _timeout(self, state: State | None) -> float:
        return min(state.stop_timeout_seconds, self._seconds) if state is not None else self._seconds

    def _order(self, state: State | None) -> None:
        if self._connection is None:
            order = {"order": "stop", "by": self._by, "timeout_seconds": self._timeout(state)}
            try:
                self._connection = connect(self._record)
                self._connection.send(json.dumps(order).encode())
                self.was_asked = True
            except OSError:
                self.close()  # it starts or ends at this moment, or serves too many: tried again at the next look
                return
        try:
            while self._connection.recv(_MAX_EVENT_BYTES):
                pass
            self.close()
        except BlockingIOError:
            pass  # all nudges heard: it works at it
        except OSError:
            self.close()

    def _signal(self, state: State, pid: int, start_ticks: int) -> bool:
        tree = tree_without_parent(pid, start_ticks)
        if not tree:
            return True
        self.was_asked = True
        self._kill_at = self._kill_at or time.monotonic() + self._timeout(state)
        if time.monotonic() >= self._kill_at:
            kill(tree)
        else:
            terminate(tree, self._signalled)
        return False
