"""The server's end of a waiter: follow one run from its start, or from where a former server left it, to its end.

The record is the event. A follower reads the state, tells it, and waits for the waiter's nudge. A waiter that says its
state along with the nudge has written it first, so that is what a look at the record would find, and there is none; one
that does not has the record read again. When the waiter is gone, and had not told that all is over, the follower reads
once more, and then the lock and the state say what to do:

    the tree is gone                    the run is over
    nothing was executed                launch it (again)
    the main process lives              a substitute waiter adopts it
    it does not, and no outcome stands  ask the kernel, through a pidfd that was opened while it lived; else it is lost

A process just started and one found again after a restart take the same path. Orders (stop, terms) are kept until the
waiter has confirmed them, and given again to each waiter that takes over.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import final

from pki.frozen import replace

assert sys.platform != "win32"

import trio

from appserver.control import DESCRIBE, MAX_EVENT_BYTES, Told, connect, read_told
from appserver.effects import Terms
from appserver.fileio import OUT_OF_RESOURCES
from appserver.kernel import outcome_of_stranger
from appserver.launching import LaunchError, Launching
from appserver.outcome import Account, Lost
from appserver.procfs import is_same_process, tree_without_parent
from appserver.recordformat import DamagedRecordError, RecordError, State, StopOrder, UnreadableRecordError
from appserver.records import RunRecord, StateFile

WAITER_END_SECONDS = 5.0
"""A waiter that has hung up ends within a millisecond; only one that was stopped by a debugger takes longer."""

RETRY_SECONDS = 0.1
"""Pause before a waiter that holds its lock but cannot be reached is tried again, and while no descriptors are to be
had."""

ADOPT_RETRY_SECONDS = 2.0
"""Pause before another substitute is asked for where the launcher could not make one, or the last one died too."""

MAX_LAUNCHES = 3
"""Waiters that may die before they have executed anything, until the start is refused: a machine that cannot keep one
alive would go on forking for ever."""

_NUDGE: dict[str, object] = {"event": "state"}
"""What a waiter says where the record tells more, and what somebody says who cannot be understood: read it."""


class _CannotLook(Exception):
    """No descriptor, or no memory, to read a record with: that says nothing of the run. Try again later."""


@final
class Follower:
    """Follows one run, and gives orders to whoever watches it; those that come before it follows are kept."""

    def __init__(self, record: RunRecord, launching: Launching) -> None:
        self._record = record
        self._launching = launching
        self._changed: Callable[[State], None] = _nobody_cares
        self._stopping: Callable[[], None] = _nobody_cares
        self._connection: socket.socket | None = None
        self._stop: dict[str, object] | None = None
        self._terms: dict[str, object] | None = None
        self._pidfd: int | None = None
        self._told: State | None = None
        self._heard: Told | None = None
        """What the waiter itself told last: it counts where the record cannot be read, or written."""
        self._launches = 0
        self._adoptions = 0

    def order_stop(self, by: str, timeout_seconds: float) -> None:
        """Have the tree stopped; of several orders the shortest time wins."""
        self._stop = {"order": "stop", "by": by, "timeout_seconds": timeout_seconds}
        self._send(self._stop)

    def set_terms(self, terms: Terms) -> None:
        """Say what becomes of survivors."""
        seconds = terms.stop_timeout_seconds
        self._terms = {"order": "survivors", "policy": terms.survivors, "stop_timeout_seconds": seconds}
        self._send(self._terms)

    async def follow(self, changed: Callable[[State], None], stopping: Callable[[], None]) -> None:
        """Follow the run until nobody of its tree lives. Cancelled, it lets go of the run, which goes on.

        `changed` is called with each new state, `stopping` when a stop is certain to be completed. Raises LaunchError
        where the run could not be started, DamagedRecordError where its state cannot be read.
        """
        self._changed, self._stopping = changed, stopping
        try:
            while not await self._advance():
                pass
        finally:
            if self._pidfd is not None:
                os.close(self._pidfd)

    async def _advance(self) -> bool:
        """Hear one waiter out, or find another one; True where the run is over."""
        try:
            if self._look().gone:
                return True
            if await self._listen():
                return self._told is not None and self._told.gone
            if not self._launching.is_watched(self._record.run_id):
                # Look again: a waiter may have finished between the look and the lock. That the look found descriptors
                # to be had also means that what is asked about the process now is answered.
                state = self._look()
                return state.gone or await self._replace_waiter(state)
        except _CannotLook:
            await trio.sleep(RETRY_SECONDS)
        except OSError as error:
            if error.errno not in OUT_OF_RESOURCES:
                raise
            await trio.sleep(RETRY_SECONDS)
        return False

    def _look(self) -> State:
        return self._take(self._read())

    def _take(self, state: State) -> State:
        """Tell a state, where it is news."""
        if self._pidfd is None and state.phase == "running" and state.pid is not None and state.start_ticks is not None:
            self._pidfd = _open_pidfd(state.pid, state.start_ticks)
        if state != self._told:
            self._told = state
            self._changed(state)
        return state

    def _read(self) -> State:
        heard = self._heard
        try:
            state = self._record.read_state()
        except DamagedRecordError as error:
            if isinstance(error, UnreadableRecordError) and error.number in OUT_OF_RESOURCES:
                raise _CannotLook from error
            if heard is None:
                raise
            return heard.state
        return state if heard is None or heard.is_recorded else heard.state

    async def _listen(self) -> bool:
        """Hear the waiter out, or until it tells that the run is over; False where there was none to be reached."""
        try:
            connection = connect(self._record)
        except OSError:
            await trio.sleep(RETRY_SECONDS if self._launching.is_watched(self._record.run_id) else 0)
            return False
        pidfd = None
        try:
            self._connection = connection
            with contextlib.suppress(OSError):
                connection.send(DESCRIBE)
            for order in (self._terms, self._stop):
                if order is not None:
                    self._send(order)
            is_behind = False
            while event := await (self._receive_soon if is_behind else self._receive)(connection):
                if "pid" in event and pidfd is None:
                    with contextlib.suppress(OSError):
                        pidfd = os.pidfd_open(int(str(event["pid"])))
                state = self._hear(event)
                is_behind = state is None
                if state is not None and state.gone:
                    return True
            if pidfd is not None:
                with trio.move_on_after(WAITER_END_SECONDS):
                    await trio.lowlevel.wait_readable(pidfd)
            return pidfd is not None
        finally:
            self._connection = None
            for fd in (connection.detach(), pidfd):
                if fd is not None:
                    trio.lowlevel.notify_closing(fd)
                    os.close(fd)

    def _hear(self, event: dict[str, object]) -> State | None:
        """Tell what an event says or points to; None where it only points to the record, which cannot be read now.

        The connection is kept then: whoever waits at the door would have its descriptor, and the end not be heard.
        """
        told = read_told(event)
        self._heard = told or self._heard
        if event.get("event") == "stopping":
            self._stop = None
            self._stopping()
        # One of several that wait to be read may be older than what was read from the disk since: the newest comes
        # last, and none of them takes back what was told.
        try:
            return self._look() if told is None else self._take(told.state)
        except _CannotLook:
            return None

    @staticmethod
    async def _receive(connection: socket.socket) -> dict[str, object] | None:
        while True:
            try:
                data = connection.recv(MAX_EVENT_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(connection)
                continue
            except OSError:
                return None
            if not data:
                return None
            try:
                event: object = json.loads(data)
            except ValueError:
                return _NUDGE
            return event if isinstance(event, dict) else _NUDGE

    async def _receive_soon(self, connection: socket.socket) -> dict[str, object] | None:
        """Give what the waiter says within the pause after which the record is read again, or a nudge to do that."""
        with trio.move_on_after(RETRY_SECONDS):
            return await self._receive(connection)
        return _NUDGE

    def _send(self, order: dict[str, object]) -> None:
        # One that cannot be delivered is given again to the next waiter: `_listen` does so on each new connection.
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.send(json.dumps(order).encode())

    async def _replace_waiter(self, state: State) -> bool:
        """Find the run another waiter; True where there is nothing left to wait for, which has been told then."""
        if state.phase == "ended":
            return await self._replace_for_survivors(state)
        if state.pid is None or state.start_ticks is None:
            if self._launches == MAX_LAUNCHES:
                raise LaunchError(f"{MAX_LAUNCHES} waiters died before they could start it")
            self._launches += 1
            await self._launching.order("launch", self._record.run_id)
        elif is_same_process(state.pid, state.start_ticks):
            await self._adopt()
        else:
            return not self._write(self._epitaph(state, state.pid, state.start_ticks))
        return False

    async def _replace_for_survivors(self, state: State) -> bool:
        """The main process has ended, and so has the waiter that waited for the others: a stop is carried on."""
        assert state.pid is not None
        assert state.start_ticks is not None
        if state.stop is not None and tree_without_parent(state.pid, state.start_ticks):
            await self._adopt()
            return False
        self._write(replace(state, gone=True))  # without a stop they are nobody's now, the outcome stands
        return True

    async def _ends_within(self, seconds: float) -> bool:
        """Wait that long for the end of the main process; tell whether it came."""
        with trio.move_on_after(seconds):
            if self._pidfd is None:
                await trio.sleep_forever()
            await trio.lowlevel.wait_readable(self._pidfd)
            return True
        return False

    async def _adopt(self) -> None:
        if self._adoptions and await self._ends_within(ADOPT_RETRY_SECONDS):
            return  # and the kernel is asked at once: this server may not live for the rest of the pause
        self._adoptions += 1
        with contextlib.suppress(LaunchError):  # tried again, after the pause
            await self._launching.order("adopt", self._record.run_id)

    def _epitaph(self, state: State, pid: int, start_ticks: int) -> State:
        known = outcome_of_stranger(self._pidfd, pid, start_ticks) if self._pidfd is not None else None
        ran = time.monotonic() - state.started_monotonic if state.started_monotonic is not None else None
        by = state.stop.by if state.stop else None
        account = Account(ended_at=time.time(), ran_seconds=ran and round(ran, 3), stopped_by=by)
        outcome = known or Lost("its waiter was killed, and nobody else saw how it ended")
        stop = state.stop
        if stop is None and state.survivors == "stop":
            stop = StopOrder("the survivors policy", time.monotonic() + state.stop_timeout_seconds)
        return replace(state, phase="ended", outcome=replace(outcome, account=account), stop=stop)

    def _write(self, state: State) -> bool:
        """Write what the waiter cannot write any more, and tell it. False where that failed: it is the last word."""
        written = False
        with contextlib.suppress(RecordError, DamagedRecordError):
            file = StateFile(self._record)
            try:
                file.write(state)
                written = True
            finally:
                file.close()
        self._heard = None
        state = state if written else replace(state, gone=True)
        if state != self._told:
            self._told = state
            self._changed(state)
        return written


def _open_pidfd(pid: int, start_ticks: int) -> int | None:
    """Open a handle on the very process; None where it has ended, or cannot be looked at now."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    with contextlib.suppress(OSError):
        if is_same_process(pid, start_ticks):
            return pidfd
    os.close(pidfd)
    return None


def _nobody_cares(*_: object) -> None:
    """Take what nobody has asked to be told yet."""
