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

Whatever a waiter looks at after its fork is copied, page by page, and stays its own for as long as the application
lives. So it looks at little: the start is its child's business (`spawn`, `preparing`), what it tells is put together
from texts (`recording`), its sockets are bare descriptors, and the rest is looked at when it is needed.

Standard library only; single-threaded; nothing is imported after the fork.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from functools import partial

from pki.frozen import replace
from pki.typed import TYPE_CHECKING, NoReturn, final

assert sys.platform != "win32"

import _signal  # type: ignore[import-not-found]  # without the enumerations that `signal` makes of each number and handler
import _socket

from appserver import runlog
from appserver.fileio import OPEN_FLAGS
from appserver.kernel import outcome_from_wait_status, outcome_of_stranger
from appserver.memory import was_killed_for_memory
from appserver.outcome import Account, Lost, Outcome, Signaled
from appserver.preparing import WATCH, prepare, read_known, record_failure
from appserver.procfs import Stat, descendants, is_same_process, tree_without_parent
from appserver.recordformat import StopOrder
from appserver.recording import NUDGE, Recording
from appserver.records import RunRecord, StateFile
from appserver.signalling import kill, terminate
from appserver.spawn import explain_report, spawn

CONTROL_VERSION = 1

TRIM_SECONDS = 0.875
"""How often the log is looked at: it must be trimmed within a second of passing its bound. All waiters look at the same
moments, which takes less than half of what it takes one by one: what each needs to wake up is in the processor's caches
from the one before. A sum of powers of two, so that no rounding brings a look twice."""

SWEEP_SECONDS = 0.2
"""How often a tree that is being stopped is looked through for processes that were missed (see `signalling`)."""

KILL_SWEEP_SECONDS = 0.02
"""The same after the KILL: what is killed ends at once, unless it is stuck in the kernel or forks as fast as it
dies."""

MAX_KILL_SWEEP_SECONDS = 1.0
"""To which that pause doubles: one that is stuck may stay so for hours, and the end of any other wakes us anyway."""

MAX_ORDER_BYTES = 4096

MAX_CONNECTIONS = 4
"""One server at a time speaks to a waiter; room for one that has gone and one that asks what is going on."""

PARTING_SECONDS = 0.5
"""How long a waiter stays when a server has been told that all is over. To take it apart costs the kernel as much time
as an outcome's whole way to the cluster, and the server would wait for it: whoever is woken is put on the processor of
who woke it. A burst of ends at once is through by then, too."""

MANY_DESCRIPTORS = 256
"""More than a waiter has: it inherits none."""

if TYPE_CHECKING:
    import resource

_SIGCHLD, _SIGKILL = int(signal.SIGCHLD), int(signal.SIGKILL)

_STATE_FLAGS = os.O_RDWR | OPEN_FLAGS

DESCRIBE = b'{"order": "describe"}'
"""What every server of this version says first: known without being read."""


