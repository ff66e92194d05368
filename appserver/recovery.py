"""What a former server of a state directory has left, made into runs for the table: the whole records and the others.

    request    state      waiter
    whole      whole      any      known again, as the state says
    whole      damaged    lives    known; it runs, the waiter tells how
    whole      damaged    none     known; it has ended, its outcome is lost
    damaged    any        tells    as above: the waiter repeats the request, which is written anew
    damaged    whole      none     a *stray*: a run of a service that nobody can name, as the state says
    damaged    damaged    lives    a stray that runs
    damaged    damaged    none     a stray that has ended, its outcome is lost

A stray is in the table under its id, so that it is watched, can be stopped, and never starts again; who asks for its
service by name does not find it. So it stands in the way of every start that may be the same: of a service with the
digest that its state repeats, of any service where that cannot be read either. A record of a newer server's format
counts as damaged, but stays as it is on disk. What cannot be read only for want of descriptors or memory is no ground
for a verdict: the server does not start then, and says why.

Whatever is of another boot has ended: nothing of it is followed or signalled.
"""

from __future__ import annotations

from typing import final

from appserver.effects import Phase, Run
from appserver.fileio import OUT_OF_RESOURCES
from appserver.identity import Service
from appserver.outcome import Lost
from appserver.processes import Processes
from appserver.procfs import UNKNOWN_BOOT, boot_id
from appserver.recordformat import DamagedRecordError, RecordError, Request, State, UnreadableRecordError
from appserver.records import Records, RunRecord
from appserver.report import Report
from pki.frozen import dataclass, replace


@final
@dataclass(frozen=True, slots=True)
class Found:
    """One run that was left. `alive` says that it is to be followed; `request` is None for a stray, of whose service
    `digest` is known at most.
    """

    run: Run
    request: Request | None
    digest: str | None
    alive: bool

    @property
    def age_key(self) -> tuple[int, float]:
        """Sort by this to have runs in the order of their making, whatever the clock did."""
        return (self.request.serial, self.request.requested_at) if self.request is not None else (0, 0.0)


def this_boot() -> str:
    """Name this boot. Raises RecordError where it cannot be found out at this moment."""
    try:
        return boot_id()
    except OSError as error:
        raise RecordError(f"it cannot be found out which boot this is: {error.strerror}") from error


def find_again(records: Records, processes: Processes, report: Report) -> list[Found]:
    """Read what was left, in the order of its making, and say what is damaged. Raises RecordError.

    Starts that had failed, and whose refusal nobody is waiting for any more, are forgotten.
    """
    here = this_boot()
    found: list[Found] = []
    for record in records.all():
        one = _Left(record, processes, report).find(here)
        if one is None:
            _forget(records, record.run_id, report)
        else:
            found.append(one)
    for path in records.junk():
        report.warning(f"{path} is no record of ours, it is left alone: remove it")
    return sorted(found, key=lambda one: one.age_key)


def _forget(records: Records, run_id: str, report: Report) -> None:
    try:
        records.remove(run_id)
    except RecordError as error:
        report.warning(f"the record of run {run_id}, which was not started, cannot be removed: {error}")


@final
class _Left:
    """One record, and what can be found out about it."""

    def __init__(self, record: RunRecord, processes: Processes, report: Report) -> None:
        self._record = record
        self._processes = processes
        self._report = report
        self._damage: str | None = None

    def find(self, here: str) -> Found | None:
        """Make the run of it; None where there was none: it failed to start."""
        request, state = self._read_request(), self._read_state()
        if self._damage is not None:
            request, state = self._ask_waiter(request, state)
        if state is None:
            state = self._without_state()
        if state.phase == "failed":
            return None
        boot = (request.boot if request is not None else state.boot) or UNKNOWN_BOOT
        same_boot = boot == here
        if UNKNOWN_BOOT in {boot, here}:
            same_boot = self._processes.is_watched(self._record.run_id)  # no lock is held from one boot to the next
        return _found(self._record, request, state, same_boot=same_boot)

    def _read_request(self) -> Request | None:
        try:
            request = self._record.read_request()
        except DamagedRecordError as error:
            self._note(error)
            return None
        if request.run_id == self._record.run_id:
            return request
        self._note(DamagedRecordError(f"the request is one of another run, {request.run_id!r:.50}"))
        return None

    def _read_state(self) -> State | None:
        try:
            return self._record.read_state()
        except DamagedRecordError as error:
            self._note(error)
            return None

    def _note(self, error: DamagedRecordError) -> None:
        if isinstance(error, UnreadableRecordError) and error.number in OUT_OF_RESOURCES:
            raise RecordError(str(error)) from error
        self._damage = f"{self._damage}; {error}" if self._damage else str(error)

    def _ask_waiter(self, request: Request | None, state: State | None) -> tuple[Request | None, State | None]:
        run_id = self._record.run_id
        told = self._processes.describe(run_id)
        if told is None or (told[0] is None and request is None):
            self._report.error(f"the record of run {run_id} is damaged: {self._damage}")
            return request, state or (told and told[1])
        self._report.error(f"the record of run {run_id} is damaged, but its waiter knows it: {self._damage}")
        if request is None:
            request = told[0]
            assert request is not None
            try:
                self._record.mend_request(request)
            except RecordError as error:
                self._report.warning(f"the record of run {run_id} cannot be mended: {error}")
        return request, state or told[1]

    def _without_state(self) -> State:
        if self._processes.is_watched(self._record.run_id):
            return State(phase="running")  # whoever follows it hears from the waiter, or waits for its end
        reason = f"its record cannot be read: {self._damage}"
        return State(phase="ended", outcome=Lost(reason), gone=True)


def _found(record: RunRecord, request: Request | None, state: State, *, same_boot: bool) -> Found:
    if not same_boot and state.outcome is None:
        reason = "the guest was rebooted while it ran" if state.pid else "the guest was rebooted before it was started"
        state = replace(state, phase="ended", outcome=Lost(reason), gone=True)
    service = request.service if request is not None else _nameless(record.run_id)
    log_path = request.log_path if request is not None else None
    run = Run(record.run_id, service, log_path=log_path, collected=record.is_collected(), program="")
    if request is not None:  # else no pattern but `*` matches it
        run.owner, run.asked_by, run.user = request.owner, request.asked_by, request.user
        run.program = request.program or request.executable
    if state.phase != "starting":
        run.pid, run.start_ticks = state.pid, state.start_ticks
        run.started_at, run.started_monotonic = state.started_at, state.started_monotonic
        run.phase = Phase.STOPPING if state.stop else Phase.RUNNING
    # An end that a stop brought about is told when the tree is gone; one that came by itself stands already.
    if state.outcome is not None and (state.gone or state.outcome.account.stopped_by is None):
        run.outcome, run.phase = state.outcome, Phase.ENDED
    alive = same_boot and not state.gone
    run.gone = not alive
    run.stop_ordered = state.stop is not None and run.phase is not Phase.ENDED
    run.clearing = alive and run.phase is Phase.ENDED and state.stop is not None
    return Found(run, request, state.service_digest, alive)


def _nameless(run_id: str) -> Service:
    return Service("line", ("unknown: its record is damaged",), run_id)
