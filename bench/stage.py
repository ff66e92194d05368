"""One subject with a number of applications: the whole course of one step, and the samples that it gives.

    all start at once → memory → single ones end and start, a cold `/bin/true` beside them → rest → restarts → all end

With `size` applications the last one is the one that is measured singly, so there are never more than `size`.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import final

from bench import goals
from bench.applications import EXIT_STATUS, Applications, Group
from bench.goals import Figure
from bench.measure import cpu_seconds, memory_of, memory_together
from bench.plan import Step
from bench.processes import BenchError, Deadline, start, tail, wait_all
from bench.samples import Sample, Samples
from bench.subjects.pair import Pair
from bench.subjects.subject import Subject

SETTLE_SECONDS = 0.2
"""After one start, until everybody waits again."""

SETTLE_ALL_SECONDS = 1.0
"""After many starts, before memory is read or the processor's time counted."""

LINGER_SECONDS = 5.0
"""How long the guest's helpers may take to be gone after their applications before the next turn begins anyway."""

TRUE = "/bin/true"


@final
@dataclass(frozen=True, slots=True)
class Client:
    """A client that runs: its own pid, its application's, and its log."""

    pid: int
    application: int
    log: str


@final
class Stage:
    """Carries out one step with a subject that is open."""

    def __init__(self, subject: Subject, step: Step, applications: Applications, samples: Samples) -> None:
        self._subject = subject
        self._step = step
        self._applications = applications
        self._samples = samples
        self._clients: list[Client] = []
        self._logs = 0
        self._all_ran = 0.0
        self._before = len(subject.guest_pids(set()))

    def run(self) -> None:
        """Do it all. Raises BenchError."""
        what = f"{goals.SUBJECTS[self._subject.name]} with {self._step.size} applications: "
        rest, single = self._applications.group(), self._applications.group()
        with Deadline(f"{what}starting them"):
            self._start_all(rest, single)
        time.sleep(SETTLE_ALL_SECONDS if self._step.size > 1 else SETTLE_SECONDS)
        self._read_memory()
        for left in reversed(range(self._step.repeats)):
            with Deadline(f"{what}ending and starting a single one"):
                self._end_single(single)
                self._run_cold()
                single = self._applications.group() if left else rest  # the last one ends with all others
                self._clients += self._start([single])[1]
        time.sleep(SETTLE_SECONDS)
        if self._step.rest_seconds:
            self._rest()
        with Deadline(f"{what}starting the server again"):
            self._restart()
        with Deadline(f"{what}ending them"):
            self._end_all(rest)

    def _start_all(self, rest: Group, single: Group) -> None:
        began, self._clients = self._start([rest] * (self._step.size - 1) + [single])
        self._sample(goals.STARTS, 1000 * (self._all_ran - began))

    def _start(self, groups: list[Group]) -> tuple[float, list[Client]]:
        members = [group.add() for group in groups]
        commands = [self._subject.client(words) for _, words in members]
        logs = [self._new_log() for _ in members]
        began = time.monotonic()
        pids = [self._spawn(command, log) for command, log in zip(commands, logs, strict=True)]
        announced = [self._applications.wait_announced(number) for number, _ in members]
        self._all_ran = max(moment for _, moment in announced)
        clients = [
            Client(pid, application, log) for pid, (application, _), log in zip(pids, announced, logs, strict=True)
        ]
        return began, clients

    def _spawn(self, command: list[str], log: str) -> int:
        return start(command, log, self._subject.environment)

    def _new_log(self) -> str:
        self._logs += 1
        step = self._step
        return os.path.join(self._subject.directory, f"client-{step.round}-{step.size}-{self._logs}.log")

    def _read_memory(self) -> None:
        guest = self._subject.guest_pids({client.application for client in self._clients})
        if guest:
            together = memory_together(guest)
            self._sample(goals.GUEST_PSS, together.pss_mib)
            self._sample(goals.GUEST_PRIVATE, together.private_mib)
        if self._subject.server_pid is None:
            return
        each = [memory_of(client.pid) for client in self._clients]
        beside = memory_together(self._subject.host_pids_beside())
        self._sample(goals.HOST_PSS, (sum(memory.pss_mib for memory in each) + beside.pss_mib) / len(each))
        self._sample(goals.HOST_PSS_MAX, max(memory.pss_mib for memory in each))
        self._sample(goals.HOST_PRIVATE, (sum(memory.private_mib for memory in each) + beside.private_mib) / len(each))

    def _end_single(self, single: Group) -> None:
        client = self._clients.pop()
        time.sleep(SETTLE_SECONDS)
        began = single.finish()
        self._sample(goals.END, 1000 * (self._wait([client]) - began))

    def _run_cold(self) -> None:
        command, log = self._subject.client([TRUE]), self._new_log()
        began = time.monotonic()
        pid = self._spawn(command, log)
        ended, statuses = wait_all([pid])
        if statuses[pid] != 0:
            raise BenchError(f"{command[0]} of {TRUE} ended with {statuses[pid]}: {tail(log)}")
        self._sample(goals.COLD, 1000 * (ended - began))

    def _rest(self) -> None:
        time.sleep(SETTLE_ALL_SECONDS)
        guest = self._subject.guest_pids({client.application for client in self._clients})
        before = {pid: cpu_seconds(pid) for pid in guest | {client.pid for client in self._clients}}
        began = time.monotonic()
        time.sleep(self._step.rest_seconds)
        used = {pid: cpu_seconds(pid) - seconds for pid, seconds in before.items()}
        minute = 60 / (time.monotonic() - began)
        assert self._subject.server_pid is not None
        self._sample(goals.SERVER_CPU, minute * used[self._subject.server_pid])
        self._sample(goals.GUEST_CPU, minute * sum(used[pid] for pid in guest))
        managers = [used[client.pid] for client in self._clients]
        self._sample(goals.MANAGER_CPU, minute * sum(managers) / len(managers))

    def _restart(self) -> None:
        for _ in range(self._step.restarts):
            assert isinstance(self._subject, Pair)
            seconds = self._subject.restart([client.log for client in self._clients])
            self._sample(goals.LISTENING, 1000 * seconds)
            time.sleep(SETTLE_SECONDS)

    def _end_all(self, group: Group) -> None:
        time.sleep(SETTLE_SECONDS)
        began = group.finish()
        self._sample(goals.ENDS, 1000 * (self._wait(self._clients) - began))
        self._clients = []
        self._wait_nobody_left()

    def _wait(self, clients: list[Client]) -> float:
        ended, statuses = wait_all(client.pid for client in clients)
        for client in clients:
            if statuses[client.pid] != EXIT_STATUS:
                raise BenchError(f"a client ended with {statuses[client.pid]}: {tail(client.log)}")
        return ended

    def _wait_nobody_left(self) -> None:
        # Waiters and connections' processes end a moment after; the next one's turn begins when they have. What stays
        # longer, as with a connection that lingers, is not waited for.
        patience = time.monotonic() + LINGER_SECONDS
        while len(self._subject.guest_pids(set())) > self._before and time.monotonic() < patience:
            time.sleep(SETTLE_SECONDS)

    def _sample(self, figure: Figure, value: float) -> None:
        step = self._step
        self._samples.add(Sample(figure.key, self._subject.name, step.size, step.round, value))