def wake_on_children() -> int:
    """Have the end of a child make a descriptor readable, which is returned."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    # One argument is two pages less than one with a name, which would keep Python from complaining of a full pipe. That
    # takes 65,536 ends within one look, since of those that come while nobody runs the kernel tells one, and they are
    # reaped many times as fast as anybody forks. The complaint goes into the launcher's log; nothing else happens.
    signal.set_wakeup_fd(write)
    _signal.signal(_SIGCHLD, _woken)
    return read


def _woken(_number: int, _frame: object) -> None:
    """Only a handler of its own has a signal written to the descriptor."""


@final
class Waiter:
    """Watches one main process until nobody of its tree lives.

    `wakeup` is what `wake_on_children` gave. Unless it is told to `adopt` it, the process is our child.
    """

    def __init__(self, run: Recording, listener: _socket.socket, wakeup: int) -> None:
        self._run = run
        self._listener = listener
        self._wakeup = wakeup
        self._connections: dict[int, bool] = {}
        """The descriptors of whoever is connected, and whether it asked to be told the state along with each nudge."""
        self._is_substitute = False
        self._has_news = False
        """A child has ended; from the first one on it is looked each time."""
        self._kill_sweep_seconds = KILL_SWEEP_SECONDS
        self._pidfd: int | None = None
        self._asked: set[tuple[int, int]] = set()
        self._next_trim = time.monotonic() + TRIM_SECONDS
        self._poller = select.poll()
        self._poller.register(wakeup, select.POLLIN)
        self._poller.register(listener.fileno(), select.POLLIN)

    def adopt(self) -> bool:
        """Take the place of a waiter that was killed; False where there is nothing left to watch."""
        self._is_substitute = True
        state = self._run.state
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
        while not self._run.is_over:
            self.attend(self._sleep_seconds())
            childless = self._has_news and self._reap()
            self.trim()
            if self._run.is_quiet or self._run.is_over:
                continue
            state = self._run.state
            if state.stop is not None or state.outcome is not None:
                self._advance(childless=childless)

    def attend(self, seconds: float) -> None:
        """Sleep for so long at most, and attend to whatever has come."""
        for fd, _ in self._poller.poll(seconds * 1000):
            self._attend(fd)

    def _advance(self, *, childless: bool) -> None:
        # Looking through /proc takes descriptors and memory, which may be short: it is looked again, nothing is lost.
        with contextlib.suppress(OSError):
            self._advance_stop()
            if self._is_done(childless=childless):
                self.trim(now=True)  # what was written since the last look; nobody looks after us
                self._write(gone=True, outcome=self._final_outcome())

    def part(self) -> None:
        """Stay out of the way of whoever was told the end; where nobody was, there is nothing to wait for.

        Nothing is held meanwhile: neither the lock, nor a file whose file system somebody may want to unmount.
        """
        if self._connections:
            first = 0
            for fd in sorted(self._connections):  # to hear of its end would wake the server
                os.closerange(first, fd)
                first = fd + 1
            os.closerange(first, first + MANY_DESCRIPTORS)
            time.sleep(PARTING_SECONDS)

    def close(self) -> None:
        """Hang up on everybody; nothing else is closed."""
        for fd in list(self._connections):
            self._hang_up(fd)

    def _sleep_seconds(self) -> float:
        now = time.monotonic()
        wake = self._next_trim
        stop = None if self._run.is_quiet else self._run.state.stop
        if stop is not None:
            sweep = self._kill_sweep_seconds if now >= stop.kill_at else min(SWEEP_SECONDS, stop.kill_at - now)
            wake = min(wake, now + sweep)
        return max(0.0, wake - now)

    def _attend(self, fd: int) -> None:
        if fd == self._wakeup:
            self._has_news = True
            with contextlib.suppress(BlockingIOError):
                os.read(fd, 4096)
        elif fd == self._listener.fileno():
            self._accept()
        elif fd == self._pidfd:
            self._poller.unregister(fd)
            self._stranger_ended()
        elif fd in self._connections:
            self._receive(fd)

    def _accept(self) -> None:
        try:
            # A bare descriptor: a socket of the standard library costs a hundred pages.
            fd, _ = self._listener._accept()  # type: ignore[attr-defined]  # noqa: SLF001
        except OSError:
            return  # gone again, or no descriptor: whoever wants us tries again
        os.set_blocking(fd, False)
        if len(self._connections) >= MAX_CONNECTIONS:
            self._hang_up(next(iter(self._connections)))
        self._connections[fd] = False
        self._poller.register(fd, select.POLLIN)
        self._send(fd, b'{"version": %d, "pid": %d}' % (CONTROL_VERSION, os.getpid()))

    def _receive(self, fd: int) -> None:
        try:
            data = os.read(fd, MAX_ORDER_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up(fd)
            return
        if data == DESCRIBE:
            self._describe(fd)
            return
        try:
            order = json.loads(data)
        except (ValueError, RecursionError):
            self._hang_up(fd)  # whoever speaks so is no server of ours; the outcome must not be lost over it
            return
        match order:
            case {"order": "stop", "by": str(by), "timeout_seconds": int() | float() as seconds}:
                self._take_stop_order(by, seconds)
                self._send(fd, b'{"event": "stopping"}')
            case {
                "order": "survivors",
                "policy": ("leave" | "stop") as policy,
                "stop_timeout_seconds": int() | float() as seconds,
            }:
                self._write(survivors=policy, stop_timeout_seconds=seconds)
            case {"order": "describe"}:
                self._describe(fd)

    def _describe(self, fd: int) -> None:
        self._connections[fd] = True
        self._send(fd, self._run.describe())

    def _take_stop_order(self, by: str, seconds: float) -> None:
        kill_at = time.monotonic() + seconds
        current = self._run.state.stop
        if current is None:
            self._write(stop=StopOrder(by, kill_at))
        elif kill_at < current.kill_at:
            self._write(stop=StopOrder(current.by, kill_at))

    def _reap(self) -> bool:
        """Reap whoever has ended; True if no child is left, living or dead."""
        main = None
        childless = False
        try:
            while (found := os.wait4(-1, os.WNOHANG))[0]:
                if found[0] == self._run.pid and (self._run.is_quiet or self._run.state.outcome is None):
                    main = found
        except ChildProcessError:
            childless = True
        if main is not None and not (childless and self._run.is_quiet and self._end_simply(main)):
            _, status, usage = main
            account = Account(
                user_seconds=round(usage.ru_utime, 3),
                system_seconds=round(usage.ru_stime, 3),
                max_rss_bytes=usage.ru_maxrss * 1024,
            )
            self._main_ended(outcome_from_wait_status(status), account, childless=childless)
        return childless

    def _end_simply(self, main: tuple[int, int, resource.struct_rusage]) -> bool:
        """Record and tell an end that leaves nothing to be done, as nearly all are; False where it may be another."""
        _, status, usage = main
        if os.WIFEXITED(status):
            kind = b'"kind":"exited","code":%d' % os.WEXITSTATUS(status)
        elif os.WTERMSIG(status) != _SIGKILL:  # that may have been for memory
            kind = b'"kind":"signaled","signal":%d' % os.WTERMSIG(status)
        else:
            return False
        if not self._log_fits():
            return False
        self._run.write_end(kind, round(usage.ru_utime, 3), round(usage.ru_stime, 3), usage.ru_maxrss * 1024)
        self._nudge()
        return True

    def _stranger_ended(self) -> None:
        state = self._run.state
        assert state.pid is not None
        assert state.start_ticks is not None
        assert self._pidfd is not None
        outcome = outcome_of_stranger(self._pidfd, state.pid, state.start_ticks)
        reason = "its waiter was killed, and this kernel tells nobody else how it ended"
        self._main_ended(outcome or Lost(reason), Account(), childless=False)

    def _main_ended(self, outcome: Outcome, account: Account, *, childless: bool) -> None:
        state = self._run.state
        is_kill = isinstance(outcome, Signaled) and outcome.number == signal.SIGKILL
        killed = False
        survivors = None
        try:
            killed = (
                is_kill and state.stop is None and was_killed_for_memory(state.pid or 0, kills_before=state.oom_kills)
            )
            survivors = 0 if childless else len(self._tree())
        except OSError:
            pass  # the outcome must get on record, whatever else cannot be found out
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
        # All is said at once where nobody is left and nothing is left to be done: one write, one nudge. The end of a
        # stop is told in two steps, as it always was.
        gone = childless and stop is None and self._log_fits()
        self._write(phase="ended", outcome=replace(outcome, account=account), stop=stop, gone=gone)

    def _final_outcome(self) -> Outcome | None:
        """Give the outcome as it is told after a stop: whoever outlived the main process has ended since."""
        outcome = self._run.state.outcome
        if outcome is None or outcome.account.stopped_by is None:
            return outcome
        return replace(outcome, account=replace(outcome.account, survivors=0))

    def _tree(self) -> list[Stat]:
        """List who lives of the tree."""
        if not self._is_substitute:
            return descendants(os.getpid())
        state = self._run.state
        assert state.pid is not None
        assert state.start_ticks is not None
        return tree_without_parent(state.pid, state.start_ticks)

    def _advance_stop(self) -> None:
        stop = self._run.state.stop
        if stop is not None and not self._run.state.gone:
            if time.monotonic() >= stop.kill_at:
                self._kill_sweep_seconds = min(2 * self._kill_sweep_seconds, MAX_KILL_SWEEP_SECONDS)
                kill(self._tree())
            else:
                terminate(self._tree(), self._asked)

    def _is_done(self, *, childless: bool) -> bool:
        state = self._run.state
        if state.outcome is None:
            return False
        if not self._is_substitute:
            return childless
        return state.stop is None or not self._tree()

    def trim(self, *, now: bool = False) -> None:
        """Keep the log within its bound: at its pace, or now."""
        seconds = time.monotonic()
        if now or seconds >= self._next_trim:
            self._next_trim = seconds - seconds % TRIM_SECONDS + TRIM_SECONDS
            if self._run.log_path is not None:
                try:  # noqa: SIM105  (`suppress` is a class and three functions more that each waiter looks at)
                    runlog.trim(self._run.log_path, self._run.log_max_bytes)
                except OSError:
                    pass

    def _log_fits(self) -> bool:
        return self._run.log_path is None or runlog.fits(self._run.log_path, self._run.log_max_bytes)

    def _write(self, **changes: object) -> None:
        self._run.write(**changes)
        self._nudge()

    def _nudge(self) -> None:
        for fd, is_told in list(self._connections.items()):
            self._send(fd, self._run.nudge() if is_told else NUDGE)

    def _send(self, fd: int, packet: bytes) -> None:
        try:
            os.write(fd, packet)
        except OSError:
            self._hang_up(fd)

    def _hang_up(self, fd: int) -> None:
        if self._connections.pop(fd, None) is not None:
            self._poller.unregister(fd)
            os.close(fd)


def run_waiter(record: RunRecord, listener: _socket.socket, environment: Mapping[bytes, bytes]) -> NoReturn:
    """Be the waiter of a new run: start the application, watch it, end when nobody of its tree lives.

    Ends with 1 where nothing was executed; what is on record says then whether it may be tried again. Raises OSError,
    RecordError, DamagedRecordError where there is no record.
    """
    wakeup = wake_on_children()
    state_fd = os.open(record.file("state"), _STATE_FLAGS)
    try:
        pid, told, report = spawn(partial(prepare, record, environment))  # no function to be made
    except OSError as error:
        record_failure(StateFile(record), "start-failed", f"cannot fork: {error.strerror}")
        os._exit(1)
    if told == WATCH:
        run_substitute(record, listener, wakeup)
    if told:
        run = Recording.of_new(state_fd, read_known(told))
        if report:
            _record_report(run, report)
            os._exit(1)
        run.write_ready()
    else:  # it could not be started, or somebody has killed it: on record it may be all the same
        run = Recording.of_record(record)
        if run.state.gone or run.state.pid != pid:
            os._exit(1)
    waiter = Waiter(run, listener, wakeup)
    waiter.wait()
    waiter.part()
    os._exit(0)


def _record_report(run: Recording, report: bytes) -> None:
    request = run.read_request()
    error = explain_report(request.executable, request.attributes, report)
    run.write(phase="failed", failure=(error.code, str(error)), gone=True)


def run_substitute(record: RunRecord, listener: _socket.socket, wakeup: int) -> NoReturn:
    """Be the waiter of a process that lost its own. Ends with 1 where that process has gone too."""
    waiter = Waiter(Recording.of_record(record), listener, wakeup)
    if not waiter.adopt():
        os._exit(1)
    waiter.wait()
    waiter.part()
    os._exit(0)
