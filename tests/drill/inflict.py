"""Carries out the planned faults on the guest, on waiters and on managers."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable

import trio

from drill.census import service_of_run
from drill.chronicle import Chronicle
from drill.guest import Guest, Manager
from drill.plan import GuestFault, ManagerFault, WaiterFault
from drill.relay import Direction, Relay


class ServerFailed(Exception):
    """A server did not end as the contract says."""


class Inflicter:
    """Does harm, and writes down what it did: a fault that found nothing to harm is none."""

    def __init__(self, guest: Guest, relay: Relay, chronicle: Chronicle) -> None:
        self._guest = guest
        self._relay = relay
        self._chronicle = chronicle

    async def harm_guest(self, faults: Iterable[GuestFault]) -> None:
        """Carry out the guest's faults, one after the other; a gap counts from the end of the one before.

        Shielded while a fault lasts, so that at the end a server runs and nothing stands still.
        """
        for fault in faults:
            await trio.sleep(fault.gap)
            with trio.CancelScope(shield=True):
                if await self._one(fault):
                    self._chronicle.fault(fault.what)

    async def _one(self, fault: GuestFault) -> bool:
        match fault.what:
            case "pause server":
                assert self._guest.server is not None
                with self._guest.away():
                    return await _pause(self._guest.server.pid, fault.seconds)
            case "kill launcher" | "pause launcher":
                pid = self._guest.launcher_pid()
                if pid is None:
                    return False
                return _kill(pid) if fault.what == "kill launcher" else await _pause(pid, fault.seconds)
            case "kill any waiter":
                return self._kill_waiter(fault.choice)
            case "cut all" | "cut one":
                with self._chronicle.contact_away():
                    return self._relay.cut(fault.choice if fault.what == "cut one" else None)
            case "hush to server" | "hush to manager":
                direction: Direction = "to server" if fault.what == "hush to server" else "to manager"
                with self._chronicle.contact_away():
                    await self._relay.hush(direction, fault.seconds)
                return True
            case _:
                await self._replace_server(fault)
                return True

    async def _replace_server(self, fault: GuestFault) -> None:
        number = signal.SIGTERM if fault.what in {"restart server", "upgrade server by TERM"} else signal.SIGKILL
        self._chronicle.note(f"about to {fault.what}")
        with self._guest.away():
            if fault.what == "kill server and launcher" and (launcher := self._guest.launcher_pid()) is not None:
                _kill(launcher)
            if fault.what == "kill server and waiter":
                self._kill_waiter(fault.choice)
            status = await self._guest.end_server(number)
            if number == signal.SIGTERM and status != 0:
                raise ServerFailed(f"the server ended with {status} after TERM, and 0 was promised")
            if fault.choice < 0.3:
                await trio.sleep(fault.seconds)
            if fault.what.startswith("upgrade"):
                self._guest.other_version()
            await self._guest.start_server()

    def _kill_waiter(self, choice: float) -> bool:
        waiters = sorted(self._guest.waiters().items())
        if not waiters:
            return False
        pid, run_id = waiters[int(choice * len(waiters))]
        index = service_of_run(self._guest.state_dir, run_id)
        if index is None or index not in self._chronicle.alive:
            return False
        return self._do_to_waiter(pid, index, "kill")

    def _do_to_waiter(self, pid: int, index: int, what: str) -> bool:
        around = self._chronicle.alive[index]
        if what == "kill":
            around.waiter_kills.append(time.monotonic())
            self._chronicle.note(f"kill waiter {pid}", index)
            return _kill(pid)
        around.waiter_pauses.append(time.monotonic())
        self._chronicle.note(f"pause waiter {pid}", index)
        return True

    async def harm_waiter(self, index: int, faults: tuple[WaiterFault, ...]) -> None:
        """Carry out the faults of one service's waiter, one after the other."""
        for fault in faults:
            await trio.sleep(fault.after)
            for pid, run_id in self._guest.waiters().items():
                if service_of_run(self._guest.state_dir, run_id) == index and self._do_to_waiter(
                    pid, index, fault.what
                ):
                    if fault.what == "pause":
                        await _pause(pid, fault.seconds)
                    self._chronicle.fault(f"{fault.what} waiter", index)
                    break

    async def harm_manager(self, index: int, manager: Manager, faults: tuple[ManagerFault, ...]) -> None:
        """Carry out the faults of one manager, at their times, one after the other."""
        for fault in faults:
            if fault.from_running:
                await manager.claimed.wait()
                await trio.sleep(fault.after)
            else:
                await trio.sleep(max(0.0, manager.began_at + fault.after - time.monotonic()))
            if manager.process.poll() is not None:
                return
            match fault.what:
                case "kill":
                    manager.killed = manager.send(signal.SIGKILL)
                case "detach":
                    manager.detached = manager.send(signal.SIGTERM)
                case _:
                    await _pause(manager.process.pid, fault.seconds)
            self._chronicle.fault(f"{fault.what} manager", index)


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


async def _pause(pid: int, seconds: float) -> bool:
    """Have a process stand still for a while; however this ends, it goes on."""
    try:
        os.kill(pid, signal.SIGSTOP)
    except ProcessLookupError:
        return False
    try:
        await trio.sleep(seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    return True
