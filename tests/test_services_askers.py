"""The table of services where it matters who asks, and what the supervisor looks up before it asks."""

from __future__ import annotations

import pytest
from test_services import PING, STOP_TERMS, TERMS, A, B, C, Manager, attached, end, execute, run_of, running, service

from appserver.effects import (
    Asker,
    Launch,
    NoteAlias,
    OrderStop,
    Phase,
    Run,
    SetTerms,
    TellEnded,
    TellRefused,
    TellRunning,
    TellStopping,
)
from appserver.outcome import Account, Exited, Lost, Signaled
from appserver.services import Services

ONE_AT_ONCE = Asker("AB", max_processes=1)
OTHER = Asker("CD", max_processes=2)
NO_TERMS = Asker("CD", sets_terms=False)


@pytest.fixture
def table() -> Services:
    return Services(3)


# For whom a run is started, and how many a certificate may have.


def test_a_run_belongs_to_the_certificate_that_it_was_started_for(table: Services) -> None:
    manager = Manager("somebody on g1")
    (launch,) = table.ask_run(manager, "r1", PING, STOP_TERMS, OTHER)
    assert launch == Launch("r1", PING, STOP_TERMS, "CD")
    assert isinstance(launch, Launch)
    assert launch.asked_by == "somebody on g1"
    run = run_of(table, "r1")
    assert (run.run_id, run.service, run.owner, run.asked_by, run.starter) == (
        "r1",
        PING,
        "CD",
        "somebody on g1",
        manager,
    )
    assert list(run.watchers) == [manager]


def test_a_certificate_has_no_more_running_than_it_may_whatever_others_have(table: Services) -> None:
    table.ask_run(A, "r1", service(1), TERMS, OTHER)
    table.ask_run(B, "r2", service(2), TERMS, ONE_AT_ONCE)
    (refused,) = table.ask_run(B, "r3", service(3), TERMS, ONE_AT_ONCE)
    text = (
        "this manager's certificate has 1 process running already, and may have 1: "
        f"{service(3).describe()} was not started"
    )
    assert refused == TellRefused(B, "limit", text, "r3")
    assert table.ask_run(A, "r3", service(3), TERMS, OTHER) == [Launch("r3", service(3), TERMS, "CD")]


def test_a_certificate_may_start_again_once_its_run_has_ended(table: Services) -> None:
    table.ask_run(B, "r1", service(1), TERMS, ONE_AT_ONCE)
    execute(table)
    end(table)
    assert table.ask_run(B, "r2", service(2), TERMS, ONE_AT_ONCE) == [Launch("r2", service(2), TERMS, "AB")]


def test_a_guest_for_one_says_that_one_runs(table: Services) -> None:
    table.max_processes = 1
    running(table, "r0", A, service(0))
    (refused,) = table.ask_run(B, "r1", service(1), TERMS, Asker("CD", max_processes=30))
    text = f"1 process runs already and no more than 1 may: {service(1).describe()} was not started"
    assert refused == TellRefused(B, "limit", text, "r1")


def test_a_full_guest_is_full_for_everybody_and_says_how_many_run(table: Services) -> None:
    for number in range(3):
        running(table, f"r{number}", A, service(number))
    (refused,) = table.ask_run(B, "r3", service(3), TERMS, Asker("CD", max_processes=30))
    text = f"3 processes run already and no more than 3 may: {service(3).describe()} was not started"
    assert refused == TellRefused(B, "limit", text, "r3")


def test_whoever_waited_starts_on_its_own_behalf_and_with_its_own_terms(table: Services) -> None:
    running(table)
    table.ask_stop(A, "r1", "a", 5)
    assert table.ask_run(B, "r2", PING, STOP_TERMS, OTHER) == []
    assert end(table)[1:] == [Launch("r2", PING, STOP_TERMS, "CD")]


def test_the_bound_of_a_certificate_holds_for_whoever_waited_too(table: Services) -> None:
    running(table)
    table.ask_stop(A, "r1", "a", 5)
    table.ask_run(B, "r2", PING, TERMS, ONE_AT_ONCE)
    table.ask_run(B, "r3", service(3), TERMS, ONE_AT_ONCE)
    assert [type(effect) for effect in end(table)] == [TellEnded, TellRefused]


