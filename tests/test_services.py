"""The table of services: what is asked and what happens, and the effects that follow. All of it in any order is
the business of `test_table_sequences`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from appserver import effects, retention, services
from appserver.effects import (
    Effect,
    Forget,
    ForgetAlias,
    Launch,
    NoteAlias,
    NoteCollected,
    OrderStop,
    Phase,
    Run,
    SetTerms,
    TellEnded,
    TellRefused,
    TellRunning,
    TellStopping,
    Terms,
    Watcher,
)
from appserver.identity import Service
from appserver.outcome import Account, Exited, Lost, Outcome, Signaled
from appserver.services import MAX_ALIASES_OF_A_RUN, Services

PING = Service("line", ("/apps/ping_mon",))
TERMS = Terms()
STOP_TERMS = Terms("stop", 5.0)


@dataclass(frozen=True)
class Manager:
    """A session, by its name."""

    name: str
    fingerprint: str = "AB"

    @property
    def audit_name(self) -> str:
        return self.name

    def tell(self, what: effects.Tell, /) -> None:
        raise AssertionError(f"the table only says what is to be told, it tells nothing itself: {what!r}")


A, B, C = Manager("a"), Manager("b"), Manager("c")


def service(number: int) -> Service:
    return Service("line", (f"/apps/{number}",))


def start(table: Services, run_id: str = "r1", watcher: Watcher = A, what: Service = PING) -> Run:
    assert table.ask_run(watcher, run_id, what, TERMS) == [Launch(run_id, what, TERMS)]
    return run_of(table, run_id)


def run_of(table: Services, run_id: str) -> Run:
    run = table.find(run_id)
    assert run is not None
    return run


def execute(table: Services, run_id: str = "r1") -> list[Effect]:
    return table.started(run_id, 100, 200, 1.0, 2.0)


def running(table: Services, run_id: str = "r1", watcher: Watcher = A, what: Service = PING) -> Run:
    run = start(table, run_id, watcher, what)
    execute(table, run_id)
    return run


def end(
    table: Services,
    run_id: str = "r1",
    outcome: Outcome = Exited(0),  # noqa: B008
    *,
    gone: bool = True,
    stopping: bool = False,
) -> list[Effect]:
    return table.ended(run_id, outcome, gone=gone, stopping=stopping)


def attached(watcher: Watcher, run: Run) -> TellRunning:
    return TellRunning(watcher, run, attached=True)


def told(effects: Sequence[Effect], watcher: Watcher) -> list[Effect]:
    kinds = (TellRunning, TellStopping, TellEnded, TellRefused)
    return [effect for effect in effects if isinstance(effect, kinds) and effect.watcher == watcher]


@pytest.fixture
def table() -> Services:
    return Services(30)


# The way of one run.


def test_a_service_that_does_not_run_is_launched_and_whoever_asked_is_told_when_it_runs(table: Services) -> None:
    run = start(table)
    assert run.phase is Phase.STARTING
    assert execute(table) == [TellRunning(A, run, attached=False)]
    assert (run.phase, run.pid, run.start_ticks, run.started_at, run.started_monotonic) == (
        Phase.RUNNING,
        100,
        200,
        1.0,
        2.0,
    )


def test_whoever_watches_is_told_of_the_end_at_once(table: Services) -> None:
    run = running(table)
    run.log_path = "/log"
    assert end(table, outcome=Exited(7), gone=False) == [TellEnded(A, "r1", Exited(7), "/log")]
    assert run.phase is Phase.ENDED
    assert table.active() == []


def test_what_survives_an_end_holds_up_nothing(table: Services) -> None:
    running(table)
    end(table, gone=False)
    start(table, "r2")
    assert end(table, "r1", gone=True) == []
    assert [run.run_id for run in table.active()] == ["r2"]


def test_a_start_that_fails_is_refused_to_everybody_who_waits_for_it_and_forgotten(table: Services) -> None:
    start(table)
    table.ask_run(B, "r2", PING, TERMS)
    effects = table.not_started("r1", "not-executable", "why")
    assert effects == [
        TellRefused(A, "not-executable", "why", "r1"),
        TellRefused(B, "not-executable", "why", "r1"),
        Forget("r1"),
    ]
    assert table.find("r1") is None
    assert table.find("r2") is None
    start(table, "r1")


def test_a_start_that_fails_hides_no_outcome_that_nobody_collected(table: Services) -> None:
    running(table)
    end(table, outcome=Exited(7))
    start(table, "r2")
    table.not_started("r2", "storage", "why")
    run = start(table, "r3")
    assert execute(table, "r3") == [TellRunning(A, run, attached=False, previous=("r1", Exited(7)))]


# The service string is the identity.


@pytest.mark.parametrize(
    "other",
    [
        Service("line", ("/apps/ping_mon ",)),
        Service("vector", ("/apps/ping_mon",)),
        Service("line", ("/apps/ping_mon",), "two"),
    ],
    ids=["a blank more", "another form", "another instance"],
)
def test_another_identity_is_another_process(table: Services, other: Service) -> None:
    running(table)
    assert table.ask_run(B, "r2", other, TERMS) == [Launch("r2", other, TERMS)]


def test_whoever_asks_for_a_service_that_runs_is_attached_and_nothing_is_started(table: Services) -> None:
    run = running(table)
    assert table.ask_run(B, "r2", PING, STOP_TERMS) == [
        NoteAlias("r2", "r1"),
        attached(B, run),
        SetTerms("r1", STOP_TERMS),
    ]
    assert end(table, outcome=Exited(3)) == [TellEnded(A, "r1", Exited(3)), TellEnded(B, "r1", Exited(3))]


def test_whoever_asks_during_a_start_joins_it(table: Services) -> None:
    run = start(table)
    assert table.ask_run(B, "r2", PING, STOP_TERMS) == [NoteAlias("r2", "r1"), SetTerms("r1", STOP_TERMS)]
    assert execute(table) == [TellRunning(A, run, attached=False), attached(B, run)]


# A run has an id.


def test_asking_again_with_the_id_of_a_run_that_is_started_starts_nothing(table: Services) -> None:
    run = start(table)
    assert Launch not in map(type, table.ask_run(B, "r1", PING, TERMS))
    assert told(execute(table), B) == [TellRunning(B, run, attached=False)]


def test_asking_again_with_the_id_of_a_run_that_runs_leads_to_it(table: Services) -> None:
    run = running(table)
    assert told(table.ask_run(B, "r1", PING, TERMS), B) == [TellRunning(B, run, attached=False)]


def test_asking_again_after_a_lost_reply_still_tells_of_an_outcome_that_nobody_collected(table: Services) -> None:
    running(table)
    end(table, outcome=Exited(1))
    table.leave(A)
    run = running(table, "r2")
    table.leave(A)
    previous = ("r1", Exited(1))
    assert told(table.ask_run(B, "r2", PING, TERMS), B) == [TellRunning(B, run, attached=False, previous=previous)]
    table.acknowledge("r1")
    table.leave(B)
    assert told(table.ask_run(C, "r2", PING, TERMS), C) == [TellRunning(C, run, attached=False)]


@pytest.mark.usefixtures("one_kept")
def test_a_superseded_run_is_kept_while_its_survivors_are_watched(table: Services) -> None:
    running(table)
    end(table, outcome=Exited(1), gone=False)
    table.acknowledge("r1")
    table.leave(A)
    running(table, "r2")
    assert Forget("r1") not in end(table, "r2", outcome=Exited(2))
    assert Forget("r1") in end(table, "r1", outcome=Exited(1), gone=True)


@pytest.mark.parametrize("run_id", ["r1", "alias"])
def test_asking_again_with_the_id_of_a_run_that_has_ended_gives_its_outcome(table: Services, run_id: str) -> None:
    running(table)
    table.ask_run(B, "alias", PING, TERMS)
    end(table, outcome=Signaled(9))
    assert table.ask_run(C, run_id, PING, TERMS) == [TellEnded(C, "r1", Signaled(9))]
    assert table.ask_watch(C, run_id, TERMS) == [TellEnded(C, "r1", Signaled(9))]


def test_an_alias_leads_to_its_run_even_while_the_next_one_runs(table: Services) -> None:
    running(table)
    table.ask_run(B, "alias", PING, TERMS)
    end(table, outcome=Exited(3))
    running(table, "r2")
    assert table.ask_run(B, "alias", PING, TERMS) == [TellEnded(B, "r1", Exited(3))]


def test_the_id_of_one_service_is_refused_for_another(table: Services) -> None:
    running(table)
    (refused,) = table.ask_run(B, "r1", service(2), TERMS)
    assert isinstance(refused, TellRefused)
    assert (refused.watcher, refused.code) == (B, "bad-service")
    assert "'/apps/ping_mon'" in refused.text


def test_whoever_comes_back_for_a_run_hears_of_it_and_nothing_is_started(table: Services) -> None:
    run = running(table)
    table.leave(A)
    assert told(table.ask_watch(B, "r1", STOP_TERMS), B) == [attached(B, run)]
    assert end(table, outcome=Exited(2)) == [TellEnded(B, "r1", Exited(2))]


def test_coming_back_for_a_run_that_nobody_knows_is_lost_never_a_start(table: Services) -> None:
    (ended,) = table.ask_watch(A, "r1", TERMS)
    assert isinstance(ended, TellEnded)
    assert isinstance(ended.outcome, Lost)
    assert table.active() == []


# The limit.


def test_the_thirty_first_is_refused_and_the_thirty_go_on(table: Services) -> None:
    for number in range(30):
        running(table, f"r{number}", A, service(number))
    (refused,) = table.ask_run(B, "r30", service(30), TERMS)
    assert isinstance(refused, TellRefused)
    assert (refused.watcher, refused.code) == (B, "limit")
    assert "30" in refused.text
    assert len(table.active()) == 30
    assert table.find("r30") is None
    assert told(table.ask_run(B, "again", service(5), TERMS), B) == [attached(B, run_of(table, "r5"))]
    end(table, "r7")
    start(table, "r30", B, service(30))


def test_a_start_counts_from_its_beginning(table: Services) -> None:
    table.max_processes = 1
    start(table)
    (refused,) = table.ask_run(B, "r2", service(2), TERMS)
    assert isinstance(refused, TellRefused)


def test_a_run_that_is_being_stopped_counts_until_nobody_of_it_lives(table: Services) -> None:
    table.max_processes = 1
    running(table)
    table.ask_stop(A, "r1", "a", 5)
    table.ended("r1", Signaled(15), gone=False, stopping=True)
    assert [type(effect) for effect in table.ask_run(B, "r2", service(2), TERMS)] == [TellRefused]
    table.ended("r1", Signaled(15), gone=True, stopping=True)
    start(table, "r2", B, service(2))


# Stops.


def test_a_stop_is_ordered_then_accepted_then_told_when_nobody_lives(table: Services) -> None:
    run = running(table)
    table.ask_run(B, "r2", PING, TERMS)
    assert table.ask_stop(B, "r2", "manager b", 5.0) == [OrderStop("r1", "manager b", 5.0)]
    assert run.phase is Phase.STOPPING
    assert table.stop_accepted("r1") == [TellStopping(B, "r1")]
    outcome = Signaled(15, Account(stopped_by="manager b"))
    assert table.ended("r1", outcome, gone=False, stopping=True) == []
    assert run.phase is Phase.STOPPING
    assert table.ended("r1", outcome, gone=True, stopping=True) == [
        TellEnded(A, "r1", outcome),
        TellEnded(B, "r1", outcome),
    ]


def test_every_stop_is_passed_on_since_the_shorter_time_wins_elsewhere(table: Services) -> None:
    running(table)
    table.ask_stop(A, "r1", "a", 60)
    assert table.ask_stop(B, "r1", "b", 5) == [OrderStop("r1", "b", 5)]
    assert table.stop_accepted("r1") == [TellStopping(A, "r1"), TellStopping(B, "r1")]


def test_whoever_stops_without_having_watched_is_told_of_the_end(table: Services) -> None:
    running(table)
    table.ask_stop(B, "r1", "b", 5)
    assert told(end(table, outcome=Exited(0)), B) == [TellEnded(B, "r1", Exited(0))]


def test_stopping_what_has_ended_gives_its_outcome(table: Services) -> None:
    running(table)
    end(table, outcome=Exited(7))
    assert table.ask_stop(A, "r1", "a", 5) == [TellEnded(A, "r1", Exited(7))]


def test_stopping_what_nobody_knows_is_lost(table: Services) -> None:
    (ended,) = table.ask_stop(B, "r2", "b", 5)
    assert isinstance(ended, TellEnded)
    assert isinstance(ended.outcome, Lost)


def test_whoever_waits_for_a_stop_and_wants_one_takes_part_in_it(table: Services) -> None:
    running(table)
    table.ask_stop(A, "r1", "a", 15)
    table.ask_run(B, "r2", PING, TERMS)
    assert table.ask_stop(B, "r2", "b", 1) == [NoteAlias("r2", "r1"), OrderStop("r1", "b", 1)]
    assert told(table.stop_accepted("r1"), B) == [TellStopping(B, "r1")]
    effects = end(table, outcome=Signaled(15))
    assert told(effects, B) == [TellEnded(B, "r1", Signaled(15))]
    assert Launch not in map(type, effects)


def test_the_id_of_whoever_took_part_in_a_stop_leads_to_its_outcome(table: Services) -> None:
    running(table)
    table.ask_stop(A, "r1", "a", 15)
    table.ask_run(B, "r2", PING, TERMS)
    table.ask_stop(B, "r2", "b", 1)
    table.leave(B)  # its connection breaks; it comes back for the run that it had stopped
    assert told(table.ask_watch(C, "r2", TERMS), C) == [attached(C, run_of(table, "r1"))]
    assert told(end(table, outcome=Signaled(15)), C) == [TellEnded(C, "r1", Signaled(15))]


def test_whoever_waits_is_answered_though_somebody_else_stops_its_id(table: Services) -> None:
    running(table)
    table.ask_stop(A, "r1", "a", 15)
    table.ask_run(B, "r2", PING, TERMS)
    table.ask_stop(C, "r2", "c", 1)
    assert told(end(table, outcome=Signaled(15)), B) == [TellEnded(B, "r1", Signaled(15))]


def test_whoever_waits_is_answered_though_its_id_became_a_run_of_another_service_that_is_stopped(
    table: Services,
) -> None:
    running(table)
    table.ask_stop(A, "r1", "a", 15)
    table.ask_run(B, "r2", PING, TERMS)
    running(table, "r2", C, service(2))
    table.ask_stop(C, "r2", "c", 1)
    (refused,) = told(end(table), B)
    assert isinstance(refused, TellRefused)
    assert (refused.code, refused.run_id) == ("bad-service", "r2")


def test_whoever_waits_keeps_its_place_though_somebody_else_asks_with_its_id_and_leaves(table: Services) -> None:
    running(table)
    table.ask_stop(A, "r1", "a", 5)
    table.ask_run(B, "r2", PING, TERMS)
    table.ask_run(C, "r2", PING, TERMS)
    table.leave(C)
    assert Launch("r2", PING, TERMS) in end(table)


def test_a_request_that_is_refused_takes_nothing_from_whoever_started_the_run(table: Services) -> None:
    running(table)
    end(table, outcome=Exited(7))
    start(table, "r2", A)
    table.ask_run(B, "r2", service(2), TERMS)
    assert execute(table, "r2") == [TellRunning(A, run_of(table, "r2"), attached=False, previous=("r1", Exited(7)))]


def test_an_outcome_that_nobody_has_is_not_hidden_by_a_newer_one_that_somebody_has(table: Services) -> None:
    running(table)
    end(table, outcome=Exited(31))
    table.leave(A)
    running(table, "r2")
    table.leave(A)  # what it was told got lost with its connection
    end(table, "r2", outcome=Exited(0))
    table.acknowledge("r2")
    run = start(table, "r3")
    assert execute(table, "r3") == [TellRunning(A, run, attached=False, previous=("r1", Exited(31)))]


def test_a_stop_is_completed_even_if_whoever_asked_has_left(table: Services) -> None:
    run = running(table)
    table.ask_stop(A, "r1", "a", 5)
    table.leave(A)
    assert table.stop_accepted("r1") == []
    assert run.phase is Phase.STOPPING
    assert table.ask_run(B, "r2", PING, TERMS) == []


def test_a_stop_during_a_start_goes_before_the_run(table: Services) -> None:
    run = start(table)
    assert table.ask_stop(A, "r1", "a", 5) == [OrderStop("r1", "a", 5)]
    execute(table)
    assert run.phase is Phase.STOPPING


def test_a_stop_that_is_accepted_during_a_start_is_not_joined_by_the_next_who_asks(table: Services) -> None:
    run = start(table)
    table.ask_stop(A, "r1", "a", 5)
    assert table.stop_accepted("r1") == [TellStopping(A, "r1")]
    assert table.ask_run(B, "r2", PING, TERMS) == []
    execute(table)
    assert run.phase is Phase.STOPPING


def test_a_stop_during_a_start_is_in_force_even_if_whoever_asked_has_left(table: Services) -> None:
    run = start(table)
    table.ask_stop(A, "r1", "a", 5)
    table.leave(A)
    assert table.ask_run(B, "r2", PING, TERMS) == []
    execute(table)
    assert run.phase is Phase.STOPPING


def test_whoever_asks_during_a_stop_waits_for_the_end_then_starts(table: Services) -> None:
    running(table)
    table.ask_stop(A, "r1", "a", 5)
    assert table.ask_run(B, "r2", PING, STOP_TERMS) == []
    assert table.ask_run(C, "r3", PING, TERMS) == []
    assert table.ended("r1", Signaled(15), gone=False, stopping=True) == []
    assert table.ended("r1", Signaled(15), gone=True, stopping=True) == [
        TellEnded(A, "r1", Signaled(15)),
        Launch("r2", PING, STOP_TERMS),
        NoteAlias("r3", "r2"),
        SetTerms("r2", TERMS),
    ]
    run = run_of(table, "r2")
    assert execute(table, "r2") == [
        TellRunning(B, run, attached=False, previous=("r1", Signaled(15))),
        attached(C, run),
    ]


def test_whoever_asks_again_while_waiting_takes_the_place_of_its_former_session(table: Services) -> None:
    running(table)
    table.ask_stop(A, "r1", "a", 5)
    table.ask_run(B, "r2", PING, TERMS)
    table.ask_run(C, "r2", PING, TERMS)
    table.leave(B)
    end(table)
    assert [effect.watcher for effect in execute(table, "r2") if isinstance(effect, TellRunning)] == [C]


def test_a_start_that_somebody_only_waited_for_is_not_made_once_it_has_left(table: Services) -> None:
    running(table)
    table.ask_stop(A, "r1", "a", 5)
    table.ask_run(B, "r2", PING, TERMS)
    table.leave(B)
    assert Launch not in map(type, end(table))


def test_whoever_waits_starts_where_the_run_that_was_to_be_stopped_never_started(table: Services) -> None:
    start(table)
    table.ask_stop(A, "r1", "a", 5)
    table.ask_run(B, "r2", PING, TERMS)
    effects = table.not_started("r1", "no-such-command", "why")
    assert effects == [TellRefused(A, "no-such-command", "why", "r1"), Forget("r1"), Launch("r2", PING, TERMS)]


def test_survivors_that_are_being_stopped_are_waited_for_but_the_outcome_is_told(table: Services) -> None:
    run = running(table)
    assert table.ended("r1", Exited(4), gone=False, stopping=True) == [TellEnded(A, "r1", Exited(4))]
    assert run.clearing
    assert table.ask_run(B, "r2", PING, TERMS) == []
    assert table.ended("r1", Exited(4), gone=False, stopping=True) == []
    assert table.ended("r1", Exited(4), gone=True, stopping=True) == [Launch("r2", PING, TERMS)]


def test_a_stop_that_is_accepted_after_the_end_is_told_to_nobody(table: Services) -> None:
    running(table)
    table.ask_stop(A, "r1", "a", 5)
    end(table)
    assert table.stop_accepted("r1") == []
    assert table.stop_accepted("never was") == []


# Leaving.


def test_a_manager_that_has_left_is_told_nothing_and_what_it_watched_goes_on(table: Services) -> None:
    run = running(table)
    assert table.leave(A) == []
    assert run.phase is Phase.RUNNING
    assert end(table) == []


def test_the_last_one_that_asks_decides_what_becomes_of_survivors(table: Services) -> None:
    running(table)
    assert SetTerms("r1", STOP_TERMS) in table.ask_watch(B, "r1", STOP_TERMS)
    assert SetTerms("r1", TERMS) in table.ask_run(C, "r3", PING, TERMS)


# Outcomes that are kept.


def test_an_outcome_that_nobody_collected_is_shown_to_whoever_starts_the_service_next(table: Services) -> None:
    running(table)
    table.leave(A)
    end(table, outcome=Exited(7))
    run = start(table, "r2", B)
    assert execute(table, "r2") == [TellRunning(B, run, attached=False, previous=("r1", Exited(7)))]
    assert told(table.ask_run(C, "r3", PING, TERMS), C) == [attached(C, run)]


def test_an_outcome_that_was_collected_is_not_shown(table: Services) -> None:
    running(table)
    end(table, outcome=Exited(7))
    assert table.acknowledge("r1") == [NoteCollected("r1")]
    assert table.acknowledge("r1") == []
    run = start(table, "r2", B)
    assert execute(table, "r2") == [TellRunning(B, run, attached=False)]


def test_an_outcome_is_collected_by_an_alias_too(table: Services) -> None:
    running(table)
    table.ask_run(B, "alias", PING, TERMS)
    end(table)
    assert table.acknowledge("alias") == [NoteCollected("r1")]


def test_what_has_not_ended_cannot_be_collected(table: Services) -> None:
    run = running(table)
    assert table.acknowledge("r1") == []
    assert table.acknowledge("never was") == []
    assert not run.collected


def test_the_last_outcome_of_a_service_is_kept_though_collected(table: Services) -> None:
    running(table)
    end(table, outcome=Exited(7))
    table.acknowledge("r1")
    assert table.leave(A) == []
    assert table.ask_run(B, "r1", PING, TERMS) == [TellEnded(B, "r1", Exited(7))]


@pytest.mark.usefixtures("one_kept")
def test_a_collected_outcome_is_dropped_once_the_next_run_has_ended_and_nobody_watches(table: Services) -> None:
    running(table)
    end(table)
    table.acknowledge("r1")
    running(table, "r2", B)
    assert table.find("r1") is not None
    assert end(table, "r2") == [TellEnded(B, "r2", Exited(0))]
    assert table.leave(A) == [Forget("r1")]
    assert table.find("r1") is None
    assert table.find("r2") is not None


@pytest.mark.usefixtures("one_kept")
def test_an_older_outcome_that_nobody_collected_is_kept_until_somebody_does(table: Services) -> None:
    running(table)
    end(table, outcome=Exited(1))
    running(table, "r2")
    end(table, "r2")
    assert table.leave(A) == []
    assert table.acknowledge("r1") == [NoteCollected("r1"), Forget("r1")]


def finish(table: Services, number: int, what: Service, *, collect: bool) -> list[Effect]:
    run_id = f"r{number}"
    running(table, run_id, A, what)
    effects = table.leave(A) + end(table, run_id)
    return effects + (table.acknowledge(run_id) if collect else [])


def test_no_more_than_a_thousand_outcomes_are_kept_and_the_oldest_go_first(table: Services) -> None:
    assert retention.MAX_KEPT_OUTCOMES == 1000
    for number in range(1000):
        assert finish(table, number, service(number), collect=False) == []
    assert finish(table, 1000, service(1000), collect=False) == [Forget("r0")]
    assert finish(table, 1001, service(1001), collect=False) == [Forget("r1")]


@pytest.mark.parametrize(
    ("ended", "dropped"),
    [
        ([(1, False), (2, False), (3, False)], "r0"),
        ([(1, False), (2, True), (3, False)], "r1"),
        ([(1, False), (2, False), (2, False), (3, False)], "r1"),
        ([(2, True), (1, False), (1, False), (3, False)], "r0"),
        ([(2, True), (1, True), (1, False), (3, False)], "r0"),
    ],
    ids=["the oldest", "one that was collected", "not the last of a service", "the last, collected", "the older one"],
)
def test_what_is_missed_least_is_dropped_first(
    monkeypatch: pytest.MonkeyPatch, table: Services, ended: list[tuple[int, bool]], dropped: str
) -> None:
    monkeypatch.setattr(retention, "MAX_KEPT_OUTCOMES", len(ended) - 1)
    effects: list[Effect] = []
    for number, (what, collect) in enumerate(ended):
        effects += finish(table, number, service(what), collect=collect)
    assert [effect for effect in effects if isinstance(effect, Forget)] == [Forget(dropped)]


def test_what_runs_is_never_dropped(monkeypatch: pytest.MonkeyPatch, table: Services) -> None:
    monkeypatch.setattr(retention, "MAX_KEPT_OUTCOMES", 1)
    running(table, "r1", A, service(1))
    running(table, "r2", A, service(2))
    table.ended("r2", Exited(0), gone=False, stopping=True)
    finish(table, 3, service(3), collect=False)
    assert table.find("r1") is not None
    assert table.find("r2") is not None


def test_whoever_comes_back_late_still_gets_an_outcome_that_another_has_collected(table: Services) -> None:
    running(table, "r1", A)
    table.leave(A)
    end(table, "r1", outcome=Exited(3))
    start(table, "r2", B)
    table.started("r2", 100, 1, 1.0, 1.0)
    table.acknowledge("r1")
    end(table, "r2", outcome=Exited(4))
    table.acknowledge("r2")
    table.leave(B)
    assert table.ask_watch(C, "r1", TERMS) == [TellEnded(C, "r1", Exited(3))]


def test_an_earlier_outcome_is_told_too_where_a_run_ends_before_its_start_could_be_told(table: Services) -> None:
    finish(table, 1, PING, collect=False)
    start(table, "r2", A)
    table.leave(A)
    end(table, "r2", outcome=Exited(4))
    (told_again,) = table.ask_run(B, "r2", PING, TERMS)
    assert told_again == TellEnded(B, "r2", Exited(4), previous=("r1", Exited(0)))
    assert table.ask_watch(C, "r2", TERMS) == [TellEnded(C, "r2", Exited(4))]
    start(table, "r3", A, service(3))
    assert end(table, "r3") == [TellEnded(A, "r3", Exited(0))]


def test_the_oldest_ids_of_all_runs_go_where_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch, table: Services
) -> None:
    monkeypatch.setattr(services, "MAX_ALIASES", 2)
    running(table, "r1", A, service(1))
    running(table, "r2", A, service(2))
    for alias, what in (("one", 1), ("two", 2)):
        assert ForgetAlias("one") not in table.ask_run(B, alias, service(what), TERMS)
    assert ForgetAlias("one") in table.ask_run(B, "three", service(2), TERMS)
    assert table.find("one") is None
    assert table.find("two") is not None


def test_a_dropped_run_takes_its_aliases_along(monkeypatch: pytest.MonkeyPatch, table: Services) -> None:
    monkeypatch.setattr(retention, "MAX_KEPT_OUTCOMES", 1)
    running(table, "r1", A, service(1))
    table.ask_run(B, "alias", service(1), TERMS)
    end(table, "r1")
    finish(table, 2, service(2), collect=False)
    assert table.find("alias") is None


def test_an_id_that_waited_means_the_run_that_ended_before_it_on_disk_too(table: Services) -> None:
    running(table)
    end(table, gone=False, outcome=Exited(3), stopping=True)
    assert table.ask_run(B, "r2", PING, TERMS) == []
    assert table.ask_stop(B, "r2", "b", 5.0) == [NoteAlias("r2", "r1"), TellEnded(B, "r1", Exited(3))]


# After a restart.


def test_a_run_found_on_disk_is_attached_to_not_started(table: Services) -> None:
    run = Run("r1", PING, Phase.RUNNING, pid=100)
    assert table.restore(run, ["alias"]) == []
    assert told(table.ask_run(A, "r2", PING, TERMS), A) == [attached(A, run)]
    assert told(table.ask_watch(B, "alias", TERMS), B) == [attached(B, run)]
    assert table.active() == [run]


def test_a_stop_found_on_disk_is_waited_for(table: Services) -> None:
    table.restore(Run("r1", PING, Phase.STOPPING, pid=100))
    assert table.ask_run(A, "r2", PING, TERMS) == []
    assert table.ended("r1", Signaled(15), gone=True, stopping=True) == [Launch("r2", PING, TERMS)]


def test_what_is_cleared_after_an_end_found_on_disk_is_waited_for(table: Services) -> None:
    table.restore(Run("r1", PING, Phase.ENDED, outcome=Exited(0), clearing=True))
    assert table.ask_run(A, "r2", PING, TERMS) == []
    assert table.ended("r1", Exited(0), gone=True, stopping=True) == [Launch("r2", PING, TERMS)]


def test_an_outcome_found_on_disk_is_shown_unless_it_was_collected(table: Services) -> None:
    table.restore(Run("r1", PING, Phase.ENDED, outcome=Exited(1)))
    table.restore(Run("s1", service(2), Phase.ENDED, outcome=Exited(2), collected=True))
    first, second = start(table, "r2"), start(table, "s2", A, service(2))
    assert execute(table, "r2") == [TellRunning(A, first, attached=False, previous=("r1", Exited(1)))]
    assert execute(table, "s2") == [TellRunning(A, second, attached=False)]


@pytest.mark.usefixtures("one_kept")
def test_superseded_outcomes_found_on_disk_are_dropped(table: Services) -> None:
    table.restore(Run("r1", PING, Phase.ENDED, outcome=Exited(1), collected=True, gone=True))
    assert table.restore(Run("r2", PING, Phase.ENDED, outcome=Exited(2), gone=True)) == [Forget("r1")]


def test_aliases_of_one_run_are_bounded(table: Services) -> None:
    running(table)
    for number in range(MAX_ALIASES_OF_A_RUN):
        assert ForgetAlias not in map(type, table.ask_run(B, f"alias {number}", PING, TERMS))
    assert ForgetAlias("alias 0") in table.ask_run(B, "one more", PING, TERMS)
    assert table.find("alias 0") is None
    assert table.find("alias 1") is table.find("one more") is table.find("r1")
