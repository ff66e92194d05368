"""What the sections of certificates take from managers, as the supervisor heeds them: attach, stop, terms, reload."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest
import trio
from supervised import OTHER, OWN, PATIENCE_SECONDS, RUNNING, SERVICE, TERMS, THIRD, FakeWatcher, Guest, serving

from appserver.commands import Program
from appserver.effects import Tell, TellEnded, TellRefused, TellRunning, TellStopping, Terms
from appserver.outcome import Exited
from appserver.recordformat import State
from appserver.rules import Grant, Grants
from appserver.runas import own_user

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="starts POSIX commands by name")

OWNER, STRANGER = "AA" * 32, "BB" * 32
PROGRAM = os.path.realpath("/bin/true")


class Manager(FakeWatcher):
    def __init__(self, fingerprint: str) -> None:
        super().__init__()
        self.fingerprint = fingerprint
        self.audit_name = f"a manager, certificate {fingerprint[:2]}"


def confine(guest: Guest, *grants: Grant) -> None:
    """Have the guest heed sections from now on, as after a reload."""
    guest.supervisor.reconfigure(guest.settings, Grants(grants, {OWNER: "owner", STRANGER: "stranger"}))


async def started(guest: Guest, run_id: str = OWN) -> Manager:
    """Have the owner's manager start the service."""
    manager = Manager(OWNER)
    await guest.supervisor.run(manager, run_id, SERVICE, TERMS)
    await guest.processes.until_followed(run_id)
    guest.processes.change(run_id, RUNNING)
    assert isinstance(await manager.next(), TellRunning)
    return manager


@pytest.mark.parametrize(
    ("grant", "told"),
    [
        (Grant("stranger", start=()), f"does not permit to attach to '{PROGRAM}'"),
        (Grant("stranger", start=("*",), attach=("/apps/*",)), f"does not permit to attach to '{PROGRAM}'"),
        (Grant("stranger", user="oracle"), f"may attach to what runs as 'oracle' only, not as '{own_user()}'"),
        (Grant("stranger", start=(), attach=("*",)), None),
        (Grant("stranger", start=(PROGRAM,), stop=()), None),
        (Grant("stranger", user=own_user()), None),
        (Grant("stranger", max_processes=1), None),
        (Grant("others", start=()), None),
    ],
)
async def test_a_certificate_attaches_only_to_what_its_section_permits(
    tmp_path: Path, grant: Grant, told: str | None
) -> None:
    async with serving(Guest(tmp_path)) as guest:
        await started(guest)
        confine(guest, grant, *([Grant("stranger")] if grant.name == "others" else []))
        await guest.supervisor.run(manager := Manager(STRANGER), OTHER, SERVICE, TERMS)
        await judged(manager, told)
        await guest.supervisor.watch(manager := Manager(STRANGER), OWN, TERMS)
        await judged(manager, told)


def stops(guest: Guest) -> list[object]:
    return [order for order in guest.processes.orders if order[0] == "stop"]


def terms(guest: Guest) -> list[object]:
    return [order for order in guest.processes.orders if order[0] == "terms"]


async def judged(manager: Manager, told: str | None) -> None:
    answer = await manager.next()
    if told is None:
        assert isinstance(answer, TellRunning)
    else:
        assert isinstance(answer, TellRefused)
        assert answer.code == "rule"
        assert told in answer.text