# Whose terms count.


def test_terms_of_whoever_only_attaches_count_where_it_may_set_them(table: Services) -> None:
    run = running(table)
    assert table.ask_run(B, "r2", PING, STOP_TERMS, NO_TERMS) == [NoteAlias("r2", "r1"), attached(B, run)]
    assert table.ask_watch(C, "r1", STOP_TERMS, NO_TERMS) == [attached(C, run)]
    assert table.ask_run(C, "r2", PING, STOP_TERMS, NO_TERMS) == [attached(C, run)]
    assert table.ask_watch(C, "r1", STOP_TERMS, OTHER) == [attached(C, run), SetTerms("r1", STOP_TERMS)]
    assert table.ask_watch(C, "r2", STOP_TERMS) == [attached(C, run), SetTerms("r1", STOP_TERMS)]


def test_terms_come_too_late_for_a_run_that_is_being_stopped(table: Services) -> None:
    run = running(table)
    table.ask_stop(A, "r1", "a", 5)
    assert table.ask_watch(B, "r1", STOP_TERMS) == [attached(B, run)]


def test_terms_count_during_a_start_though_nothing_runs_yet_to_be_told(table: Services) -> None:
    table.ask_run(A, "r1", PING, TERMS)
    assert table.ask_run(B, "r2", PING, STOP_TERMS) == [NoteAlias("r2", "r1"), SetTerms("r1", STOP_TERMS)]


# What a request would do.


def test_whoever_asks_would_join_the_run_of_its_id_or_else_the_one_that_runs(table: Services) -> None:
    assert table.would_join("r1", PING) is None
    run = running(table)
    assert table.would_join("r1", PING) is run
    assert table.would_join("another", PING) is run
    assert table.would_join("another", service(2)) is None
    table.ask_run(B, "alias", PING, TERMS)
    assert table.would_join("alias", service(2)) is run
    end(table)
    assert table.would_join("r1", PING) is run
    assert table.would_join("another", PING) is None


def test_nobody_would_join_a_run_that_is_being_stopped_but_under_its_own_id(table: Services) -> None:
    run = running(table)
    table.ask_stop(A, "r1", "a", 5)
    assert table.would_join("another", PING) is None
    assert table.would_join("r1", PING) is run


def test_a_stop_would_be_that_of_the_run_or_of_the_one_that_is_waited_for(table: Services) -> None:
    first, second = running(table, "r1", A, service(1)), running(table, "r2", A, service(2))
    assert (table.would_stop("r1"), table.would_stop("r2"), table.would_stop("r3")) == (first, second, None)
    table.ask_stop(A, "r2", "a", 5)
    table.ask_run(B, "r3", service(2), TERMS)
    assert table.would_stop("r3") is second
    assert table.would_stop("r4") is None


# Who is sent away from a start that it had joined.


def test_whoever_may_not_attach_is_refused_and_hears_no_more_of_the_run(table: Services) -> None:
    table.ask_run(A, "r1", PING, TERMS)
    table.ask_run(B, "r2", PING, TERMS)
    table.ask_stop(B, "r1", "b", 5)
    assert table.evict("r1", B, "not yours") == [TellRefused(B, "rule", "not yours", "r1")]
    assert table.evict("r1", B, "not yours") == []
    assert table.stop_accepted("r1") == []
    assert execute(table) == [TellRunning(A, run_of(table, "r1"), attached=False)]


def test_nobody_is_sent_away_from_a_run_that_is_gone_or_that_it_does_not_watch(table: Services) -> None:
    running(table)
    assert table.evict("never was", A, "why") == []
    assert table.evict("r1", B, "why") == []
    assert table.evict("r1", A, "why") == [TellRefused(A, "rule", "why", "r1")]  # that never asked for a stop


# What else is told.


