"""The server's end of the launcher: start it, start another when it dies, give it orders.

An order whose launcher died before it answered is of unknown fate. Whoever was responsible for the run holds its lock
(see `launcher`), so once the launcher is dead the lock tells: held, a waiter lives and the order was carried out; free,
nothing was started and the next launcher may try again.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import final

assert sys.platform != "win32"

import fcntl
import resource

import trio

from appserver.child import Child
from appserver.fileio import OUT_OF_RESOURCES
from appserver.records import LAUNCHER_LOCK, Records
from appserver.report import Report
from appserver.signalling import signal_process
from appserver.statelock import StateDirError

READY_SECONDS = 20
"""A fresh interpreter is ready in 50 ms; on a guest that swaps, in seconds."""

ANSWER_SECONDS = 20
"""A fork takes a millisecond. A launcher that does not answer for this long is killed and replaced."""

RESTART_SECONDS = (0.0, 0.1, 0.5, 2.0, 5.0)
"""Pauses before another launcher is started; the last one repeats. A launcher that became ready starts over."""

MAX_TRIES = 3
"""Launchers that may die over one order before the start is refused."""

LEAVE_SECONDS = 1.0
"""How long a launcher has to leave when its server lets go of it, or was killed, before it is killed: it takes a
millisecond, unless somebody has stopped it."""

FORMER_END_SECONDS = 10.0
"""How long a server waits at its start for the launcher of a former one to be gone: one that outlives its KILL for so
long is stuck in the kernel, and one that has not yet written who it is cannot be killed."""

FORMER_SECONDS = 0.02
"""How often it is looked whether it has."""

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
"""Where our packages lie: an isolated interpreter has to be told."""

_MAX_ANSWER_BYTES = 65536
_BOOTSTRAP = (
    "import os, sys; os.chdir({state_dir!r}); sys.path.append({root!r}); from appserver.launcher import main; main()"
)


class LaunchError(Exception):
    """The launcher could not do it: no memory, no processes left. Refuse the start, say why."""


@final
class Launching:
    """Owns the launcher of one state directory."""

    def __init__(self, records: Records, environment: Mapping[str, str], report: Report) -> None:
        self._records = records
        self._environment = dict(environment)
        self._report = report
        self._one_at_a_time = trio.Lock()
        self._limit = resource.getrlimit(resource.RLIMIT_NOFILE)  # before the server raises its own (`descriptors`)
        self._ready = trio.Event()
        self._process: Child | None = None
        self._orders: trio.socket.SocketType | None = None

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a launcher alive until cancelled; reports `started` at once. None of a former server may live, see
        `wait_for_former`.

        Cancelled, it closes the launcher's orders, upon which that one ends, or is killed; its waiters go on.
        """
        task_status.started()
        failures = 0
        while True:
            await trio.sleep(RESTART_SECONDS[min(failures, len(RESTART_SECONDS) - 1)])
            failures = 1 if await self._serve_one() else failures + 1

    async def order(self, verb: str, run_id: str) -> None:
        """Have the launcher `launch` or `adopt` a run; one after the other, in the order of asking.

        Returns when a waiter is responsible for the run. Raises LaunchError.
        """
        async with self._one_at_a_time:
            for _ in range(MAX_TRIES):
                answer = await self._ask({verb: run_id})
                if answer is not None:
                    if "error" in answer:
                        raise LaunchError(str(answer["error"]))
                    return
                if self.is_watched(run_id):
                    return
            raise LaunchError(f"{MAX_TRIES} launchers died over it")

    def is_watched(self, run_id: str) -> bool:
        """Tell whether a waiter, or a launcher on its behalf, is responsible for the run."""
        return is_locked(self._records.get(run_id).file("lock"), in_doubt=True)

    async def _serve_one(self) -> bool:
        """Start a launcher and wait until it is dead; tell whether it became ready."""
        was_ready = False
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            self._say_cannot_start(error)
            return False
        ours.setblocking(False)
        with ours:
            try:
                with theirs:
                    process = self._start(theirs)
            except OSError as error:
                self._say_cannot_start(error)
                return False
            try:
                self._orders = trio.socket.from_stdlib_socket(ours)
                with trio.move_on_after(READY_SECONDS):
                    was_ready = bool(await self._orders.recv(_MAX_ANSWER_BYTES))
                if was_ready:
                    with contextlib.suppress(OSError):  # gone already, which the wait below finds out
                        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, self._limit)
                    self._process = process
                    self._ready.set()
                else:
                    process.kill()
                code = await process.wait()
            finally:
                if self._ready.is_set():
                    self._ready = trio.Event()
                if self._orders is not None:
                    self._orders.close()  # wakes whoever waits for an answer
                self._process = self._orders = None
                with trio.move_on_after(2 * LEAVE_SECONDS, shield=True):
                    await _see_off(process)
                process.close()
        how = f"signal {-code}" if code < 0 else f"code {code}"
        self._report.warning(f"the launcher ended with {how}, starting another; the applications go on")
        return was_ready

    def _say_cannot_start(self, error: OSError) -> None:
        where = f"{error.filename}: " if isinstance(error.filename, str) else ""
        text = f"cannot start the launcher: {where}{error.strerror} (errno:{error.errno})"
        self._report.error(f"{text}; what runs goes on, starts are refused")

    def _start(self, orders: socket.socket) -> Child:
        # What it says goes to a file, never to our standard error: waiters inherit it and would hold the log open.
        with _private_file(os.path.join(self._records.state_dir, "launcher.log")) as log:
            bootstrap = _BOOTSTRAP.format(state_dir=self._records.state_dir, root=_ROOT)
            words = [sys.executable, "-I", "-S", "-X", "utf8", "-c", bootstrap]
            return Child(words, self._environment, (orders.fileno(), log.fileno(), log.fileno()))

    async def _ask(self, order: dict[str, str]) -> dict[str, object] | None:
        """Give one order; None where the launcher died over it, and is dead."""
        with trio.move_on_after(READY_SECONDS):
            while self._process is None:
                await self._ready.wait()
        if self._process is None:
            raise LaunchError(f"no launcher was ready within {READY_SECONDS} seconds; the log says why")
        process, orders = self._process, self._orders
        assert process is not None
        assert orders is not None
        # It is closed where the launcher is seen to be dead before its socket is: a child of its may have that open.
        with contextlib.suppress(OSError, trio.ClosedResourceError), trio.move_on_after(ANSWER_SECONDS):
            await orders.send(json.dumps(order).encode())
            while answer := await orders.recv(_MAX_ANSWER_BYTES):
                found: dict[str, object] = json.loads(answer)
                if found["run"] in order.values():
                    return found
                # Otherwise it answers an order whose asker was cancelled before it could hear this.
        process.kill()
        await process.wait()
        return None


