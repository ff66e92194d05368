"""The waiter: the parent of one application, which outlives the server to record how it ended.

Only a parent can wait for a process, so each application has a parent of its own that does nothing else. It ignores
TERM, INT and HUP, makes itself subreaper, so that whatever the application leaves behind becomes its child, and goes on
until no descendant lives. What it learns goes into the state on disk first and to the server, if one listens, second:
**the record is the event**, the message on the control socket is only a nudge to read it.

The waiter also carries out stops (TERM to the tree, KILL after the time given, until nobody is left) and keeps the log
within its bound, so both go on while no server runs.

A waiter may be killed. A *substitute* then takes its place: it holds the same lock, socket and record, but is not the
parent. It learns the end from a pidfd and the outcome from the kernel where that tells strangers, else the outcome is
lost; it knows the tree by descent and session only.

Control socket (SOCK_SEQPACKET, one JSON object a packet, `CONTROL_VERSION`): the waiter greets with {"version", "pid"};
takes {"order": "stop", "by", "timeout_seconds"} and {"order": "survivors", "policy", "stop_timeout_seconds"}; sends
{"event": "state"} whenever the record has changed and {"event": "stopping"} when a stop is on record, which is the
moment from which it will be completed whatever dies but the waiter.

The files of a record may be damaged or removed while their application runs. To {"order": "describe"} the waiter
answers {"event": "record", "request", "state", "recorded"}, both as `recordformat` writes them, and gives "state" and
"recorded" with each nudge from then on; "recorded" is false where the record could not be written. A request that is
unknown (to a substitute) or too long for a packet is null.

Standard library only; single-threaded; nothing is imported after the fork.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn, final

assert sys.platform != "win32"

from appserver import runlog
from appserver.kernel import outcome_from_wait_status, outcome_of_stranger
from appserver.memory import was_killed_for_memory
from appserver.outcome import Account, Lost, Outcome, Signaled
from appserver.procfs import Stat, descendants, is_same_process, oom_kills, process_stat, tree_without_parent
from appserver.recordformat import (
    DamagedRecordError,
    RecordError,
    Request,
    StopOrder,
    request_to_json,
    state_to_json,
)
from appserver.records import RunRecord, StateFile
from appserver.signalling import kill, terminate
from appserver.spawn import SpawnError, spawn

CONTROL_VERSION = 1

TRIM_SECONDS = 0.8
"""How often the log is looked at: it must be trimmed within a second of passing its bound."""

SWEEP_SECONDS = 0.2
"""How often a tree that is being stopped is looked through for processes that were not there before."""

KILL_SWEEP_SECONDS = 0.02
"""The same after the KILL: what is killed ends at once, unless it is stuck in the kernel or forks as fast as it
dies."""

MAX_KILL_SWEEP_SECONDS = 1.0
"""To which that pause doubles: one that is stuck may stay so for hours, and the end of any other wakes us anyway."""

MAX_ORDER_BYTES = 4096
MAX_TOLD_BYTES = 160 * 1024
"""Of a record that is told: what Linux takes for one packet by default is a little more, and the longest request less.
"""

MAX_CONNECTIONS = 4
"""One server at a time speaks to a waiter; room for one that has gone and one that asks what is going on."""


@final
class Waiter:
    """Watches one main process until nobody of its tree lives. `pidfd` is given where it is not a child."""

    def __init__(self, record: RunRecord, listener: socket.socket) -> None:
        self._record = record
        self._request = _known_request(record)
        self._file = StateFile(record)
        self._listener = listener
        self._connections: dict[int, socket.socket] = {}
        self._told_all: set[int] = set()
        """The connections that asked to be told the state along with each nudge."""
        self._is_recorded = True
        self._is_substitute = False
        self._kill_sweep_seconds = KILL_SWEEP_SECONDS
        self._pidfd: int | None = None
        self._asked: set[tuple[int, int]] = set()
        self._next_trim = time.monotonic() + TRIM_SECONDS
        self._poller = select.poll()
        self._wakeup = self._watch_children()
        for fd in (self._wakeup, listener.fileno()):
            self._poller.register(fd, select.POLLIN)

    def start(self, environment: Mapping[bytes, bytes]) -> bool:
        """Start the application; False where it cannot be started, which is then on record.

        The order to launch may come twice: its launcher died before it could answer, and then our predecessor. What
        that one has started is watched, as by a substitute, and never started again.
        """
        if self._file.state.pid is not None or self._file.state.phase != "starting":
            return self.adopt()
        request = self._record.read_request()
        try:
            log_fd = runlog.open_log(request.log_path)
            try:
                if request.attributes.account is not None:
                    # Its owner may open /dev/stderr anew, as scripts do.
                    os.fchown(log_fd, request.attributes.account.uid, request.attributes.account.gid)
                added = {os.fsencode(name): os.fsencode(text) for name, text in request.attributes.environment}
                everything = {**environment, **added}
                spawn(request.executable, request.argv, everything, log_fd, self._record_pid, request.attributes)
            finally:
                os.close(log_fd)
        except (SpawnError, OSError, RecordError) as error:
            code = error.code if isinstance(error, SpawnError) else "start-failed"
            self._write(phase="failed", failure=(code, str(error)), gone=True)
            return False
        self._write(phase="running")
        return True

    def adopt(self) -> bool:
        """Take the place of a waiter that was killed; False where there is nothing left to watch."""
        self._is_substitute = True
        state = self._file.state
        if state.outcome is not None:
            return state.stop is not None  # the main process has ended, what is left of its tree is to be stopped
        if state.pid is None or state.start_ticks is None:
            return False
        try:
            self._pidfd = os.pidfd_open(state.pid)
        except ProcessLookupError:
            return False
        if not is_same_process(state.pid, state.start_ticks):
            return False
        self._poller.register(self._pidfd, select.POLLIN)
        if state.phase == "starting":
            self._write(phase="running")
        return True

    def wait(self) -> None:
        """Go on until nobody of the tree lives, or, for a substitute, until the process and its stop are done."""
        while not self._file.state.gone:
            for fd, _ in self._poller.poll(self._sleep_seconds() * 1000):
                self._attend(fd)
            childless = self._reap()
            self._trim()
            # Looking through /proc takes descriptors and memory, which may be short: it is looked again, nothing is
            # lost.
            with contextlib.suppress(OSError):
                self._advance_stop()
                if self._is_done(childless=childless):
                    self._trim(now=True)  # what was written since the last look; nobody looks after us
                    self._write(gone=True, outcome=self._final_outcome())

    def _record_pid(self, pid: int) -> None:
        """Record the main process before it executes. Raises RecordError, OSError: nothing is executed then."""
        stat = process_stat(pid)
        if stat is None:
            raise ProcessLookupError(errno.ESRCH, "the kernel does not show the new process under /proc")
        self._file.write(
            replace(
                self._file.state,
                pid=pid,
                start_ticks=stat.start_ticks,
                started_at=time.time(),
                started_monotonic=time.monotonic(),
                oom_kills=oom_kills(),
            )
        )

    @staticmethod
    def _watch_children() -> int:
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        return read

    def _sleep_seconds(self) -> float:
        now = time.monotonic()
        wake = self._next_trim
        stop = self._file.state.stop
        if stop is not None:
            sweep = self._kill_sweep_seconds if now >= stop.kill_at else min(SWEEP_SECONDS, stop.kill_at - now)
            wake = min(wake, now + sweep)
        return max(0.0, wake - now)

    def _attend(self, fd: int) -> None:
        if fd == self._wakeup:
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 4096)
        elif fd == self._listener.fileno():
            self._accept()
        elif fd == self._pidfd:
            self._poller.unregister(fd)
            self._stranger_ended()
        elif fd in self._connections:
            self._receive(self._connections[fd])

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # gone again, or no descriptor: whoever wants us tries again
        connection.setblocking(False)
        if len(self._connections) >= MAX_CONNECTIONS:
            self._hang_up(next(iter(self._connections.values())))
        self._connections[connection.fileno()] = connection
        self._poller.register(connection.fileno(), select.POLLIN)
        self._send(connection, {"version": CONTROL_VERSION, "pid": os.getpid()})

    def _receive(self, connection: socket.socket) -> None:
        try:
            data = connection.recv(MAX_ORDER_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up(connection)
            return
        try:
            order = json.loads(data)
        except (ValueError, RecursionError):
            self._hang_up(connection)  # whoever speaks so is no server of ours; the outcome must not be lost over it
            return
        match order:
            case {"order": "stop", "by": str(by), "timeout_seconds": int() | float() as seconds}:
                self._take_stop_order(by, seconds)
                self._send(connection, {"event": "stopping"})
            case {
                "order": "survivors",
                "policy": ("leave" | "stop") as policy,
                "stop_timeout_seconds": int() | float() as seconds,
            }:
                self._write(survivors=policy, stop_timeout_seconds=seconds)
            case {"order": "describe"}:
                self._told_all.add(connection.fileno())
                self._describe(connection)

    def _describe(self, connection: socket.socket) -> None:
        request = request_to_json(self._request) if self._request is not None else None
        event = {"event": "record", "request": request} | self._told_state()
        if len(_packet(event)) > MAX_TOLD_BYTES:
            event["request"] = None
        self._send(connection, event)

    def _told_state(self) -> dict[str, object]:
        return {"state": state_to_json(self._file.state), "recorded": self._is_recorded}

    def _take_stop_order(self, by: str, seconds: float) -> None:
        kill_at = time.monotonic() + seconds
        current = self._file.state.stop
        if current is None:
            self._write(stop=StopOrder(by, kill_at))
        elif kill_at < current.kill_at:
            self._write(stop=StopOrder(current.by, kill_at))

    def _reap(self) -> bool:
        """Reap whoever has ended; True if no child is left, living or dead."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if pid == self._file.state.pid and self._file.state.outcome is None:
                account = Account(
                    user_seconds=round(usage.ru_utime, 3),
                    system_seconds=round(usage.ru_stime, 3),
                    max_rss_bytes=usage.ru_maxrss * 1024,
                )
                self._main_ended(outcome_from_wait_status(status), account)

    def _stranger_ended(self) -> None:
        state = self._file.state
        assert state.pid is not None
        assert state.start_ticks is not None
        assert self._pidfd is not None
        outcome = outcome_of_stranger(self._pidfd, state.pid, state.start_ticks)
        reason = "its waiter was killed, and this kernel tells nobody else how it ended"
        self._main_ended(outcome or Lost(reason), Account())

    def _main_ended(self, outcome: Outcome, account: Account) -> None:
        state = self._file.state
        is_kill = isinstance(outcome, Signaled) and outcome.number == signal.SIGKILL
        killed = False
        survivors = None
        with contextlib.suppress(OSError):  # the outcome must get on record, whatever else cannot be found out
            killed = (
                is_kill and state.stop is None and was_killed_for_memory(state.pid or 0, kills_before=state.oom_kills)
            )
            survivors = len(self._tree()) if self._may_have_survivors() else 0
        account = replace(
            account,
            ended_at=time.time(),
            ran_seconds=round(time.monotonic() - (state.started_monotonic or time.monotonic()), 3),
            stopped_by=state.stop.by if state.stop else None,
            survivors=survivors,
            killed_for_memory=killed,
        )
        stop = state.stop
        if stop is None and state.survivors == "stop" and survivors != 0:
            stop = StopOrder("the survivors policy", time.monotonic() + state.stop_timeout_seconds)
        self._write(phase="ended", outcome=replace(outcome, account=account), stop=stop)

    def _final_outcome(self) -> Outcome | None:
        """Give the outcome as it is told after a stop: whoever outlived the main process has ended since."""
        outcome = self._file.state.outcome
        if outcome is None or outcome.account.stopped_by is None:
            return outcome
        return replace(outcome, account=replace(outcome.account, survivors=0))

    def _may_have_survivors(self) -> bool:
        if self._is_substitute:
            return True
        try:
            return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None or bool(self._tree())
        except ChildProcessError:
            return False

    def _tree(self) -> list[Stat]:
        """List who lives of the tree."""
        if not self._is_substitute:
            return descendants(os.getpid())
        state = self._file.state
        assert state.pid is not None
        assert state.start_ticks is not None
        return tree_without_parent(state.pid, state.start_ticks)

    def _advance_stop(self) -> None:
        stop = self._file.state.stop
        if stop is not None and not self._file.state.gone:
            if time.monotonic() >= stop.kill_at:
                self._kill_sweep_seconds = min(2 * self._kill_sweep_seconds, MAX_KILL_SWEEP_SECONDS)
                kill(self._tree())
            else:
                terminate(self._tree(), self._asked)

    def _is_done(self, *, childless: bool) -> bool:
        state = self._file.state
        if state.outcome is None:
            return False
        if not self._is_substitute:
            return childless
        return state.stop is None or not self._tree()

    def _trim(self, *, now: bool = False) -> None:
        if now or time.monotonic() >= self._next_trim:
            self._next_trim = time.monotonic() + TRIM_SECONDS
            if self._request is not None:
                with contextlib.suppress(OSError):
                    runlog.trim(self._request.log_path, self._request.log_max_bytes)

    def _write(self, **changes: object) -> None:
        # A record that cannot be written (it never needs room, so the disk is broken) must not end the waiter, nor keep
        # it from ending: it goes on with what it knows.
        state = replace(self._file.state, **changes)  # type: ignore[arg-type]  # checked by the fields of State
        try:
            self._file.write(state)
            self._is_recorded = True
        except RecordError:
            self._file.state = state
            self._is_recorded = False
        for fd, connection in list(self._connections.items()):
            self._send(connection, {"event": "state"} | (self._told_state() if fd in self._told_all else {}))

    def _send(self, connection: socket.socket, message: dict[str, object]) -> None:
        try:
            connection.send(_packet(message))
        except OSError:
            self._hang_up(connection)

    def _hang_up(self, connection: socket.socket) -> None:
        fd = connection.fileno()
        self._told_all.discard(fd)
        if self._connections.pop(fd, None) is not None:
            self._poller.unregister(fd)
            connection.close()


def _packet(message: dict[str, object]) -> bytes:
    return json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _known_request(record: RunRecord) -> Request | None:
    # A substitute watches on, and stops, also where nobody can tell any more what it was that was started.
    try:
        return record.read_request()
    except DamagedRecordError:
        return None


def run_waiter(record: RunRecord, listener: socket.socket, environment: Mapping[bytes, bytes]) -> NoReturn:
    """Be the waiter of a new run: start the application, watch it, end when nobody of its tree lives."""
    waiter = Waiter(record, listener)
    if waiter.start(environment):
        waiter.wait()
    os._exit(0)


def run_substitute(record: RunRecord, listener: socket.socket) -> NoReturn:
    """Be the waiter of a process that lost its own. Ends with 1 where that process has gone too."""
    waiter = Waiter(record, listener)
    if not waiter.adopt():
        os._exit(1)
    waiter.wait()
    os._exit(0)
