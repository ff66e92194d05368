"""What a server finds again of what a former one left, where some of it is damaged, foreign or out of order."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from supervised import (
    ENDED,
    OTHER,
    OWN,
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

from appserver.effects import TellRefused, TellRunning
from appserver.identity import Service
from appserver.outcome import Exited, Lost
from appserver.procfs import boot_id
from appserver.recordformat import FORMAT, State, seal
from appserver.records import StateFile
from appserver.runlog import service_digest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="starts POSIX commands by name")


def overwrite(path: str, content: bytes) -> None:
    Path(path).write_bytes(content)


def content_of(path: str) -> bytes:
    return Path(path).read_bytes()


async def test_run_with_a_damaged_state_and_no_waiter_is_lost_and_never_started_again(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.record(OWN, RUNNING)
    damage(guest.records.get(OWN).file("state"))
    async with serving(guest):
        watcher, other = FakeWatcher(), FakeWatcher()
        await guest.supervisor.run(watcher, OWN, SERVICE, TERMS)
        outcome = await watcher.outcome()
        assert isinstance(outcome, Lost)
        assert "neither slot of the state is whole" in outcome.reason
        await guest.supervisor.run(other, OTHER, SERVICE, TERMS)
        await guest.processes.until_followed(OTHER)
        guest.processes.change(OTHER, RUNNING)
        told = await other.next()
        assert isinstance(told, TellRunning)
        assert told.previous == (OWN, outcome)


async def test_damaged_request_is_told_by_the_waiter_and_written_anew(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.record(OWN, RUNNING)
    record = guest.records.get(OWN)
    request = record.read_request()
    damage(record.file("request"))
    guest.processes.described[OWN] = (request, RUNNING)
    async with serving(guest):
        assert record.read_request() == request
        assert "its waiter knows it" in guest.log.text
        watcher = FakeWatcher()
        await guest.supervisor.run(watcher, OTHER, SERVICE, TERMS)
        told = await watcher.next()
        assert isinstance(told, TellRunning)
        assert (told.attached, told.run.run_id) == (True, OWN)


@pytest.mark.parametrize(
    ("digest", "refused"),
    [(service_digest(SERVICE), {SERVICE}), (None, {SERVICE, SLEEP})],
    ids=["its digest can be read", "nothing can be read"],
)
async def test_start_beside_a_run_that_may_be_the_same_service_is_refused_until_that_one_has_ended(
    tmp_path: Path, digest: str | None, refused: set[Service]
) -> None:
    guest = Guest(tmp_path)
    running = replace(RUNNING, boot=boot_id(), service_digest=digest)
    guest.record(OWN, running)
    damage(guest.records.get(OWN).file("request"))
    async with serving(guest):
        await guest.processes.until_followed(OWN)
        for number, service in enumerate((SERVICE, SLEEP)):
            watcher, run_id = FakeWatcher(), f"{number:032x}"
            await guest.supervisor.run(watcher, run_id, service, TERMS)
            told = await guest.first_news(watcher, run_id)
            assert isinstance(told, TellRefused) == (service in refused)
            if isinstance(told, TellRefused):
                assert told.code == "start-failed"
                assert f"run {OWN}, process 4711, still runs and may be one of the same service" in told.text
        watcher = FakeWatcher()
        await guest.supervisor.watch(watcher, OWN, TERMS)
        assert isinstance(await watcher.next(), TellRunning)
        guest.processes.change(OWN, replace(running, phase="ended", outcome=Exited(3), gone=True))
        assert await watcher.outcome() == Exited(3)
        await guest.start(OTHER)


@pytest.mark.parametrize("boot", ["another", None])
async def test_stray_of_another_boot_is_neither_followed_nor_in_the_way(tmp_path: Path, boot: str | None) -> None:
    guest = Guest(tmp_path)
    guest.record(OWN, replace(RUNNING, boot=boot))
    damage(guest.records.get(OWN).file("request"))
    async with serving(guest):
        await guest.start(OTHER)
        assert OWN not in guest.processes.followed


async def test_record_of_a_newer_server_is_left_to_it(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.record(OWN, ENDED)
    record = guest.records.get(OWN)
    content = seal({"format": FORMAT + 1, "all": "new"})
    for name in ("request", "state"):
        overwrite(record.file(name), content)
    async with serving(guest):
        assert f"has format {FORMAT + 1}, of a newer server" in guest.log.text
        watcher = FakeWatcher()
        await guest.supervisor.watch(watcher, OWN, TERMS)
        assert isinstance(await watcher.outcome(), Lost)
        await guest.start(OTHER)
    assert [content_of(record.file(name)) for name in ("request", "state")] == [content, content]


async def test_runs_are_found_in_the_order_of_their_making_whatever_the_clock_did(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    made = [f"{number:032x}" for number in range(3)]
    async with serving(guest):
        for run_id in made:
            watcher = await guest.start(run_id)
            guest.processes.change(run_id, ENDED)
            file = StateFile(guest.records.get(run_id))
            file.write(ENDED)
            file.close()
            guest.supervisor.leave(watcher)
    for seconds, run_id in zip((3, 2, 1), made, strict=True):  # as if the clock had been set back twice
        os.utime(guest.records.get(run_id).path, (seconds, seconds))
    async with serving(Guest(tmp_path)) as another:
        watcher = FakeWatcher()
        await another.supervisor.run(watcher, OTHER, SERVICE, TERMS)
        await another.processes.until_followed(OTHER)
        another.processes.change(OTHER, RUNNING)
        told = await watcher.next()
        assert isinstance(told, TellRunning)
        assert told.previous == (made[-1], Exited(3))
        serials = [another.records.get(run_id).read_request().serial for run_id in (*made, OTHER)]
        assert serials == [1, 2, 3, 4]


async def test_junk_among_the_runs_is_said_and_left_alone(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    runs, aliases = tmp_path / "state" / "runs", tmp_path / "state" / "aliases"
    elsewhere = tmp_path / "elsewhere"
    guest.record(OWN, RUNNING)
    (runs / OWN).rename(elsewhere)
    (runs / OWN).symlink_to(elsewhere)
    (runs / "file").write_text("x")
    (aliases / "file").write_text("x")
    (aliases / "directory").mkdir()
    guest.record(OTHER, RUNNING, service=SLEEP)
    guest.records.add_alias(OTHER, THIRD)  # torn: one that is named by a run must not hide it
    async with serving(guest):
        for path in (runs / OWN, runs / "file"):
            assert f"{path} is no record of ours" in guest.log.text
        assert guest.supervisor.find(OWN) is None
        run = guest.supervisor.find(OTHER)
        assert run is not None
        assert run.run_id == OTHER
        assert dict(guest.records.aliases()) == {}
    assert {OWN, "file"} <= set(os.listdir(runs))


async def test_directory_that_bears_another_runs_name_is_not_taken_for_it(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.record(OWN, RUNNING)
    os.rename(guest.records.get(OWN).path, guest.records.get(OTHER).path)
    async with serving(guest):
        assert f"the request is one of another run, '{OWN}'" in guest.log.text
        assert guest.supervisor.find(OWN) is None
        await guest.start(THIRD)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can give a directory away")
async def test_record_of_somebody_else_is_not_taken_for_ours(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.record(OWN, State())
    os.chown(guest.records.get(OWN).path, 65534, 65534)
    async with serving(guest):
        assert "is no record of ours" in guest.log.text
        assert not guest.processes.followed
