"""Every system call that the records need fails in turn: nothing that was promised is lost, and the reason is said."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from faults import CUT_SHORT, FAULTS, MAX_CALLS, Injector, failing, name_of, words_of
from supervised import ENDED, OWN, RUNNING, SERVICE, TERMS, FakeWatcher, Guest, serving

from appserver.effects import Phase, TellRefused, TellRunning
from appserver.identity import Service
from appserver.outcome import Exited
from appserver.procfs import UNKNOWN_BOOT, boot_id
from appserver.recordformat import DamagedRecordError, RecordError, Request, State, StopOrder
from appserver.records import Records, RunRecord, StateFile
from appserver.statelock import StateDirError, locked_state_dir

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="speaks of POSIX calls")

ENDS, STARTS, STOPS, ALIAS = "c" * 32, "d" * 32, "e" * 32, "f" * 32
LEFT = {OWN: RUNNING, ENDS: ENDED, STARTS: State(), STOPS: replace(RUNNING, stop=StopOrder("somebody", 1e9))}
"""What a former server left: one of each kind."""
PHASES = {OWN: Phase.RUNNING, ENDS: Phase.ENDED, STARTS: Phase.STARTING, STOPS: Phase.STOPPING, ALIAS: Phase.RUNNING}
HERE = boot_id()

faults = pytest.mark.parametrize("fault", FAULTS, ids=name_of)


def request(run_id: str) -> Request:
    service = Service("line", (f"/bin/true {run_id}",))
    return Request(run_id, service, "/bin/true", service.argv(), "/nowhere.log", 1 << 20, HERE, 1.5)


def prepared(directory: Path) -> Records:
    records = Records(str(directory / "state"))
    records.prepare()
    return records


def each_call(fault: int, operation: Callable[[Injector], None], check: Callable[[Injector], None]) -> None:
    """Do an operation again and again, another of its calls failing each time, until it has none more; look at what it
    left each time.
    """
    for nth in range(1, MAX_CALLS):
        with failing(nth, fault) as injector:
            operation(injector)
        try:
            check(injector)
        except Exception as error:
            raise AssertionError(f"call {nth} was {injector.hit}: {error}") from error
        if not injector.hit:
            return
    raise AssertionError(f"more than {MAX_CALLS} calls")


@faults
def test_run_that_cannot_be_recorded_is_no_run_and_leaves_nothing(tmp_path: Path, fault: int) -> None:
    records = prepared(tmp_path)
    made: list[RunRecord] = []

    def create(injector: Injector) -> None:
        made.clear()
        try:
            made.append(records.create(request(OWN), State()))
        except RecordError as error:
            injector.said = str(error)

    def check(injector: Injector) -> None:
        assert bool(made) != bool(injector.said)
        assert not injector.said or words_of(fault) in injector.said
        records.prepare()
        assert os.listdir(tmp_path / "state" / "runs") == [record.run_id for record in made]
        for record in made:
            assert (record.read_request(), record.read_state()) == (request(OWN), State())
            records.remove(record.run_id)

    each_call(fault, create, check)


@faults
def test_state_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, fault: int) -> None:
    record = prepared(tmp_path).create(request(OWN), RUNNING)

    def write(injector: Injector) -> None:
        try:
            file = StateFile(record)
        except (RecordError, DamagedRecordError) as error:
            injector.said = str(error)
            return
        try:
            file.write(ENDED)
        except RecordError as error:
            injector.said = str(error)
        finally:
            file.close()

    def check(injector: Injector) -> None:
        assert record.read_state() == (RUNNING if injector.hit else ENDED)
        assert bool(injector.hit) == bool(injector.said)

    each_call(fault, write, check)


@faults
def test_run_that_cannot_be_removed_stays_whole_and_is_never_started(tmp_path: Path, fault: int) -> None:
    records = prepared(tmp_path)

    def remove(injector: Injector) -> None:
        try:
            records.remove(OWN)
        except RecordError as error:
            injector.said = str(error)

    def check(injector: Injector) -> None:
        records.prepare()
        left = records.all()
        assert bool(left) == bool(injector.said)
        for record in left:
            assert record.read_request() == request(OWN)
            assert record.read_state().phase == "failed"
            records.remove(OWN)
        assert not (tmp_path / "state" / "runs" / f".old-{OWN}").exists()
        again()

    def again() -> None:
        records.create(request(OWN), State())
        records.add_alias(ALIAS, OWN)

    again()
    each_call(fault, remove, check)


def recover(guest: Guest, injector: Injector | None = None) -> Guest:
    """Begin as a server does; one that is unable to has to say why."""
    try:
        with locked_state_dir(guest.settings.state_dir):
            guest.records.prepare()
            guest.supervisor.recover()
    except (RecordError, StateDirError) as error:
        assert injector is not None
        injector.said = str(error)
    return guest


@faults
def test_server_that_cannot_read_what_was_left_says_so_and_the_next_one_finds_it_all(
    tmp_path: Path, fault: int
) -> None:
    before = Guest(tmp_path)
    for run_id, state in LEFT.items():
        before.records.create(request(run_id), replace(state, boot=HERE))
    before.records.add_alias(ALIAS, OWN)
    found: list[Guest] = []

    def begin(injector: Injector) -> None:
        guest = Guest(tmp_path, is_prepared=False)
        guest.processes.watched |= set(LEFT)
        found[:] = [recover(guest, injector)]

    def check(injector: Injector) -> None:
        if injector.said:
            assert words_of(fault) in injector.said
        else:  # one that cannot be read is known by its id at least, and said
            for run_id in LEFT:
                run = found[0].supervisor.find(run_id)
                assert run is not None
                assert run.phase is PHASES[run_id] or f"the record of run {run_id} is damaged" in found[0].log.text
        found_again = recover(Guest(tmp_path)).supervisor
        runs = {run_id: found_again.find(run_id) for run_id in PHASES}
        assert {run_id: run and run.phase for run_id, run in runs.items()} == PHASES
        ended = runs[ENDS]
        assert ended is not None
        assert ended.outcome == Exited(3)
        assert not ended.collected

    each_call(fault, begin, check)


@faults
async def test_start_that_meets_a_fault_is_made_whole_or_refused_and_the_next_one_is_made(
    tmp_path: Path, fault: int
) -> None:
    async with serving(Guest(tmp_path)) as guest:
        for nth in range(1, MAX_CALLS):
            run_id, watcher = f"{nth:032x}", FakeWatcher()
            with failing(nth, fault) as injector:
                await guest.supervisor.run(watcher, run_id, SERVICE, TERMS)
                told = await guest.first_news(watcher, run_id)
            if isinstance(told, TellRefused):
                assert injector.hit
                assert words_of(fault) in told.text or "no such command" in told.text or "not" in told.text
                assert run_id not in guest.recorded()
            else:
                assert guest.records.get(run_id).read_state().phase == "starting"
                assert guest.records.get(run_id).read_request().boot in {HERE, UNKNOWN_BOOT}
                await end(guest, watcher, run_id)
            if not injector.hit:
                break
            for log in guest.log_dir.iterdir():
                log.unlink()
        assert not isinstance(told, TellRefused)
        assert len(list(guest.log_dir.iterdir())) == 1


async def end(guest: Guest, watcher: FakeWatcher, run_id: str) -> None:
    guest.processes.change(run_id, RUNNING)
    assert isinstance(await watcher.next(), TellRunning)
    guest.processes.change(run_id, ENDED)
    assert await watcher.outcome() == Exited(3)
    guest.supervisor.acknowledge(run_id)
    guest.supervisor.leave(watcher)


@faults
async def test_end_that_meets_a_fault_is_told_and_what_cannot_be_noted_is_said(tmp_path: Path, fault: int) -> None:
    async with serving(Guest(tmp_path)) as guest:
        for nth in range(1, MAX_CALLS):
            run_id = f"{nth:032x}"
            watcher = await guest.start(run_id)
            other = FakeWatcher()
            lines = len(guest.log.lines)
            with failing(nth, fault) as injector:
                await guest.supervisor.run(other, f"a{nth:031x}", SERVICE, TERMS)
                guest.processes.change(run_id, ENDED)
                guest.supervisor.acknowledge(run_id)
                guest.supervisor.leave(watcher)
                guest.supervisor.leave(other)
            assert await watcher.outcome() == Exited(3)
            assert isinstance(await other.next(), TellRunning)
            assert await other.outcome() == Exited(3)
            said = "\n".join(text for _, text in guest.log.lines[lines:])
            record = guest.records.get(run_id)
            assert record.is_collected() or (words_of(fault) in said and "collected cannot be recorded" in said)
            if not injector.hit:
                return
    raise AssertionError


def test_writes_that_are_cut_short_are_gone_on_with_or_undone(tmp_path: Path) -> None:
    records = prepared(tmp_path)
    for nth in range(1, MAX_CALLS):
        with failing(nth, CUT_SHORT) as injector:
            record = records.create(request(OWN), RUNNING)
            file = StateFile(record)
            try:
                file.write(ENDED)
                state = ENDED
            except RecordError:
                state = RUNNING
            file.close()
        assert record.read_request() == request(OWN)
        assert record.read_state() == state
        records.remove(OWN)
        if not injector.hit:
            return
    raise AssertionError
