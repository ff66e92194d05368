"""The drill itself: that its plan is repeatable, that its oracle can fail, and a short drill for real."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from drill import oracle
from drill.exercise import Order, run_drill
from drill.notes import read_notes
from drill.oracle import Circumstances, judge
from drill.plan import SORTS, Service, make_guest_faults, make_services
from drill.reports import FAILURE_STATUS, Report, read_log
from drill.tally import MUST_BE_ZERO

SAID = "the application 'app' on the node g1"


def service(sort: str = "code", **traits: str) -> Service:
    return Service(0, sort, (), traits=traits)


def report(
    status: int, *log: str, killed: bool = False, halted_at: float | None = None, alive: frozenset[int] = frozenset()
) -> Report:
    """Make the report of a manager that lived from 1 to 9 and saw its application run from 2 on."""
    made = Report(1.0, 9.0, status, killed=killed, halted_at=halted_at, claimed_at=2.0, alive=alive)
    read_log(made, "\n".join([*log, f"PROGRAM EXIT CODE {status}"]))
    return made


def started(pid: int = 10) -> str:
    return f"started {SAID}: process {pid}, output in /log/app.log"


def ended(how: str) -> str:
    return f"{SAID} ended after 3.0 s: {how}"


def columns_of(what: Service, notes: str, *reports: Report, around: Circumstances | None = None) -> dict[str, int]:
    found: dict[str, int] = {}
    for finding in judge(what, read_notes(notes), list(reports), around or Circumstances()):
        found[finding.column] = found.get(finding.column, 0) + 1
    return found


SEVEN = "start 10 0 1.5\nend 10 code:7 5.0\n"
LOST = f"{SAID} is gone after 3.0 s: outcome lost: its waiter was killed"


def test_a_true_report_is_right() -> None:
    seven = report(7, started(), ended("exited with code 7, by itself"))
    assert columns_of(service(), SEVEN, seven) == {oracle.RIGHT: 1}
    killed = report(139, started(), ended("ended by signal 11 (SIGSEGV)"))
    assert columns_of(service(), "start 10 0 1.5\nend 10 signal:11 5.0\n", killed) == {oracle.RIGHT: 1}


def test_an_application_that_was_stopped_before_it_noted_its_start_may_have_answered_or_not() -> None:
    """Its answer to TERM is in place a moment before the note."""
    answers = service("stop", term="code:9")
    for status, how in ((9, "exited with code 9"), (143, "ended by signal 15 (SIGTERM)")):
        stopped = report(status, started(), ended(f"{how}, stopped by cmappmgr[1] on h"), halted_at=2.1)
        assert columns_of(answers, "term 10 2.2\n", stopped) == {oracle.RIGHT: 1}
    other = report(8, started(), ended("exited with code 8, stopped by cmappmgr[1] on h"), halted_at=2.1)
    assert columns_of(answers, "term 10 2.2\n", other) == {oracle.WRONG: 1}
    default = service("stop", term="default")
    answered = report(9, started(), ended("exited with code 9, stopped by cmappmgr[1] on h"), halted_at=2.1)
    assert columns_of(default, "", answered) == {oracle.WRONG: 1}


@pytest.mark.parametrize(
    "wrong",
    [
        report(0, started(), ended("exited with code 0, by itself")),
        report(8, started(), ended("exited with code 8, by itself")),
        report(8, started(), ended("exited with code 7, by itself")),
        report(143, started(), ended("ended by signal 15 (SIGTERM)")),
        report(7, started(), ended("exited with code 7, stopped by cmappmgr")),
        report(7, started(), ended("exited with code 7, by itself, 2 descendants live on")),
        report(7, started(11), ended("exited with code 7, by itself")),
        report(7, started(), ended("exited with code 7, by itself"), alive=frozenset({10})),
        report(7, started(), "Traceback (most recent call last):", ended("exited with code 7, by itself")),
        report(137, started(), ended("ended by signal 9 (SIGKILL), killed for memory")),
        report(FAILURE_STATUS, "no answer from the node g1 for 60 s, giving up; the application may still run"),
        report(FAILURE_STATUS, "the node g1 refused 'app': 30 processes run already (limit)"),
        report(1),
        report(-9),
    ],
    ids=lambda wrong: f"{wrong.status} {wrong.said or wrong.log[:30]}",
)
def test_a_wrong_report_is_found(wrong: Report) -> None:
    assert columns_of(service(), SEVEN, wrong).get(oracle.WRONG) == 1


def test_a_loss_is_allowed_only_where_a_waiter_was_killed_and_the_kernel_could_not_tell() -> None:
    lost = report(FAILURE_STATUS, started(), LOST)
    kills = [4.0]
    assert columns_of(service(), SEVEN, lost) == {oracle.LOST_FORBIDDEN: 1}
    killed = Circumstances(waiter_kills=kills)
    assert columns_of(service(), SEVEN, lost, around=killed) == {oracle.LOST_FORBIDDEN: 1}
    old_kernel = Circumstances(kernel_tells=False, waiter_kills=kills)
    assert columns_of(service(), SEVEN, lost, around=old_kernel) == {oracle.LOST_ALLOWED: 1}
    nobody_held = Circumstances(waiter_kills=kills, server_away=[(4.5, 5.5)])
    assert columns_of(service(), SEVEN, lost, around=nobody_held) == {oracle.LOST_ALLOWED: 1}
    away_long_before = Circumstances(waiter_kills=kills, server_away=[(0.5, 1.8)])
    assert columns_of(service(), SEVEN, lost, around=away_long_before) == {oracle.LOST_FORBIDDEN: 1}


def test_a_loss_must_not_end_with_the_status_of_a_success() -> None:
    around = Circumstances(kernel_tells=False, waiter_kills=[4.0])
    found = columns_of(service(), SEVEN, report(0, started(), LOST), around=around)
    assert found == {oracle.LOST_ALLOWED: 1, oracle.WRONG: 1}


def test_a_second_copy_is_found_beside_the_first_and_after_it() -> None:
    seven = report(7, started(), ended("exited with code 7, by itself"))
    beside = "start 10 0 1.5\ndouble 12 3.0\nend 10 code:7 5.0\n"
    assert columns_of(service(), beside, seven)[oracle.DOUBLE] == 1
    after = "start 10 0 1.5\nend 10 code:7 5.0\nstart 12 1 6.0\nend 12 code:8 7.0\n"
    assert columns_of(service(), after, seven)[oracle.DOUBLE] == 1


def test_an_ending_that_nobody_was_told_of_is_found() -> None:
    twice = "start 10 0 1.5\nend 10 code:7 2.5\nstart 12 1 3.0\nend 12 code:8 4.0\n"
    attached_too_late = report(8, started(12), ended("exited with code 8, by itself"))
    told = "an earlier run of the application ended without a manager after 1.0 s: exited with code 7, by itself"
    knowing = report(8, told, started(12), ended("exited with code 8, by itself"))
    before = Report(0.5, 2.0, -9, killed=True, pid=10, claim="started")
    assert columns_of(service(), twice, before, attached_too_late)[oracle.UNTOLD] == 1
    assert columns_of(service(), twice, before, knowing) == {oracle.RIGHT: 2}
    may_have_been_told = Report(0.5, 2.6, -9, killed=True, pid=10, claim="started")
    assert columns_of(service(), twice, may_have_been_told, attached_too_late) == {oracle.RIGHT: 1}
    falsely_told = report(8, told.replace("7", "9"), started(12), ended("exited with code 8, by itself"))
    assert columns_of(service(), twice, before, falsely_told)[oracle.WRONG] == 1


def test_endings_that_are_alike_are_told_apart() -> None:
    thrice = "".join(f"start 1{at} 0 {at}.0\nend 1{at} signal:13 {at}.5\n" for at in (1, 2, 3))
    told = "an earlier run of the application ended without a manager after 0.5 s: ended by signal 13 (SIGPIPE)"
    first = Report(0.5, 1.2, -9, killed=True, pid=11, claim="started")
    second = Report(0.5, 2.2, -9, log=told, previous=["signal:13"], killed=True, pid=12, claim="started")
    quick = f"started {SAID}: it has ended already"
    third = report(141, told, quick, ended("ended by signal 13 (SIGPIPE)"))
    assert columns_of(service("signal"), thrice, first, second, third) == {oracle.RIGHT: 3}
    assert columns_of(service("signal"), thrice, first, third)[oracle.UNTOLD] == 1


def test_an_earlier_run_may_have_been_stopped_before_it_noted_anything() -> None:
    told = "an earlier run of the application ended without a manager after 0.1 s: ended by signal 15 (SIGTERM)"
    halted = Report(0.5, 1.0, -9, killed=True, halted_at=0.8, pid=9, claim="started")
    seven = report(7, told, started(), ended("exited with code 7, by itself"))
    assert columns_of(service(term="code:4"), SEVEN, halted, seven) == {oracle.RIGHT: 2}
    assert columns_of(service(term="code:4"), SEVEN, seven)[oracle.WRONG] == 1


def test_a_stop_is_judged_by_what_the_application_makes_of_it() -> None:
    notes = "start 10 0 1.5\nchild 11 1.6\n"
    by_signal = report(143, started(), ended("ended by signal 15 (SIGTERM), stopped by cmappmgr"), halted_at=3.0)
    by_code = report(4, started(), ended("exited with code 4, stopped by cmappmgr"), halted_at=3.0)
    by_force = report(137, started(), ended("ended by signal 9 (SIGKILL), stopped by cmappmgr"), halted_at=3.0)
    policies = {"default": by_signal, "code:4": by_code, "ignore": by_force}
    for policy, told in itertools.product(policies, policies.values()):
        right = told is policies[policy]
        found = columns_of(service("stop", term=policy), notes, told)
        assert found == {oracle.RIGHT if right else oracle.WRONG: 1}


def test_whoever_outlives_a_stop_is_found() -> None:
    notes = "start 10 0 1.5\nchild 11 1.6\n"
    said = ended("ended by signal 15 (SIGTERM), stopped by cmappmgr")
    told = report(143, started(), said, halted_at=3.0, alive=frozenset({11}))
    assert columns_of(service("stop"), notes, told) == {oracle.RIGHT: 1, oracle.ALIVE: 1}
    orphaned = Circumstances(waiter_kills=[2.0])
    assert columns_of(service("stop"), notes, told, around=orphaned) == {oracle.RIGHT: 1, oracle.OUT_OF_REACH: 1}
    lives_itself = report(143, started(), said, halted_at=3.0, alive=frozenset({10}))
    assert columns_of(service("stop"), notes, lives_itself)[oracle.WRONG] == 1


def test_a_stop_is_given_up_only_without_contact() -> None:
    words = "the node g1 could not be asked to stop the application within 4 s, giving up"
    gave_up = report(FAILURE_STATUS, started(), words, halted_at=4.0)
    notes = "start 10 0 1.5\n"
    assert columns_of(service("stop"), notes, gave_up) == {oracle.WRONG: 1}
    around = Circumstances(contact_away=[(3.5, 8.0)])
    assert columns_of(service("stop"), notes, gave_up, around=around) == {oracle.GAVE_UP: 1}


def test_the_same_seed_makes_the_same_plan() -> None:
    assert list(make_services(7, 100)) == list(make_services(7, 100))
    assert list(make_services(7, 100)) != list(make_services(8, 100))
    first, again = (list(itertools.islice(make_guest_faults(7), 100)) for _ in range(2))
    assert first == again


def test_a_plan_has_every_sort_of_service() -> None:
    planned = list(make_services(1, 1000))
    assert {one.sort for one in planned} == set(SORTS)
    assert sum(one.asked for one in planned) in {1000, 1001, 1002}


@pytest.mark.slow
async def test_a_short_drill_is_clean(tmp_path: Path, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The ten services of this seed are quick; managers, server, launcher and waiters are killed meanwhile.
    tally = await run_drill(Order(runs=10, seed=1984, at_once=10, faster=4.0), tmp_path / "guest", keys, print)
    found = {column: tally.found[column] for column in MUST_BE_ZERO if tally.found[column]}
    assert not found, capsys.readouterr().out
    assert tally.runs >= 10
    assert tally.faults.total() >= 5
    assert tally.found[oracle.RIGHT] >= 8