def test_whoever_asks_after_the_end_learns_where_the_log_is(table: Services) -> None:
    running(table).log_path = "/log/ping"
    end(table, outcome=Exited(3))
    assert table.ask_watch(B, "r1", TERMS) == [TellEnded(B, "r1", Exited(3), "/log/ping")]
    assert table.ask_run(B, "r1", PING, TERMS) == [TellEnded(B, "r1", Exited(3), "/log/ping")]
    assert table.ask_stop(B, "r1", "b", 1) == [TellEnded(B, "r1", Exited(3), "/log/ping")]


def test_logs_are_in_use_until_nobody_of_the_tree_lives(table: Services) -> None:
    running(table, "r1", A, service(1)).log_path = "/log/1"
    running(table, "r2", A, service(2)).log_path = "/log/2"
    running(table, "r3", A, service(3))
    assert table.logs_in_use() == {"/log/1", "/log/2"}
    end(table, "r1", gone=False)
    end(table, "r2", gone=True)
    assert table.logs_in_use() == {"/log/1"}
    end(table, "r1", gone=True)
    assert table.logs_in_use() == set()


def test_the_end_of_what_survived_is_told_once_more_without_taking_anything_back(table: Services) -> None:
    run = running(table)
    end(table, gone=True)
    end(table, gone=False)
    assert run.gone
    assert run.outcome == Exited(0)


def test_an_order_to_stop_says_who_asked_and_how_long_it_waits(table: Services) -> None:
    running(table)
    manager = Manager("somebody on g1")
    (order,) = table.ask_stop(manager, "r1", "the cluster", 7.5)
    assert order == OrderStop("r1", "the cluster", 7.5)
    assert isinstance(order, OrderStop)
    assert order.asked_by == "somebody on g1"
    assert table.stop_accepted("r1") == [TellStopping(manager, "r1")]
    assert table.stop_accepted("r1") == []


def test_what_was_never_started_is_lost_with_a_reason(table: Services) -> None:
    unknown = Lost("this guest knows nothing of the run: it was rebooted, or lost its state")
    assert table.ask_watch(A, "r1", TERMS) == [TellEnded(A, "r1", unknown)]
    never = Lost("it was stopped before it was started")
    assert table.ask_stop(A, "r1", "a", 5) == [TellEnded(A, "r1", never)]
    running(table)
    (refused,) = table.ask_run(B, "r1", service(2), TERMS)
    assert refused == TellRefused(B, "bad-service", f"run r1 is one of {PING.describe()}", "r1")


def test_what_happens_to_a_run_that_nobody_knows_has_no_effect(table: Services) -> None:
    assert table.stop_accepted("r1") == []
    assert table.ended("r1", Exited(0), gone=True, stopping=False) == []
    assert table.acknowledge("r1") == []


def test_a_stop_accepted_without_an_asker_turns_the_run_to_its_end(table: Services) -> None:
    run = running(table)
    assert table.stop_accepted("r1") == []
    assert run.phase is Phase.STOPPING
    assert table.ended("r1", Signaled(15), gone=False, stopping=True) == []
    assert table.ended("r1", Signaled(15, account=Account()), gone=True, stopping=True) == [
        TellEnded(A, "r1", Signaled(15))
    ]


def test_a_start_told_again_changes_nothing_but_what_is_known_of_it(table: Services) -> None:
    run = running(table)
    assert table.started("r1", 101, 201, 1.5, 2.5) == []
    assert (run.phase, run.pid, run.start_ticks, run.started_at, run.started_monotonic) == (
        Phase.RUNNING,
        101,
        201,
        1.5,
        2.5,
    )


def test_the_latest_outcome_that_nobody_has_is_the_one_shown(table: Services) -> None:
    for number, status in enumerate((1, 2)):
        table.restore(Run(f"r{number}", PING, Phase.ENDED, outcome=Exited(status)))
    table.ask_run(A, "now", PING, TERMS)
    (told,) = execute(table, "now")
    assert told == TellRunning(A, run_of(table, "now"), attached=False, previous=("r1", Exited(2)))


