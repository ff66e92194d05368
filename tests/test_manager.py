"""The manager's policy as tables of events and actions. Time is a number here; no trio, no socket."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from appmgr.manager import Action, Finish, Log, Manager, Reconnect, Send
from appmgr.options import ManagerOptions
from appmgr.wording import seconds, tail
from appserver.identity import Service
from appserver.messages import (
    Ack,
    Ended,
    Error,
    Goodbye,
    Message,
    Poll,
    Previous,
    Refused,
    Run,
    Running,
    Status,
    Stop,
    Stopping,
    Watch,
)
from appserver.outcome import Account, Exited, Lost, Outcome, Signaled

OWN = "a" * 32
OTHER = "b" * 32
SERVICE = Service("line", ("/apps/ping_mon",))
OPTIONS = ManagerOptions("g1", SERVICE)
STOPPING_OPTIONS = replace(OPTIONS, on_halt="stop")
REFUSED_BY_SYSTEM = "Connection refused (errno:111)"


def running(re: int = 1, run: str = OWN, *, attached: bool = False, previous: Previous | None = None) -> Running:
    return Running(re, run, "running", attached, 77, 1e9, 61.0, "/log", previous)


def status(re: int, run: str = OWN) -> Status:
    return Status(re, run, "running", 77, 1.0, 0.1, 1000)


def sent(actions: list[Action]) -> list[Message]:
    return [action.message for action in actions if isinstance(action, Send)]


def logged(actions: list[Action]) -> str:
    return "\n".join(action.text for action in actions if isinstance(action, Log))


def finish(actions: list[Action]) -> int | None:
    found = [action.status for action in actions if isinstance(action, Finish)]
    assert not found or isinstance(actions[-1], Finish)
    return found[0] if found else None


def in_contact(options: ManagerOptions = OPTIONS) -> Manager:
    """A manager whose run (number 1) was asked for at 0.0."""
    manager = Manager(options, OWN, 0.0)
    assert sent(manager.connected(0.0)) == [
        Run(1, OWN, SERVICE, options.survivors, options.stop_timeout_seconds, options.tail_lines)
    ]
    return manager


def at_work(options: ManagerOptions = OPTIONS) -> Manager:
    """A manager whose run is confirmed."""
    manager = in_contact(options)
    manager.received(running(), 0.0)
    return manager


# Exit status: the contract's table.


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        *[(Exited(code), code) for code in range(256)],
        *[(Signaled(number), 128 + number) for number in range(1, 65)],
        (Exited(256), 255),
        (Exited(0xC0000005), 5),
        (Exited(0x80000000), 255),
        (Lost("the guest has booted since"), 9),
    ],
)
def test_the_outcome_becomes_the_exit_status(outcome: Outcome, expected: int) -> None:
    manager = at_work(replace(OPTIONS, failure_status=9))
    actions = manager.received(Ended(None, OWN, outcome), 1.0)
    assert sent(actions) == [Ack(OWN)]
    assert finish(actions) == expected


@pytest.mark.parametrize("code", ["limit", "rule", "no-such-command", "sessions", "version", "unheard-of"])
def test_a_refusal_ends_it_at_once_with_the_failure_status(code: str) -> None:
    actions = in_contact(replace(OPTIONS, failure_status=7)).received(Refused(1, code, "not\nhere"), 0.1)
    assert finish(actions) == 7
    assert logged(actions) == f"the node g1 refused '/apps/ping_mon': not\\x0ahere ({code})"


def test_a_refusal_in_place_of_the_greeting_ends_it_too() -> None:
    actions = Manager(OPTIONS, OWN, 0.0).received(Refused(None, "sessions", "120 sessions"), 0.1)
    assert finish(actions) == 1


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (1, 143)], ids=["TERM", "INT", "HUP"]
)
def test_halt_with_detach_leaves_the_application_running(number: int, expected: int) -> None:
    actions = at_work().signalled(number, 1.0)
    assert sent(actions) == []  # the link says goodbye
    assert finish(actions) == expected
    assert "the application goes on" in logged(actions)


@pytest.mark.parametrize("options", [OPTIONS, STOPPING_OPTIONS])
def test_halt_before_the_first_contact_ends_it_at_once(options: ManagerOptions) -> None:
    manager = Manager(options, OWN, 0.0)
    manager.contact_failed(REFUSED_BY_SYSTEM, 0.1)
    actions = manager.signalled(15, 1.0)
    assert (sent(actions), finish(actions)) == ([], 143)
    assert "nothing was started" in logged(actions)


def test_halt_with_detach_while_the_run_is_unanswered_says_so() -> None:
    actions = in_contact().signalled(15, 1.0)
    assert "may have been started" in logged(actions)
    assert finish(actions) == 143


# First contact.


def test_a_failed_first_contact_is_logged_once_in_two_lines() -> None:
    manager = Manager(OPTIONS, OWN, 0.0)
    actions = manager.contact_failed(REFUSED_BY_SYSTEM, 0.1)
    assert [action.text for action in actions if isinstance(action, Log)] == [
        "Could not connect to the node g1",
        REFUSED_BY_SYSTEM,
    ]
    assert manager.contact_failed(REFUSED_BY_SYSTEM, 0.2) == []
    assert manager.contact_failed("Network is unreachable (errno:101)", 0.3) == []


def test_without_first_contact_it_gives_up_after_the_boot_timeout() -> None:
    manager = Manager(replace(OPTIONS, boot_timeout_seconds=240.0, failure_status=3), OWN, 10.0)
    manager.contact_failed(REFUSED_BY_SYSTEM, 10.1)
    assert manager.deadline() == 250.0
    assert manager.tick(249.9) == []
    actions = manager.tick(250.0)
    assert finish(actions) == 3
    assert logged(actions).startswith("no contact with the node g1 within 4 min 0 s")
    assert REFUSED_BY_SYSTEM in logged(actions)


def test_a_timeout_before_any_attempt_has_failed_is_logged_as_a_failed_contact() -> None:
    actions = Manager(OPTIONS, OWN, 0.0).tick(60.0)
    lines = logged(actions).splitlines()
    assert lines[0] == "Could not connect to the node g1"
    assert lines[1].startswith("Connection timed out (errno:")
    assert finish(actions) == 1


def test_a_server_that_greets_and_answers_nothing_is_no_contact() -> None:
    manager = Manager(OPTIONS, OWN, 0.0)
    manager.connected(5.0)
    for now in range(10, 60, 10):
        manager.disconnected("broke", float(now))
        manager.connected(now + 1.0)
    manager.disconnected("broke", 64.0)
    assert manager.deadline() == 65.0
    assert finish(manager.tick(65.0)) == 1


def test_a_long_poll_interval_is_lowered_and_the_log_says_so() -> None:
    manager = Manager(replace(OPTIONS, timeout_seconds=9.0, poll_seconds=5.0), OWN, 0.0)
    assert manager.poll_seconds == 3.0
    assert logged(manager.opening()) == "poll interval lowered from 5 s to 3 s, a third of the timeout of 9 s"
    assert Manager(replace(OPTIONS, timeout_seconds=15.0), OWN, 0.0).opening() == []


# Start, attach, previous outcome.


def test_a_start_gets_one_line() -> None:
    actions = in_contact().received(running(), 0.1)
    assert logged(actions) == "started the application '/apps/ping_mon' on the node g1: process 77, output in /log"


def test_an_attachment_gets_one_line() -> None:
    actions = in_contact().received(running(run=OTHER, attached=True), 0.1)
    expected = (
        "attached to the application '/apps/ping_mon' on the node g1: process 77, running for 61 s, output in /log"
    )
    assert logged(actions) == expected


def test_a_run_of_our_own_that_was_asked_for_twice_was_started_by_us() -> None:
    assert logged(in_contact().received(running(attached=True), 0.1)).startswith("started")


def test_the_previous_outcome_is_logged_and_acknowledged() -> None:
    previous = Previous(OTHER, Exited(4, Account(ran_seconds=3.0)))
    actions = in_contact().received(running(previous=previous), 0.1)
    assert sent(actions) == [Ack(OTHER)]
    assert "an earlier run of the application ended without a manager after 3.0 s: exited with code 4" in logged(
        actions
    )
    assert finish(actions) is None


def test_the_previous_outcome_is_logged_too_where_the_run_has_ended_already() -> None:
    previous = Previous(OTHER, Exited(4, Account(ran_seconds=3.0)))
    actions = in_contact().received(Ended(1, OWN, Exited(3), None, previous), 0.1)
    assert [action.message for action in actions if isinstance(action, Send)] == [Ack(OTHER), Ack(OWN)]
    logged = [action.text for action in actions if isinstance(action, Log)]
    assert "an earlier run of the application ended without a manager" in logged[0]
    assert actions[-1] == Finish(3)


def test_an_answer_to_nothing_we_asked_changes_nothing() -> None:
    manager = in_contact()
    assert manager.received(running(re=99, run=OTHER), 0.1) == []
    assert manager.received(Ended(None, OTHER, Exited(0)), 0.1) == []
    assert finish(manager.received(Ended(None, OWN, Exited(5)), 0.2)) == 5


def test_a_run_that_has_ended_before_the_answer_is_logged_as_started_and_ended() -> None:
    actions = in_contact().received(Ended(1, OWN, Exited(0, Account(ran_seconds=0.01)), ("hello",)), 0.1)
    assert logged(actions).splitlines() == [
        "started the application '/apps/ping_mon' on the node g1: it has ended already",
        "output: hello",
        "the application '/apps/ping_mon' on the node g1 ended after 0.01 s: exited with code 0, by itself",
    ]


def test_an_attached_run_that_ended_in_the_answer_counts() -> None:
    actions = in_contact().received(Ended(1, OTHER, Exited(6)), 0.1)
    assert (sent(actions), finish(actions)) == ([Ack(OTHER)], 6)


# The end's line.


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (Exited(3, Account(ran_seconds=200.0)), "ended after 3 min 20 s: exited with code 3, by itself"),
        (Exited(0, Account(survivors=2)), "exited with code 0, by itself, 2 descendants live on"),
        (Exited(0, Account(survivors=1)), "1 descendant lives on"),
        (Exited(0, Account(survivors=0)), "exited with code 0, by itself"),
        (Signaled(11), "ended: ended by signal 11 (SIGSEGV)"),
        (Signaled(9, Account(killed_for_memory=True)), "ended by signal 9 (SIGKILL), killed for memory"),
        (Signaled(15, Account(stopped_by="node2\n[5]")), "(SIGTERM), stopped by node2\\x0a[5]"),
        (Exited(0xC0000005), "exited with code 3221225477"),
        (Lost("reboot"), "is gone: outcome lost: reboot"),
    ],
)
def test_the_end_gets_a_line_that_says_how(outcome: Outcome, words: str) -> None:
    assert words in logged(at_work().received(Ended(None, OWN, outcome), 1.0))


def test_the_tail_is_logged_when_it_ended_by_itself_and_not_when_it_was_stopped() -> None:
    lines = ("one", "two\x1b\nthree", "four")
    actions = at_work(replace(OPTIONS, tail_lines=2)).received(Ended(None, OWN, Exited(1), lines), 1.0)
    assert logged(actions).splitlines()[:-1] == [r"output: two\x1b\x0athree", "output: four"]
    stopped = Exited(1, Account(stopped_by="node2"))
    assert "output" not in logged(at_work().received(Ended(None, OWN, stopped, lines), 1.0))


def test_the_tail_is_bounded_whatever_the_server_sends() -> None:
    assert tail(["x" * 5000, "y" * 5000, "z"], 20) == ["output: " + "y" * 1997 + "...", "output: z"]
    assert tail(["x"], 0) == []


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (0.04, "0.04 s"),
        (3.46, "3.5 s"),
        (12.4, "12 s"),
        (200, "3 min 20 s"),
        (18600, "5 h 10 min"),
        (1047600, "12 d 3 h"),
    ],
)
def test_spans_of_time_are_written_for_people(span: float, words: str) -> None:
    assert seconds(span) == words


# Contact: polls, loss and return.


def test_polls_come_at_their_interval_and_one_at_a_time() -> None:
    manager = at_work()
    assert manager.deadline() == 5.0
    assert manager.tick(4.9) == []
    assert manager.tick(5.0) == [Send(Poll(2))]
    assert manager.tick(5.1) == []
    assert manager.received(status(2), 5.2) == []
    assert manager.deadline() == 10.0
    assert manager.tick(10.0) == [Send(Poll(3))]


def test_an_unanswered_poll_makes_the_connection_anew_at_half_the_timeout() -> None:
    manager = at_work()
    manager.tick(5.0)
    assert manager.deadline() == 35.0
    actions = manager.tick(35.0)
    assert actions[0] == Reconnect()
    assert logged(actions) == "lost contact with the node g1, trying to reach it again: no answer for 30 s"
    assert manager.deadline() == 60.0


def test_contact_lost_for_the_timeout_ends_it_with_other_words_than_the_applications_end() -> None:
    manager = at_work(replace(OPTIONS, failure_status=5))
    manager.tick(5.0)
    manager.received(status(2), 5.5)
    assert logged(manager.disconnected("Connection reset by peer (errno:104)", 7.0)).startswith("lost contact")
    assert manager.contact_failed(REFUSED_BY_SYSTEM, 8.0) == []
    assert manager.tick(65.4) == []
    actions = manager.tick(65.5)
    assert finish(actions) == 5
    assert "the application may still run" in logged(actions)
    assert "ended" not in logged(actions)


def test_a_reconnection_before_the_confirmation_asks_to_run_with_the_same_id() -> None:
    manager = in_contact()
    manager.disconnected("broke", 1.0)
    assert sent(manager.connected(2.0)) == [Run(2, OWN, SERVICE, "leave", 30.0, 20)]


def test_a_reconnection_after_the_confirmation_only_watches_the_confirmed_run() -> None:
    manager = in_contact()
    manager.received(running(run=OTHER, attached=True), 0.1)
    manager.disconnected("broke", 1.0)
    assert sent(manager.connected(2.0)) == [Watch(2, OTHER, "leave", 30.0, 20)]


def test_loss_and_return_get_one_line_each_however_often_it_is_tried() -> None:
    manager = at_work()
    assert logged(manager.disconnected("broke", 1.0)) != ""
    assert manager.contact_failed(REFUSED_BY_SYSTEM, 2.0) == []
    assert logged(manager.connected(3.0)) == ""
    assert manager.disconnected("broke again", 4.0) == []
    manager.connected(13.0)
    assert logged(manager.received(running(re=3), 13.4)) == "contact with the node g1 is back after 12 s"
    assert manager.received(status(99), 14.0) == []


def test_what_ended_meanwhile_is_delivered_on_return() -> None:
    manager = at_work()
    manager.disconnected("broke", 1.0)
    manager.connected(2.0)
    actions = manager.received(Ended(2, OWN, Signaled(9)), 2.1)
    assert logged(actions).splitlines()[0].startswith("contact with the node g1 is back")
    assert (sent(actions), finish(actions)) == ([Ack(OWN)], 137)


def test_a_goodbye_is_a_loss_of_contact() -> None:
    actions = at_work().received(Goodbye("shutting\ndown"), 1.0)
    assert actions[0] == Reconnect()
    assert (
        logged(actions)
        == r"lost contact with the node g1, trying to reach it again: the server lets go: shutting\x0adown"
    )


def test_a_run_that_has_to_wait_is_waited_for_as_long_as_polls_are_answered() -> None:
    manager = in_contact()
    now = 0.0
    for number in range(2, 40):
        now += 5.0
        assert manager.tick(now) == [Send(Poll(number))]
        manager.received(Status(number, OWN, "stopping", None, None, None, None), now)
    assert logged(manager.received(running(), now)).startswith("started")


def test_a_pause_of_our_own_is_not_held_against_the_server() -> None:
    manager = at_work()
    manager.tick(5.0)
    assert manager.tick(500.0) == []
    assert manager.received(status(2), 500.1) == []
    assert finish(manager.received(Ended(None, OWN, Exited(0)), 500.2)) == 0


def test_after_a_pause_of_our_own_silence_counts_again() -> None:
    manager = at_work()
    manager.disconnected("broke", 1.0)
    assert manager.tick(500.0) == []
    assert manager.deadline() == 530.0
    assert finish(manager.tick(530.0)) == 1


@pytest.mark.parametrize(("re", "expected"), [(1, 1), (None, None), (2, None)])
def test_an_error_ends_it_only_where_it_answers_our_request(re: int | None, expected: int | None) -> None:
    manager = in_contact()
    manager.tick(5.0)
    actions = manager.received(Error(re, "no\nidea"), 5.1)
    assert finish(actions) == expected
    assert r"no\x0aidea" in logged(actions)


def test_an_error_about_a_poll_is_an_answer_to_it() -> None:
    manager = at_work()
    manager.tick(5.0)
    manager.received(Error(2, "unknown type"), 5.1)
    assert manager.tick(10.0) == [Send(Poll(3))]


# Halt with stop.


def test_halt_with_stop_stops_and_reports_the_outcome() -> None:
    manager = at_work(STOPPING_OPTIONS)
    actions = manager.signalled(15, 10.0)
    assert sent(actions) == [Stop(2, OWN, 30.0)]
    assert finish(actions) is None
    assert manager.received(Stopping(2, OWN), 10.1) == []
    actions = manager.received(Ended(None, OWN, Signaled(15, Account(stopped_by="node1"))), 12.0)
    assert (sent(actions), finish(actions)) == ([Ack(OWN)], 143)


def test_a_stop_of_what_has_ended_reports_the_outcome() -> None:
    manager = at_work(STOPPING_OPTIONS)
    manager.signalled(15, 10.0)
    assert finish(manager.received(Ended(2, OWN, Exited(3)), 10.1)) == 3


def test_a_second_term_detaches() -> None:
    manager = at_work(STOPPING_OPTIONS)
    manager.signalled(2, 10.0)
    actions = manager.signalled(15, 11.0)
    assert (sent(actions), finish(actions)) == ([], 143)


def test_a_stop_without_contact_is_tried_for_the_stop_timeout() -> None:
    manager = at_work(STOPPING_OPTIONS)
    manager.disconnected("broke", 5.0)
    assert sent(manager.signalled(15, 10.0)) == []
    assert manager.tick(39.9) == []
    assert sent(manager.connected(20.0)) == [Watch(2, OWN, "leave", 30.0, 20), Stop(3, OWN, 30.0)]
    manager.disconnected("broke", 21.0)
    actions = manager.tick(40.0)
    assert finish(actions) == 1
    assert "could not be asked to stop" in logged(actions)


def test_an_accepted_stop_is_waited_for_and_only_watched_after_a_reconnection() -> None:
    manager = at_work(STOPPING_OPTIONS)
    manager.signalled(15, 10.0)
    manager.received(Stopping(2, OWN), 11.0)
    assert manager.disconnected("broke", 12.0) != []
    assert sent(manager.connected(13.0)) == [Watch(3, OWN, "leave", 30.0, 20)]
    manager.received(running(re=3), 13.1)
    manager.disconnected("broke", 14.0)
    assert manager.tick(46.9) == []
    actions = manager.tick(47.0)
    assert finish(actions) == 1
    assert "accepted the stop" in logged(actions)


def test_a_stop_on_a_frozen_connection_is_asked_again_over_a_new_one() -> None:
    manager = at_work(STOPPING_OPTIONS)
    manager.signalled(15, 10.0)
    assert sent(manager.tick(15.0)) == [Poll(3)]
    assert manager.deadline() == 25.0
    assert manager.tick(25.0)[0] == Reconnect()
    assert sent(manager.connected(26.0)) == [Watch(4, OWN, "leave", 30.0, 20), Stop(5, OWN, 30.0)]


def test_answers_do_not_prolong_a_stop_that_is_never_accepted() -> None:
    manager = at_work(STOPPING_OPTIONS)
    manager.signalled(15, 10.0)
    for now in range(15, 40, 5):
        (poll,) = sent(manager.tick(float(now)))
        assert isinstance(poll, Poll)
        manager.received(status(poll.seq), float(now))
    assert finish(manager.tick(40.0)) == 1


def test_a_short_stop_timeout_leaves_a_server_in_contact_time_to_accept() -> None:
    manager = at_work(replace(STOPPING_OPTIONS, stop_timeout_seconds=0.1))
    manager.signalled(15, 10.0)
    assert finish(manager.tick(10.2)) is None
    assert finish(manager.received(Ended(None, OWN, Signaled(9)), 11.0)) == 137


def test_halt_during_an_unanswered_run_stops_it_by_its_id() -> None:
    manager = in_contact(STOPPING_OPTIONS)
    assert sent(manager.signalled(15, 1.0)) == [Stop(2, OWN, 30.0)]
    manager.received(running(), 1.1)
    manager.received(Stopping(2, OWN), 1.2)
    assert finish(manager.received(Ended(None, OWN, Signaled(15)), 2.0)) == 143


def test_halt_during_an_unanswered_run_that_turns_out_to_be_anothers_stops_that() -> None:
    manager = in_contact(STOPPING_OPTIONS)
    manager.signalled(15, 1.0)
    assert manager.received(Ended(2, OWN, Lost("no such run")), 1.1) == []
    assert sent(manager.received(running(run=OTHER, attached=True), 1.2)) == [Stop(3, OTHER, 30.0)]
    assert finish(manager.received(Ended(None, OTHER, Exited(8)), 2.0)) == 8


def test_halt_after_an_unanswered_run_was_cut_off_never_starts_anything() -> None:
    manager = in_contact(STOPPING_OPTIONS)
    manager.disconnected("broke", 0.5)
    manager.signalled(15, 1.0)
    assert sent(manager.connected(2.0)) == [Stop(2, OWN, 30.0)]
    actions = manager.received(Ended(2, OWN, Lost("it was stopped before it was started")), 2.1)
    assert finish(actions) == 1
    assert "stopped before it was started" in logged(actions)


def test_halt_after_an_unanswered_run_was_cut_off_waits_for_the_end_of_what_was_started() -> None:
    manager = in_contact(STOPPING_OPTIONS)
    manager.disconnected("broke", 0.5)
    manager.signalled(15, 1.0)
    manager.connected(2.0)
    assert finish(manager.received(Stopping(2, OWN), 2.1)) is None
    manager.disconnected("broke again", 3.0)
    assert sent(manager.connected(4.0)) == [Watch(3, OWN, "leave", 30.0, 20)]
    assert finish(manager.received(Ended(3, OWN, Signaled(15)), 4.1)) == 143


def test_a_stop_that_is_refused_ends_it_with_the_failure_status() -> None:
    manager = at_work(STOPPING_OPTIONS)
    manager.signalled(15, 10.0)
    assert finish(manager.received(Refused(2, "storage", "disk full"), 10.1)) == 1


def test_survivors_that_are_to_be_stopped_are_not_said_to_live_on() -> None:
    manager = at_work(replace(OPTIONS, survivors="stop"))
    assert "2 descendants are being stopped" in logged(
        manager.received(Ended(None, OWN, Exited(0, Account(survivors=2))), 1.0)
    )


def test_waiting_for_the_stop_of_an_earlier_run_is_logged_once() -> None:
    manager = in_contact()
    (poll,) = sent(manager.tick(manager.deadline()))
    assert isinstance(poll, Poll)
    status = Status(poll.seq, OWN, "stopping", None, None, None, None)
    assert "is being stopped, waiting" in logged(manager.received(status, 6.0))
    assert manager.received(status, 7.0) == []


def test_a_second_signal_after_an_accepted_stop_says_that_the_stop_goes_on() -> None:
    manager = at_work(STOPPING_OPTIONS)
    manager.signalled(15, 10.0)
    manager.received(Stopping(2, OWN), 11.0)
    actions = manager.signalled(15, 12.0)
    assert finish(actions) == 143
    assert "the stop goes on there" in logged(actions)


def test_the_end_of_an_earlier_run_that_was_waited_for_is_no_start() -> None:
    manager = in_contact(STOPPING_OPTIONS)
    (poll,) = sent(manager.tick(manager.deadline()))
    assert isinstance(poll, Poll)
    manager.received(Status(poll.seq, OTHER, "stopping", None, None, None, None), 6.0)
    manager.signalled(15, 7.0)
    actions = manager.received(Ended(1, OTHER, Signaled(9, Account(stopped_by="somebody"))), 8.0)
    assert finish(actions) == 128 + 9
    assert "started" not in logged(actions)
    assert "stopped by somebody" in logged(actions)
