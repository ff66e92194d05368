"""One drill, from its first process to its last."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import trio

from drill import oracle
from drill import tally as columns
from drill.census import SETTLE_SECONDS, Usage, name_of, processes_in, usage_of, wait_until, zombies_under
from drill.chronicle import Chronicle
from drill.guest import Guest, kill_all
from drill.inflict import Inflicter, ServerFailed
from drill.memory import NoMemoryGroup, kernel_tells_of_memory, open_memory_group
from drill.oracle import Finding, judge
from drill.plan import Service, make_guest_faults, make_services
from drill.relay import Relay
from drill.tally import Tally
from drill.watching import Watch

MAX_COMPLAINTS = 10
"""Services whose whole story is printed; the others are only counted."""

PROGRESS_SECONDS = 5.0

LINUX_TELLS_STRANGERS = (6, 15)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Order:
    """What is to be drilled: how many runs, from which seed, how many services at once, faults so many times as
    often."""

    runs: int
    seed: int
    at_once: int = 12
    faster: float = 1.0


async def run_drill(order: Order, directory: Path, keys: Path, say: Say) -> Tally:
    """Run one drill in an empty directory; give its figures. `say` gets progress and complaints.

    However it ends, no process of it is left. Cancelled, it ends at once.
    """
    guest = Guest(directory, keys)
    with ExitStack() as stack:
        stack.callback(lambda: kill_all(processes_in(directory)))
        try:
            group = str(stack.enter_context(open_memory_group()))
        except NoMemoryGroup as reason:
            say(f"no service is killed for memory: {reason}")
            group = ""
        drill = _Drill(guest, Relay(), order, group, say)
        try:
            await drill.run()
        except Exception as error:  # noqa: BLE001  (whatever it is, what was seen so far is worth its figures)
            drill.tally.found[columns.BROKEN] += 1
            say("the drill broke off:\n" + "".join(traceback.format_exception(error)))
            say("the server:\n" + "\n".join(guest.log))
        return drill.tally


class _Drill:
    def __init__(self, guest: Guest, relay: Relay, order: Order, group: str, say: Say) -> None:
        self.tally = Tally()
        self._guest = guest
        self._relay = relay
        self._order = order
        self._group = group
        self._say = say
        self._chronicle = Chronicle(kernel_tells=_kernel_tells(), memory_is_told=kernel_tells_of_memory())
        self._inflicter = Inflicter(guest, relay, self._chronicle)
        self._complaints = 0

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            with self._guest.living_in(nursery):
                await self._guest.start_server()
                self._relay.target = self._guest.port
                await nursery.start(self._relay.serve)
                self._guest.configure_host(self._relay.port)
                before = await self._usages()
                await self._run_services()
                await self._settle()
                after = await self._usages()
                status = await self._guest.end_server(signal.SIGTERM)
                if status != 0:
                    raise ServerFailed(f"the server ended with {status} after TERM, and 0 was promised")
            nursery.cancel_scope.cancel()
        for whose in before:
            self.tally.usages[whose] = (str(before[whose]), str(after[whose]))
            grown = after[whose].descriptors - before[whose].descriptors
            self.tally.found[columns.GROWN] += max(0, grown)
        self.tally.found[columns.TRACEBACKS] = self._guest.count_tracebacks()
        if self._guest.tracebacks:
            self._say("the server, the launcher or a waiter:\n" + "\n".join(self._guest.tracebacks))
        self.tally.seconds = time.monotonic() - self._chronicle.began_at

    async def _run_services(self) -> None:
        """Run all services, a number of them at a time, under the guest's faults."""
        order = self._order
        services = make_services(order.seed, order.runs, with_memory=bool(self._group))
        async with trio.open_nursery() as around:
            around.start_soon(self._inflicter.harm_guest, make_guest_faults(order.seed, faster=order.faster))
            around.start_soon(self._report_progress)
            async with trio.open_nursery() as nursery:
                for _ in range(order.at_once):
                    nursery.start_soon(self._run_some, services)
            around.cancel_scope.cancel()
        self.tally.faults = self._chronicle.faults

    async def _report_progress(self) -> None:
        while True:
            await trio.sleep(PROGRESS_SECONDS)
            tally, passed = self.tally, time.monotonic() - self._chronicle.began_at
            faults = self._chronicle.faults.total()
            self._say(f"{passed:6.0f} s: {tally.runs} of {self._order.runs} runs, {faults} faults, {tally.bad} bad")

    async def _run_some(self, services: Iterator[Service]) -> None:
        for service in services:
            await self._run_one(service)

    async def _run_one(self, service: Service) -> None:
        self._chronicle.begin(service.index)
        watch = Watch(service, self._guest, self._chronicle, self._inflicter, self._group)
        await watch.run()
        orphaned = bool(self._chronicle.alive[service.index].waiter_kills)
        unstopped = await watch.wait_stopped(may_be_out_of_reach=orphaned)
        over_bound = await watch.wait_trimmed()
        around = self._chronicle.end(service.index, list(self._guest.server_away))
        around.unstopped, around.logs_over_bound = unstopped, over_bound
        self._count(watch, judge(service, watch.notes(), watch.reports, around))
        kill_all(watch.living())
        watch.clean_up()

    def _count(self, watch: Watch, findings: list[Finding]) -> None:
        service = watch.service
        self.tally.runs += service.asked
        self.tally.sorts[service.sort] += service.asked
        self.tally.managers += len(watch.reports)
        self.tally.found.update(finding.column for finding in findings)
        for finding in findings:
            if finding.column == oracle.LOST_ALLOWED:
                self._say(f"service {service.index} ({service.sort}): {finding.column}: {finding.words}")
        bad = [finding for finding in findings if finding.column in columns.MUST_BE_ZERO]
        if bad and self._complaints < MAX_COMPLAINTS:
            self._complaints += 1
            self._complain(watch, bad)

    def _complain(self, watch: Watch, bad: list[Finding]) -> None:
        service = watch.service
        self._say(f"\n---- service {service.index} ({service.sort}): {service.words} {service.options}")
        for finding in bad:
            self._say(f"{finding.column}: {finding.words}")
        self._say("what it noted:\n" + watch.notes_text())
        self._say("what was done:\n" + "\n".join(self._chronicle.events_of(service.index)))
        for report in watch.reports:
            self._say(f"a manager, status {report.status}, alive after it {sorted(report.alive)}:\n{report.log}")
        lines = [line for line in self._guest.log if watch.mark in line or "found again" in line]
        self._say("the server:\n" + "\n".join(lines[-40:]) + "\n----\n")

    async def _settle(self) -> None:
        """Wait until nobody but server and launcher is left; count who stays."""
        await wait_until(lambda: not self._others(), SETTLE_SECONDS)
        others = self._others()
        self.tally.found[columns.LEFT_OVER] += len(others)
        for pid in others:
            self._say(f"left over: {pid} {name_of(pid)}")
        self.tally.found[columns.ZOMBIES] += len(zombies_under({*self._known(), *others}))

    def _known(self) -> set[int]:
        assert self._guest.server is not None
        launcher = self._guest.launcher_pid()
        return {self._guest.server.pid} | ({launcher} if launcher is not None else set())

    def _others(self) -> list[int]:
        return [pid for pid in processes_in(self._guest.directory) if pid not in self._known()]

    async def _usages(self) -> dict[str, Usage]:
        assert self._guest.server is not None
        await wait_until(lambda: self._guest.launcher_pid() is not None, SETTLE_SECONDS)
        launcher = self._guest.launcher_pid()
        assert launcher is not None
        return {"server": usage_of(self._guest.server.pid), "launcher": usage_of(launcher)}


def _kernel_tells() -> bool:
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int("".join(filter(str.isdigit, minor)))) >= LINUX_TELLS_STRANGERS