def test_an_end_tells_of_the_outcome_before_only_where_the_start_was_never_told(table: Services) -> None:
    table.restore(Run("r0", PING, Phase.ENDED, outcome=Exited(4)))
    table.ask_run(A, "r1", PING, TERMS)
    assert end(table, "r1") == [TellEnded(A, "r1", Exited(0), previous=("r0", Exited(4)))]
    table.ask_run(A, "r2", PING, TERMS)
    table.acknowledge("r1")
    assert execute(table, "r2") == [TellRunning(A, run_of(table, "r2"), attached=False, previous=("r0", Exited(4)))]
    assert end(table, "r2") == [TellEnded(A, "r2", Exited(0))]


def test_where_it_stops_stops_with_whoever_else_waits(table: Services) -> None:
    run = running(table)
    table.ask_stop(A, "r1", "a", 5)
    table.ask_run(B, "r2", PING, TERMS)
    table.ask_run(C, "r3", PING, TERMS)
    effects = table.ask_stop(B, "r2", "b", 3)
    assert effects == [NoteAlias("r2", "r1"), OrderStop("r1", "b", 3)]
    assert [entry[:2] for entry in run.waiting] == [(C, "r3")]
    assert set(run.watchers) == {A, B}
    assert end(table) == [
        TellEnded(A, "r1", Exited(0)),
        TellEnded(B, "r1", Exited(0)),
        Launch("r3", PING, TERMS),
    ]


def test_an_end_that_a_stop_still_completes_is_not_told_yet_to_whoever_comes(table: Services) -> None:
    run = running(table)
    table.ask_stop(A, "r1", "a", 5)
    assert table.ended("r1", Signaled(15), gone=False, stopping=True) == []
    assert table.ask_watch(B, "r1", TERMS) == [attached(B, run)]
    assert end(table, outcome=Signaled(15)) == [TellEnded(A, "r1", Signaled(15)), TellEnded(B, "r1", Signaled(15))]


# Attaching without starting.


def test_whoever_only_attaches_joins_what_runs_and_its_id_leads_there(table: Services) -> None:
    run = running(table)
    assert table.ask_attach(B, "r2", PING, STOP_TERMS, OTHER) == [
        NoteAlias("r2", "r1"),
        attached(B, run),
        SetTerms("r1", STOP_TERMS),
    ]
    assert run_of(table, "r2") is run
    assert table.ask_attach(B, "r2", PING, TERMS, NO_TERMS) == [attached(B, run)]


def test_whoever_only_attaches_to_nothing_starts_nothing(table: Services) -> None:
    running(table, "r1", A, service(1))
    refused = TellRefused(B, "not-running", f"{PING.describe()} does not run", "r2")
    assert table.ask_attach(B, "r2", PING, TERMS) == [refused]
    assert table.would_attach("r2", PING) is None
    assert table.ask_run(A, "r3", PING, TERMS) == [Launch("r3", PING, TERMS)]


def test_whoever_only_attaches_to_what_is_being_stopped_is_told_of_it(table: Services) -> None:
    run = running(table)
    table.ask_stop(A, "r1", "a", 5)
    assert table.ask_attach(B, "r2", PING, TERMS) == [NoteAlias("r2", "r1"), attached(B, run)]


def test_whoever_only_attaches_hears_the_end_that_nobody_has_heard_of_and_only_once(table: Services) -> None:
    running(table)
    table.leave(A)
    end(table, outcome=Exited(7))
    assert table.ask_attach(B, "r2", PING, TERMS) == [NoteAlias("r2", "r1"), TellEnded(B, "r1", Exited(7))]
    table.acknowledge("r2")
    (refused,) = table.ask_attach(C, "r3", PING, TERMS)
    assert isinstance(refused, TellRefused)
    assert refused.code == "not-running"


def test_an_older_end_is_not_taken_for_that_of_the_newest_run(table: Services) -> None:
    running(table)
    table.leave(A)
    end(table, outcome=Exited(7))
    running(table, "r2", B)
    end(table, "r2")
    table.acknowledge("r2")
    assert table.would_attach("r3", PING) is None


def test_an_id_of_another_service_attaches_to_nothing(table: Services) -> None:
    running(table)
    (refused,) = table.ask_attach(B, "r1", service(1), TERMS)
    assert refused == TellRefused(B, "bad-service", f"run r1 is one of {PING.describe()}", "r1")
