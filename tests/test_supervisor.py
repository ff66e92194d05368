"""The supervisor between a true table, true records on disk, and processes that the test plays."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from fakes import fill, small_disk
from supervised import (
    ENDED,
    OTHER,
    OWN,
    PATIENCE_SECONDS,
    RUNNING,
    SERVICE,
    SLEEP,
    TERMS,
    THIRD,
    FakeWatcher,
    Guest,
    damage,
    serving,
)

from appserver.commands import Program
from appserver.effects import Phase, TellRunning, TellStopping, Terms
from appserver.identity import Service
from appserver.outcome import Account, Exited, Lost
from appserver.processes import StartError, Usage
from appserver.procfs import boot_id
from appserver.recordformat import DamagedRecordError, State, StopOrder
from appserver.records import StateFile
from appserver.runlog import KEPT_LOGS
from appserver.supervisor import FOLLOWED_AT_ONCE

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="starts POSIX commands by name")


async def test_run_is_on_record_before_it_is_followed(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        watcher = FakeWatcher()
        await guest.supervisor.run(watcher, OWN, Service("line", ("sleep '7 8'",), "two"), Terms("stop", 9.0))
        await guest.processes.until_followed(OWN)
        record = guest.records.get(OWN)
        request, state = record.read_request(), record.read_state()
        assert (os.path.basename(request.executable), request.argv) == ("sleep", ("sleep", "7 8"))
        assert request.boot == boot_id()
        assert (state.phase, state.survivors, state.stop_timeout_seconds) == ("starting", "stop", 9.0)
        assert mode(request.log_path) == 0o600
        guest.processes.change(OWN, RUNNING)
        told = await watcher.next()
        assert isinstance(told, TellRunning)
        assert (told.attached, told.run.pid, told.run.log_path) == (False, 4711, request.log_path)
        assert guest.supervisor.usage(told.run) == Usage(4711.0, 1)
        assert guest.supervisor.count_active() == 1


async def test_end_is_told_logged_once_and_the_collection_recorded(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        watcher = await guest.start()
        guest.processes.change(OWN, replace(ENDED, gone=False))
        assert await watcher.outcome() == Exited(3)
        guest.processes.change(OWN, ENDED)
        assert guest.log.count("exited with code 3") == 1
        assert not guest.records.get(OWN).is_collected()
        guest.supervisor.acknowledge(OWN)
        assert guest.records.get(OWN).is_collected()
        assert not watcher.told


async def test_end_is_told_before_it_is_logged(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        watcher = await guest.start()
        logged: list[str] = []
        watcher.tell = lambda _: logged.append(guest.log.text)  # type: ignore[method-assign]
        guest.processes.change(OWN, ENDED)
        assert len(logged) == 1
        assert "exited with code 3" not in logged[0]
        assert "exited with code 3" in guest.log.text


async def test_second_manager_attaches_and_its_id_is_an_alias_on_record(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        await guest.start()
        second = FakeWatcher()
        await guest.supervisor.run(second, OTHER, SERVICE, Terms("stop", 5.0))
        told = await second.next()
        assert isinstance(told, TellRunning)
        assert (told.attached, told.run.run_id) == (True, OWN)
        assert dict(guest.records.aliases()) == {OTHER: OWN}
        assert guest.processes.orders == [("terms", OWN, Terms("stop", 5.0))]
        assert guest.recorded() == {OWN}


async def test_stop_is_ordered_and_its_acceptance_told_to_whoever_asked(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        watcher = await guest.start()
        await guest.supervisor.stop(watcher, OWN, "cmappmgr[1] on h", 5.0)
        assert guest.processes.orders == [("stop", OWN, "cmappmgr[1] on h", 5.0)]
        assert "stopping '/bin/true'" in guest.log.text
        guest.processes.followed[OWN][1]()
        assert isinstance(await watcher.next(), TellStopping)
        stopped = replace(ENDED, stop=StopOrder("cmappmgr[1] on h", 1.0), gone=False)
        guest.processes.change(OWN, stopped)
        assert not watcher.told  # somebody of the tree still lives
        guest.processes.change(OWN, replace(stopped, gone=True))
        assert await watcher.outcome() == Exited(3)


@pytest.mark.parametrize("seen", ["as it was recorded", "with the end only"])
async def test_stop_that_came_past_the_server_is_completed_before_its_end_is_told(tmp_path: Path, seen: str) -> None:
    async with serving(Guest(tmp_path)) as guest:
        watcher = await guest.start()
        stop = StopOrder("cmappserver --stop-all in the guest", 1.0)
        if seen == "as it was recorded":
            guest.processes.change(OWN, replace(RUNNING, stop=stop))
            run = guest.supervisor.find(OWN)
            assert run is not None
            assert run.phase is Phase.STOPPING
        ended = replace(ENDED, outcome=Exited(3, Account(stopped_by=stop.by)), stop=stop)
        guest.processes.change(OWN, replace(ended, gone=False))
        assert not watcher.told  # somebody of the tree still lives
        guest.processes.change(OWN, ended)
        assert await watcher.outcome() == ended.outcome


async def test_run_that_waits_for_a_stop_is_started_then_and_learns_of_what_was_not_collected(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        watcher = await guest.start()
        await guest.supervisor.stop(watcher, OWN, "x", 5.0)
        second = FakeWatcher()
        await guest.supervisor.run(second, OTHER, SERVICE, TERMS)
        assert guest.recorded() == {OWN}
        guest.processes.change(OWN, ENDED)
        await guest.processes.until_followed(OTHER)
        guest.processes.change(OTHER, RUNNING)
        told = await second.next()
        assert isinstance(told, TellRunning)
        assert told.previous == (OWN, Exited(3))


@pytest.mark.usefixtures("one_kept")
async def test_older_outcome_is_forgotten_on_disk_when_a_newer_one_is_collected(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        for run_id in (OWN, OTHER):
            watcher = await guest.start(run_id)
            guest.processes.change(run_id, ENDED)
            await watcher.outcome()
            guest.supervisor.acknowledge(run_id)
            guest.supervisor.leave(watcher)
        assert guest.recorded() == {OTHER}


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("/nowhere/x", "no-such-command"),
        ("/bin", "is-a-directory"),
        ("/etc/passwd", "not-executable"),
        ("'open", "bad-service"),
        ("no-such-command-at-all", "no-such-command"),
    ],
)
async def test_command_that_cannot_be_started_leaves_nothing(tmp_path: Path, word: str, code: str) -> None:
    async with serving(Guest(tmp_path)) as guest:
        watcher = FakeWatcher()
        await guest.supervisor.run(watcher, OWN, Service("line", (word,)), TERMS)
        assert (await watcher.refusal())[0] == code
        assert f"refused ({code})" in guest.log.text
        assert not guest.recorded()
        assert not list(guest.log_dir.iterdir())
        assert guest.supervisor.find(OWN) is None


async def test_start_that_fails_later_is_refused_and_forgotten(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        watchers = [FakeWatcher(), FakeWatcher()]
        guest.processes.breaks[OTHER] = StartError("3 launchers died over it")
        for watcher, run_id, service in zip(watchers, (OWN, OTHER), (SERVICE, SLEEP), strict=True):
            await guest.supervisor.run(watcher, run_id, service, TERMS)
            await guest.processes.until_followed(run_id)
        guest.processes.change(OWN, State("failed", failure=("not-executable", "permission denied"), gone=True))
        assert await watchers[0].refusal() == ("not-executable", "permission denied")
        code, text = await watchers[1].refusal()
        assert code == "start-failed"
        assert "'/bin/sleep 7'" in text
        assert "launchers died" in text
        assert not guest.recorded()


async def test_record_that_breaks_while_it_is_followed_is_a_lost_outcome(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        guest.processes.breaks[OWN] = DamagedRecordError("neither slot of the state is whole")
        watcher = FakeWatcher()
        await guest.supervisor.run(watcher, OWN, SERVICE, TERMS)
        outcome = await watcher.outcome()
        assert isinstance(outcome, Lost)
        assert "neither slot" in outcome.reason


async def test_limit_is_the_settings_and_a_lowered_one_ends_nobody(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path, max_processes=2)) as guest:
        await guest.start(OWN)
        await guest.start(OTHER, SLEEP)
        watcher = FakeWatcher()
        await guest.supervisor.run(watcher, THIRD, Service("line", ("/bin/sleep 8",)), TERMS)
        assert (await watcher.refusal())[0] == "limit"
        guest.supervisor.reconfigure(replace(guest.settings, max_processes=1))
        assert guest.supervisor.count_active() == 2
        guest.supervisor.reconfigure(replace(guest.settings, max_processes=3))
        await guest.start(THIRD, Service("line", ("/bin/sleep 8",)))


async def test_missing_log_directory_refuses_the_start_and_says_so(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        guest.log_dir.rmdir()
        watcher = FakeWatcher()
        await guest.supervisor.run(watcher, OWN, SERVICE, TERMS)
        code, text = await watcher.refusal()
        assert code == "storage"
        assert str(guest.log_dir) in text
        assert "No such file or directory" in text
        assert not guest.recorded()
        guest.log_dir.mkdir()
        await guest.start(OWN)


async def test_state_directory_that_is_gone_refuses_the_start_and_leaves_no_log(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        (tmp_path / "state" / "runs").rename(tmp_path / "moved")
        watcher = FakeWatcher()
        await guest.supervisor.run(watcher, OWN, SERVICE, TERMS)
        code, text = await watcher.refusal()
        assert code == "storage"
        assert "cannot be recorded" in text
        assert not list(guest.log_dir.iterdir())


async def test_starts_that_are_refused_for_want_of_room_do_not_cost_the_logs_of_real_ones(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        watcher = await guest.start(OWN)
        guest.processes.change(OWN, ENDED)
        await watcher.outcome()
        (kept,) = guest.log_dir.iterdir()
        kept.write_text("why it crashed\n")
        (tmp_path / "state" / "runs").rename(tmp_path / "moved")
        for number in range(KEPT_LOGS + 1):
            await guest.supervisor.run(watcher, f"{number:032x}", SERVICE, TERMS)
            assert (await watcher.refusal())[0] == "storage"
        assert kept.read_text() == "why it crashed\n"


def mode(path: str) -> int:
    return os.stat(path).st_mode & 0o777


async def test_full_disk_refuses_the_start_and_loses_no_outcome(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 256) as disk:
        async with serving(Guest(disk)) as guest:
            watcher = await guest.start(OWN, SLEEP)
            filler = fill(disk)
            other = FakeWatcher()
            await guest.supervisor.run(other, OTHER, SERVICE, TERMS)
            code, text = await other.refusal()
            assert code == "storage"
            assert "No space left on device" in text
            assert guest.recorded() == {OWN}
            assert [path.name.split("-")[0] for path in guest.log_dir.iterdir()] == ["sleep"]
            file = StateFile(guest.records.get(OWN))
            file.write(ENDED)
            file.close()
            guest.processes.change(OWN, guest.records.get(OWN).read_state())
            assert await watcher.outcome() == Exited(3)
            guest.supervisor.acknowledge(OWN)
            assert guest.records.get(OWN).is_collected()
            filler.unlink()
            await guest.start(OTHER)


async def test_running_one_is_found_again_followed_and_attached_to(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.record(OWN, RUNNING)
    guest.records.add_alias(OTHER, OWN)
    async with serving(guest):
        await guest.processes.until_followed(OWN)
        assert "found again an application that runs" in guest.log.text
        assert guest.supervisor.count_active() == 1
        watcher = FakeWatcher()
        await guest.supervisor.watch(watcher, OTHER, TERMS)
        told = await watcher.next()
        assert isinstance(told, TellRunning)
        assert (told.run.run_id, told.run.pid, told.attached) == (OWN, 4711, True)
        guest.processes.change(OWN, ENDED)
        assert await watcher.outcome() == Exited(3)


async def test_loop_turns_for_managers_while_many_are_found_again(tmp_path: Path) -> None:
    guest = Guest(tmp_path, max_processes=100)
    for number in range(10 * FOLLOWED_AT_ONCE):
        guest.record(f"{number:032x}", RUNNING)
    followed = guest.processes.followed
    async with serving(guest):
        assert len(followed) <= 3 * FOLLOWED_AT_ONCE  # it takes some turns to be told that it serves
        while (before := len(followed)) < 10 * FOLLOWED_AT_ONCE:
            await trio.lowlevel.checkpoint()
            assert len(followed) <= before + 2 * FOLLOWED_AT_ONCE  # what is left of one turn, and the next one


async def test_a_start_that_nobody_made_is_dropped_and_made_anew_where_somebody_still_wants_it(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.record(OWN, State())
    async with serving(guest):
        assert guest.recorded() == set()
        assert guest.log.count("dropped a start that was asked for, but not made") == 1
        await guest.start(OWN)
        assert guest.recorded() == {OWN}


async def test_one_that_was_being_started_is_followed_and_joined(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.record(OWN, State())
    guest.processes.watched.add(OWN)  # by a waiter, which has yet to execute it
    async with serving(guest):
        await guest.processes.until_followed(OWN)
        watcher = FakeWatcher()
        await guest.supervisor.run(watcher, OTHER, SERVICE, TERMS)
        assert not watcher.told
        guest.processes.change(OWN, RUNNING)
        assert isinstance(await watcher.next(), TellRunning)
        assert guest.recorded() == {OWN}


async def test_ended_one_is_not_followed_and_its_outcome_waits(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.record(OWN, ENDED)
    async with serving(guest):
        watcher, second = FakeWatcher(), FakeWatcher()
        await guest.supervisor.watch(watcher, OWN, TERMS)
        assert await watcher.outcome() == Exited(3)
        await guest.supervisor.run(second, OTHER, SERVICE, TERMS)
        await guest.processes.until_followed(OTHER)
        guest.processes.change(OTHER, RUNNING)
        told = await second.next()
        assert isinstance(told, TellRunning)
        assert told.previous == (OWN, Exited(3))
        assert OWN not in guest.processes.followed


async def test_collected_outcome_is_not_told_again_by_the_next_server(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.record(OWN, ENDED)
    guest.records.get(OWN).mark_collected()
    async with serving(guest):
        watcher = FakeWatcher()
        await guest.supervisor.run(watcher, OTHER, SERVICE, TERMS)
        await guest.processes.until_followed(OTHER)
        guest.processes.change(OTHER, RUNNING)
        told = await watcher.next()
        assert isinstance(told, TellRunning)
        assert told.previous is None


async def test_survivors_of_an_ended_one_are_followed_on(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.record(OWN, replace(ENDED, gone=False, stop=StopOrder("the survivors policy", 1.0)))
    async with serving(guest):
        await guest.processes.until_followed(OWN)
        assert "what is left of an application" in guest.log.text
        watcher = FakeWatcher()
        await guest.supervisor.run(watcher, OTHER, SERVICE, TERMS)
        assert guest.recorded() == {OWN}  # it has to wait until they are gone
        guest.processes.change(OWN, replace(ENDED, stop=StopOrder("the survivors policy", 1.0)))
        await guest.processes.until_followed(OTHER)


async def test_stop_of_a_former_server_is_completed_before_its_end_is_told(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    outcome = Exited(3, Account(stopped_by="x"))
    guest.record(OWN, replace(ENDED, outcome=outcome, gone=False, stop=StopOrder("x", 1.0)))
    async with serving(guest):
        await guest.processes.until_followed(OWN)
        run = guest.supervisor.find(OWN)
        assert run is not None
        assert run.phase is Phase.STOPPING
        watcher = FakeWatcher()
        await guest.supervisor.watch(watcher, OWN, TERMS)
        assert isinstance(await watcher.next(), TellRunning)
        guest.processes.change(OWN, replace(ENDED, outcome=outcome, stop=StopOrder("x", 1.0)))
        assert await watcher.outcome() == outcome


async def test_failed_start_is_forgotten(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.record(OWN, State("failed", failure=("start-failed", "x"), gone=True))
    async with serving(guest):
        assert not guest.recorded()
        await guest.start(OWN)


@pytest.mark.parametrize(("state", "words"), [(RUNNING, "while it ran"), (State(), "before it was started")])
async def test_run_of_another_boot_is_lost_and_not_followed(tmp_path: Path, state: State, words: str) -> None:
    guest = Guest(tmp_path)
    guest.record(OWN, state, boot="another")
    async with serving(guest):
        watcher = FakeWatcher()
        await guest.supervisor.watch(watcher, OWN, TERMS)
        outcome = await watcher.outcome()
        assert isinstance(outcome, Lost)
        assert "rebooted" in outcome.reason
        assert words in outcome.reason
        await guest.start(OTHER)
        assert OWN not in guest.processes.followed


async def test_outcome_of_another_boot_is_still_true(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.record(OWN, replace(ENDED, gone=False), boot="another")
    async with serving(guest):
        watcher = FakeWatcher()
        await guest.supervisor.watch(watcher, OWN, TERMS)
        assert await watcher.outcome() == Exited(3)
        assert not guest.processes.followed


@pytest.mark.parametrize("damaged", ["request", "state"])
async def test_damaged_record_is_said_and_the_others_are_found(tmp_path: Path, damaged: str) -> None:
    guest = Guest(tmp_path)
    guest.record(OWN, RUNNING)
    guest.record(OTHER, RUNNING, service=SLEEP)
    damage(guest.records.get(OWN).file(damaged))
    async with serving(guest):
        await guest.processes.until_followed(OTHER)
        assert f"the record of run {OWN} is damaged: " in guest.log.text
        watcher = FakeWatcher()
        await guest.supervisor.watch(watcher, OWN, TERMS)
        assert isinstance(await watcher.outcome(), Lost)


async def test_alias_of_a_run_that_is_gone_means_nothing(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.records.add_alias(OTHER, OWN)
    async with serving(guest):
        await guest.start(OTHER)
        assert guest.recorded() == {OTHER}


async def test_stop_while_the_program_is_still_looked_for_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = threading.Event()

    def slow(word: str, *_: object) -> Program:
        assert found.wait(PATIENCE_SECONDS)
        return Program(word, word, None)

    monkeypatch.setattr("appserver.starting.resolve_command", slow)
    guest = Guest(tmp_path)
    async with serving(guest):
        watcher = FakeWatcher()
        await guest.supervisor.run(watcher, OWN, SERVICE, TERMS)
        await guest.supervisor.stop(watcher, OWN, "somebody", 1)
        found.set()
        outcome = await watcher.outcome()
        assert isinstance(outcome, Lost)
        assert "before it was started" in outcome.reason
        assert guest.processes.followed == {}
        assert guest.records.all() == []


async def test_bug_in_one_start_refuses_that_one_and_the_server_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> str:
        raise RuntimeError("unforeseen")

    guest = Guest(tmp_path)
    async with serving(guest):
        with monkeypatch.context() as patch:
            patch.setattr("appserver.starting.resolve_command", broken)
            watcher = FakeWatcher()
            await guest.supervisor.run(watcher, OWN, SERVICE, TERMS)
            code, text = await watcher.refusal()
        assert code == "start-failed"
        assert "unforeseen" in text
        await guest.start()


async def test_run_with_a_damaged_state_is_in_the_way_of_another_as_long_as_its_waiter_lives(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    guest = Guest(tmp_path)
    guest.record(OWN, RUNNING)
    (tmp_path / "state" / "runs" / OWN / "state").write_bytes(b"torn")
    guest.processes.watched.add(OWN)
    guest.processes.breaks[OWN] = DamagedRecordError("torn")
    async with serving(guest):
        watcher = FakeWatcher()
        await guest.supervisor.run(watcher, "2" * 32, SERVICE, TERMS)
        began = autojump_clock.current_time()
        with trio.move_on_after(100):
            await trio.sleep_forever()
        assert autojump_clock.current_time() >= began + 100
        assert isinstance(watcher.told.pop(0), TellRunning)
        assert watcher.told == []
        guest.processes.watched.clear()
        assert isinstance(await watcher.outcome(), Lost)