def _private_file(path: str) -> io.FileIO:
    return io.FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb")


async def _see_off(process: Child) -> None:
    """Wait until a launcher whose orders are closed has left; kill one that does not: somebody has stopped it, and
    continued much later it might carry out an order that it has not read yet.
    """
    with trio.move_on_after(LEAVE_SECONDS):
        await process.wait()
        return
    process.kill()
    await process.wait()


async def wait_for_former(state_dir: str, report: Report) -> None:
    """Make sure that no launcher of a former server lives: it leaves by itself, or is killed.

    Raises StateDirError where it lives for `FORMER_END_SECONDS` all the same. May be cancelled at any moment.
    """
    path = os.path.join(state_dir, LAUNCHER_LOCK)
    began = trio.current_time()
    was_said = False
    while is_locked(path, in_doubt=False):  # one that cannot be opened keeps the next launcher from starting
        waited = trio.current_time() - began
        if waited >= FORMER_END_SECONDS:
            raise StateDirError(
                f"the launcher of a former server does not end, and may start applications beside ours: end whoever "
                f"holds {path} (fuser shows who), and start again"
            )
        if waited >= LEAVE_SECONDS:
            if not was_said:
                report.warning("the launcher of a former server does not leave by itself, it is killed")
                was_said = True
            _kill_holder(path)
        await trio.sleep(FORMER_SECONDS)


def _kill_holder(path: str) -> None:
    with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
        pid, start_ticks = map(int, file.read().split())
        signal_process(pid, start_ticks, signal.SIGKILL)


def is_locked(path: str, *, in_doubt: bool) -> bool:
    """Tell whether somebody holds the lock; where a bad disk, or a mode, does not let us see, it is `in_doubt`."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        return in_doubt or error.errno in OUT_OF_RESOURCES  # as long as it may be locked, nobody takes over
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return in_doubt
    finally:
        os.close(fd)
    return False