async def test_whoever_was_refused_watches_nothing_and_the_application_goes_on(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        owner = await started(guest)
        confine(guest, Grant("stranger", start=()))
        stranger = Manager(STRANGER)
        await guest.supervisor.run(stranger, OTHER, SERVICE, TERMS)
        assert (await stranger.refusal())[0] == "rule"
        assert guest.log.count(f"asked by a manager, certificate {STRANGER[:2]}") == 1
        guest.processes.change(OWN, State(phase="ended", pid=5, outcome=Exited(3), gone=True))
        assert isinstance(await owner.next(), TellEnded)
        assert stranger.told == []


async def test_the_owner_of_a_run_attaches_again_whatever_its_section_has_become(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        await started(guest)
        confine(guest, Grant("owner", start=(), stop=()))
        manager = Manager(OWNER)
        await guest.supervisor.run(manager, OTHER, SERVICE, TERMS)
        assert isinstance(await manager.next(), TellRunning)
        await guest.supervisor.watch(manager, OWN, TERMS)
        assert isinstance(await manager.next(), TellRunning)


async def test_the_owner_is_known_again_by_the_next_server(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    async with serving(guest):
        await started(guest)
    after = Guest(tmp_path)
    confine(after, Grant("others", start=()))
    after.processes.watched.add(OWN)
    async with serving(after):
        await after.processes.until_followed(OWN)
        after.processes.change(OWN, RUNNING)
        await after.supervisor.watch(stranger := Manager(STRANGER), OWN, TERMS)
        assert (await stranger.refusal())[0] == "rule"
        await after.supervisor.watch(owner := Manager(OWNER), OWN, TERMS)
        assert isinstance(await owner.next(), TellRunning)


async def test_a_stop_that_is_not_permitted_is_refused_and_ordered_nowhere(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        await started(guest)
        confine(guest, Grant("stranger", stop=()), Grant("owner", stop=("/apps/*",)))
        for fingerprint in (STRANGER, OWNER):
            manager = Manager(fingerprint)
            await guest.supervisor.run(manager, OTHER, SERVICE, TERMS)
            assert isinstance(await manager.next(), TellRunning)
            await guest.supervisor.stop(manager, OWN, "somebody", 5.0)
            answer = await manager.next()
            assert isinstance(answer, TellRefused)
            assert (answer.code, answer.of_stop) == ("rule", True)
        assert stops(guest) == []
        confine(guest)
        await guest.supervisor.stop(manager, OWN, "somebody", 5.0)
        guest.processes.followed[OWN][1]()
        assert isinstance(await manager.next(), TellStopping)


async def test_who_may_not_stop_sets_no_terms_for_the_end_either(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        await started(guest)
        before = terms(guest)
        confine(guest, Grant("stranger", stop=()))
        manager = Manager(STRANGER)
        await guest.supervisor.run(manager, OTHER, SERVICE, Terms("stop", 0.0))
        await guest.supervisor.watch(manager, OWN, Terms("stop", 0.0))
        assert terms(guest) == before
        confine(guest)
        await guest.supervisor.watch(manager, OWN, Terms("stop", 0.0))
        assert terms(guest) == [*before, ("terms", OWN, Terms("stop", 0.0))]


async def test_who_joins_a_start_is_judged_when_it_is_known_what_will_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = threading.Event()

    def slow(word: str, *_: object) -> Program:
        assert found.wait(PATIENCE_SECONDS)
        return Program(word, word, None)

    monkeypatch.setattr("appserver.starting.resolve_command", slow)
    async with serving(Guest(tmp_path)) as guest:
        confine(guest, Grant("stranger", attach=("/apps/*",)))
        owner, stranger = Manager(OWNER), Manager(STRANGER)
        await guest.supervisor.run(owner, OWN, SERVICE, TERMS)
        await guest.supervisor.run(stranger, OTHER, SERVICE, Terms("stop", 0.0))
        await guest.supervisor.stop(stranger, OTHER, "somebody", 0.0)
        text = (await stranger.refusal())[1]
        assert "still being looked for" in text
        found.set()
        assert "does not permit to attach to" in (await stranger.refusal())[1]
        await guest.processes.until_followed(OWN)
        assert stops(guest) == []
        guest.processes.change(OWN, RUNNING)
        assert isinstance(await owner.next(), TellRunning)


async def test_only_so_many_processes_of_a_certificate_whoever_else_has_some(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        confine(guest, Grant("stranger", max_processes=1))
        await started(guest)
        news: list[Tell | None] = []
        for number in range(2):
            manager = Manager(STRANGER)
            run_id = f"{number:032x}"
            service = type(SERVICE)("line", (f"{SERVICE.text} {number}",))
            await guest.supervisor.run(manager, run_id, service, TERMS)
            with trio.fail_after(PATIENCE_SECONDS):
                news.append(await guest.first_news(manager, run_id))
        assert news[0] is None
        assert isinstance(news[1], TellRefused)
        assert news[1].code == "limit"
        assert "this manager's certificate has 1 process " in news[1].text


async def test_a_session_that_is_trusted_no_more_keeps_to_its_own_runs(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        await started(guest)
        guest.supervisor.reconfigure(guest.settings, Grants((), {}, [OWNER, STRANGER]))
        owner, stranger = Manager(OWNER), Manager(STRANGER)
        await guest.supervisor.watch(stranger, OWN, TERMS)
        assert "trusted no more" in (await stranger.refusal())[1]
        await guest.supervisor.watch(owner, OWN, TERMS)
        assert isinstance(await owner.next(), TellRunning)
        other = type(SERVICE)("line", ("/bin/true other",))
        await guest.supervisor.run(owner, OTHER, other, TERMS)
        assert (await owner.refusal())[0] == "rule"
        await guest.supervisor.stop(owner, OWN, "somebody", 5.0)
        assert stops(guest) == [("stop", OWN, "somebody", 5.0)]


async def test_a_stop_of_what_has_ended_tells_nobody_who_may_not_attach(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        await started(guest)
        guest.processes.change(OWN, State(phase="ended", pid=5, outcome=Exited(3), gone=True))
        confine(guest, Grant("stranger", attach=(), stop=("*",)))
        stranger = Manager(STRANGER)
        await guest.supervisor.stop(stranger, OWN, "somebody", 5.0)
        assert (await stranger.refusal())[0] == "rule"
        assert stranger.told == []


async def test_who_may_not_stop_sets_no_terms_by_waiting_for_the_next_run(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        owner = await started(guest)
        await guest.supervisor.stop(owner, OWN, "somebody", 5.0)
        confine(guest, Grant("stranger", stop=()))
        await guest.supervisor.run(Manager(OWNER), OTHER, SERVICE, TERMS)
        await guest.supervisor.run(Manager(STRANGER), THIRD, SERVICE, Terms("stop", 0.0))
        guest.processes.change(OWN, State(phase="ended", pid=5, outcome=Exited(3), gone=True))
        await guest.processes.until_followed(OTHER)
        assert ("terms", OTHER, Terms("stop", 0.0)) not in terms(guest)


async def test_a_pattern_that_hangs_refuses_that_manager_and_delays_no_start_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()

    def hang(*_: object) -> bool:
        return over.wait(PATIENCE_SECONDS)

    monkeypatch.setattr("appserver.permissions.permits", hang)
    monkeypatch.setattr("appserver.permissions.JUDGE_SECONDS", 0.05)
    async with serving(Guest(tmp_path)) as guest:
        await started(guest)
        confine(guest, Grant("stranger", attach=("/net/*",)))
        stranger = Manager(STRANGER)
        await guest.supervisor.watch(stranger, OWN, TERMS)
        assert "file system that hangs: try again" in (await stranger.refusal())[1]
        over.set()


async def test_a_pattern_for_which_there_is_no_thread_refuses_that_manager_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_thread(*_: object, **__: object) -> bool:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    async with serving(Guest(tmp_path)) as guest:
        await started(guest)
        confine(guest, Grant("stranger", attach=("/bin/*",)))
        monkeypatch.setattr("trio.to_thread.run_sync", no_thread)
        stranger = Manager(STRANGER)
        await guest.supervisor.watch(stranger, OWN, TERMS)
        code, text = await stranger.refusal()
        assert code == "rule"
        assert "cannot be looked at now (can't start new thread): try again" in text


async def test_every_attachment_is_a_line_that_names_the_certificate(tmp_path: Path) -> None:
    async with serving(Guest(tmp_path)) as guest:
        await started(guest)
        await guest.supervisor.watch(Manager(STRANGER), OWN, TERMS)
        await guest.supervisor.run(Manager(STRANGER), OTHER, SERVICE, TERMS)
        assert guest.log.count(f"attached to '/bin/true', run {OWN}, asked by a manager, certificate BB") == 2
