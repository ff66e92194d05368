"""Every action of the manager in full: what is sent, at which level what is logged, to the second when."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest
from test_manager import (
    OPTIONS,
    OTHER,
    OWN,
    SERVICE,
    STOPPING_OPTIONS,
    at_work,
    finish,
    in_contact,
    running,
    sent,
    status,
)

from appmgr.manager import (
    MIN_STOP_ANSWER_SECONDS,
    OWN_PAUSE_SECONDS,
    STOP_GRACE_SECONDS,
    STOP_RETURN_SECONDS,
    Finish,
    Log,
    Manager,
    Reconnect,
    Send,
)
from appserver.messages import (
    Ack,
    Ended,
    Error,
    Goodbye,
    Greeting,
    Poll,
    Previous,
    Refused,
    Run,
    Status,
    Stop,
    Stopping,
    Watch,
)
from appserver.outcome import Account, Exited, Lost

TERMS = (OPTIONS.survivors, OPTIONS.stop_timeout_seconds, OPTIONS.tail_lines)
TIMEOUT = OPTIONS.timeout_seconds
STOP_TIMEOUT = STOPPING_OPTIONS.stop_timeout_seconds
GAVE_UP = "no answer from the node g1 for 60 s, giving up; the application may still run; last reason: "


def test_the_times_are_those_that_the_rest_was_reckoned_with() -> None:
    assert (TIMEOUT, STOP_TIMEOUT, OPTIONS.poll_seconds) == (60, 30, 5)
    assert (MIN_STOP_ANSWER_SECONDS, STOP_GRACE_SECONDS, STOP_RETURN_SECONDS, OWN_PAUSE_SECONDS) == (5, 10, 3, 2)


def test_before_the_first_contact_only_the_boot_timeout_counts() -> None:
    manager = Manager(replace(OPTIONS, boot_timeout_seconds=90), OWN, 10.0)
    assert manager.deadline() == 100.0
    assert manager.tick(99.9) == []
    text = f"{os.strerror(errno.ETIMEDOUT)} (errno:{errno.ETIMEDOUT})"
    assert manager.tick(100.0) == [
        Log("error", "Could not connect to the node g1"),
        Log("error", text),
        Log("error", f"no contact with the node g1 within 90 s, giving up; last reason: {text}"),
        Finish(OPTIONS.failure_status),
    ]


def test_only_the_first_failure_is_logged_and_the_last_is_the_reason() -> None:
    manager = Manager(OPTIONS, OWN, 0.0)
    failed = [Log("error", "Could not connect to the node g1"), Log("error", "one")]
    assert manager.contact_failed("one", 1.0) == failed
    assert manager.contact_failed("two", 2.0) == []
    assert manager.tick(60.0) == [
        Log("error", "no contact with the node g1 within 60 s, giving up; last reason: two"),
        Finish(OPTIONS.failure_status),
    ]


def test_a_lowered_poll_interval_is_in_force_and_logged_and_another_is_not() -> None:
    lowered = Manager(replace(OPTIONS, poll_seconds=5.0, timeout_seconds=6.0), OWN, 0.0)
    assert lowered.poll_seconds == 2.0
    text = "poll interval lowered from 5 s to 2 s, a third of the timeout of 6 s"
    assert lowered.opening() == [Log("info", text)]
    exact = Manager(replace(OPTIONS, poll_seconds=2.0, timeout_seconds=6.0), OWN, 0.0)
    assert (exact.poll_seconds, exact.opening()) == (2.0, [])


def test_polls_are_numbered_after_the_run_and_come_at_their_interval() -> None:
    manager = at_work()
    assert manager.deadline() == 5.0
    assert manager.tick(4.9) == []
    assert manager.tick(5.0) == [Send(Poll(2))]
    assert manager.deadline() == 35.0  # half the timeout for the answer
    assert manager.received(status(2), 5.5) == []
    assert manager.deadline() == 10.0
    assert manager.tick(10.0) == [Send(Poll(3))]
    assert manager.received(status(2), 10.5) == []  # an old answer leaves this poll open
    assert manager.tick(39.9) == []
    reason = "no answer for 30 s"
    lost = f"lost contact with the node g1, trying to reach it again: {reason}"
    assert manager.tick(40.0) == [Reconnect(), Log("warning", lost)]
    assert manager.deadline() == 70.5


def test_a_loss_is_one_line_and_the_return_tells_how_long() -> None:
    manager = at_work()
    lost = Log("warning", "lost contact with the node g1, trying to reach it again: cut")
    assert manager.disconnected("cut", 2.0) == [lost]
    assert manager.contact_failed("refused", 3.0) == []
    assert manager.connected(4.0) == [Send(Watch(2, OWN, *TERMS))]
    assert manager.disconnected("cut again", 4.5) == []
    assert manager.connected(5.0) == [Send(Watch(3, OWN, *TERMS))]
    back = Log("info", "contact with the node g1 is back after 4.0 s")
    assert manager.received(running(3), 6.0) == [back]
    assert manager.received(status(9), 6.1) == []


def test_silence_for_the_timeout_ends_it_with_the_last_reason() -> None:
    manager = at_work()
    manager.received(status(2), 1.0)
    manager.disconnected("cut", 2.0)
    manager.contact_failed("refused", 60.0)
    assert manager.deadline() == 61.0
    assert manager.tick(60.9) == []
    assert manager.tick(61.0) == [Log("error", f"{GAVE_UP}refused"), Finish(OPTIONS.failure_status)]


def test_a_greeting_alone_is_an_answer_only_the_first_time() -> None:
    manager = Manager(OPTIONS, OWN, 0.0)
    assert manager.connected(59.0) == [Send(Run(1, OWN, SERVICE, *TERMS))]
    assert manager.deadline() == 64.0
    manager.disconnected("cut", 60.0)
    assert manager.deadline() == 119.0
    manager.connected(100.0)
    assert manager.tick(105.0) == [Send(Poll(3))]
    assert manager.deadline() == 119.0


def test_a_goodbye_makes_the_connection_anew_with_its_reason() -> None:
    text = "lost contact with the node g1, trying to reach it again: the server lets go: shutting\\x0adown"
    assert at_work().received(Goodbye("shutting\ndown"), 1.0) == [Reconnect(), Log("warning", text)]


def test_a_second_greeting_changes_nothing() -> None:
    assert at_work().received(Greeting((1,), "s", "h"), 1.0) == []


def test_a_refusal_is_an_error_in_the_log() -> None:
    text = "the node g1 refused '/apps/ping_mon': no (rule)"
    assert in_contact().received(Refused(1, "rule", "no"), 1.0) == [Log("error", text), Finish(OPTIONS.failure_status)]


def test_an_error_is_a_warning_unless_it_answers_what_we_asked() -> None:
    text = "the server on the node g1 reports an error: odd\\x0aline"
    manager = at_work()
    assert manager.received(Error(None, "odd\nline"), 1.0) == [Log("warning", text)]
    assert manager.received(Error(1, "odd\nline"), 1.0) == [Log("warning", text)]  # the run was answered
    waiting = in_contact(replace(OPTIONS, failure_status=9))
    assert waiting.received(Error(1, "odd\nline"), 1.0) == [Log("error", text), Finish(9)]


def test_an_error_of_a_stop_ends_it() -> None:
    manager = at_work(STOPPING_OPTIONS)
    manager.signalled(15, 1.0)
    actions = manager.received(Error(2, "odd"), 1.5)
    assert actions == [Log("error", "the server on the node g1 reports an error: odd"), Finish(1)]


def test_a_start_tells_of_the_outcome_before_and_acknowledges_it() -> None:
    previous = Previous(OTHER, Exited(4, Account(ran_seconds=5.0)))
    earlier = "an earlier run of the application ended without a manager after 5.0 s: exited with code 4, by itself"
    started = "started the application '/apps/ping_mon' on the node g1: process 77, output in /log"
    assert in_contact().received(running(previous=previous), 1.0) == [
        Log("warning", earlier),
        Send(Ack(OTHER)),
        Log("info", started),
    ]


def test_an_attachment_to_anothers_run_is_said_and_that_one_is_watched_from_then_on() -> None:
    manager = in_contact()
    text = "attached to the application '/apps/ping_mon' on the node g1: process 77, running for 61 s, output in /log"
    assert manager.received(running(run=OTHER, attached=True), 1.0) == [Log("info", text)]
    manager.disconnected("cut", 2.0)
    assert sent(manager.connected(3.0)) == [Watch(2, OTHER, *TERMS)]
    assert manager.received(Ended(None, OWN, Exited(1)), 3.5)[1:] == []
    assert finish(manager.received(Ended(None, OTHER, Exited(1)), 4.0)) == 1


def test_the_end_is_told_with_what_the_application_said_last() -> None:
    ended = Ended(None, OWN, Exited(3, Account(ran_seconds=2.0)), ("first", "second", "third"))
    manager = at_work(replace(OPTIONS, tail_lines=2))
    assert manager.received(ended, 1.0) == [
        Log("info", "output: second"),
        Log("info", "output: third"),
        Log("info", "the application '/apps/ping_mon' on the node g1 ended after 2.0 s: exited with code 3, by itself"),
        Send(Ack(OWN)),
        Finish(3),
    ]


def test_a_lost_outcome_is_an_error_in_the_log() -> None:
    manager = at_work(replace(OPTIONS, failure_status=9))
    text = "the application '/apps/ping_mon' on the node g1 is gone: outcome lost: why"
    assert manager.received(Ended(None, OWN, Lost("why")), 1.0) == [Log("error", text), Send(Ack(OWN)), Finish(9)]


def test_an_end_in_the_place_of_the_start_is_told_as_both() -> None:
    started = "started the application '/apps/ping_mon' on the node g1: it has ended already"
    first = in_contact().received(Ended(1, OTHER, Exited(0)), 1.0)
    assert first[0] == Log("info", started)
    assert sent(first) == [Ack(OTHER)]
    lost = in_contact().received(Ended(1, OWN, Lost("why")), 1.0)
    assert [type(action) for action in lost] == [Log, Send, Finish]


def test_waiting_for_an_earlier_run_is_said_once_and_only_before_the_start() -> None:
    text = "an earlier run of the application '/apps/ping_mon' on the node g1 is being stopped, waiting"
    stopping = Status(1, OTHER, "stopping", 5, 1.0, 0.1, 100)
    manager = in_contact()
    assert manager.received(status(1), 1.0) == []
    assert manager.received(stopping, 1.0) == [Log("info", text)]
    assert manager.received(stopping, 2.0) == []
    assert at_work().received(stopping, 1.0) == []


# A halt.


def test_a_halt_before_contact_is_logged_and_ends_it() -> None:
    text = "SIGTERM before the first contact: nothing was started"
    assert Manager(STOPPING_OPTIONS, OWN, 0.0).signalled(1, 1.0) == [Log("info", text), Finish(143)]


def test_a_halt_with_detach_says_what_becomes_of_the_application() -> None:
    text = "SIGINT: detached from the node g1, the application goes on"
    assert at_work().signalled(2, 1.0) == [Log("info", text), Finish(130)]
    cut_off = at_work()
    cut_off.disconnected("cut", 0.5)
    assert cut_off.signalled(2, 1.0) == [Log("info", text), Finish(130)]
    unsure = "SIGINT: detached from the node g1, the application may have been started"
    assert in_contact().signalled(2, 1.0) == [Log("info", unsure), Finish(130)]


def test_a_halt_with_stop_asks_and_waits_for_the_stop_timeout() -> None:
    manager = at_work(STOPPING_OPTIONS)
    text = "SIGTERM: stopping the application on the node g1 (KILL after 30 s)"
    assert manager.signalled(15, 1.0) == [Log("info", text), Send(Stop(2, OWN, 30.0))]
    assert manager.deadline() == 6.0  # polled anew from now
    assert manager.tick(6.0) == [Send(Poll(3))]
    assert manager.deadline() == 16.0  # a third of the stop timeout for the answer
    assert manager.received(status(3), 7.0) == []
    for number, second in enumerate((11.0, 16.0, 21.0, 26.0), 4):
        assert manager.tick(second) == [Send(Poll(number))]
        assert manager.received(status(number), second) == []
    assert manager.tick(30.9) == []
    unasked = "the node g1 could not be asked to stop the application within 30 s, giving up"
    assert manager.tick(31.0) == [Log("error", unasked), Finish(1)]


def test_an_accepted_stop_has_its_timeout_and_a_grace() -> None:
    manager = at_work(STOPPING_OPTIONS)
    manager.signalled(15, 1.0)
    assert manager.received(Stopping(2, OWN), 3.0) == []
    assert manager.received(Stopping(2, OWN), 4.0) == []  # told again it changes nothing
    for second in range(5, 43):
        for message in sent(manager.tick(float(second))):
            assert isinstance(message, Poll)
            manager.received(status(message.seq), float(second))
    text = "the node g1 accepted the stop, but its completion was not heard of in time, giving up"
    assert manager.tick(42.9) == []
    assert manager.tick(43.0) == [Log("error", text), Finish(1)]


def test_contact_lost_after_an_accepted_stop_is_sought_for_the_stop_timeout_and_a_little() -> None:
    manager = at_work(STOPPING_OPTIONS)
    manager.signalled(15, 1.0)
    manager.received(Stopping(2, OWN), 2.0)
    manager.disconnected("cut", 5.0)
    assert manager.deadline() == 38.0
    assert manager.connected(6.0) == [Send(Watch(3, OWN, *TERMS))]
    back = Log("info", "contact with the node g1 is back after 2.0 s")
    assert manager.received(running(3), 7.0) == [back]
    manager.disconnected("cut", 20.0)
    assert manager.deadline() == 42.0  # never later than the stop is over


def test_a_stop_without_contact_is_asked_for_when_there_is_some() -> None:
    manager = at_work(replace(STOPPING_OPTIONS, stop_timeout_seconds=3.0))
    manager.disconnected("cut", 1.0)
    text = "SIGTERM: stopping the application on the node g1 (KILL after 3.0 s)"
    assert manager.signalled(15, 2.0) == [Log("info", text)]
    assert manager.deadline() == 5.0
    assert sent(manager.connected(4.0)) == [Watch(2, OWN, "leave", 3.0, 20), Stop(3, OWN, 3.0)]


def test_a_short_stop_timeout_in_contact_leaves_the_least_time() -> None:
    manager = at_work(replace(STOPPING_OPTIONS, stop_timeout_seconds=0.0))
    manager.signalled(15, 1.0)
    assert manager.deadline() <= 6.0
    assert manager.tick(5.9) != [Finish(1)]
    assert finish(manager.tick(6.0)) == 1


def test_a_second_signal_says_what_goes_on() -> None:
    manager = at_work(STOPPING_OPTIONS)
    manager.signalled(15, 1.0)
    manager.received(Stopping(2, OWN), 2.0)
    text = "SIGTERM: detached from the node g1, the stop goes on there"
    assert manager.signalled(15, 3.0) == [Log("info", text), Finish(143)]


def test_a_server_that_says_stopping_unasked_changes_no_deadline() -> None:
    manager = at_work(STOPPING_OPTIONS)
    assert manager.received(Stopping(9, OWN), 1.0) == []
    manager.disconnected("cut", 2.0)
    assert manager.deadline() == 61.0


def test_a_run_of_anothers_is_stopped_by_its_id_once_it_is_known() -> None:
    manager = in_contact(STOPPING_OPTIONS)
    assert sent(manager.signalled(15, 1.0)) == [Stop(2, OWN, 30.0)]
    assert sent(manager.received(running(run=OTHER, attached=True), 1.5)) == [Stop(3, OTHER, 30.0)]
    own = in_contact(STOPPING_OPTIONS)
    own.signalled(15, 1.0)
    assert sent(own.received(running(), 1.5)) == []


def test_a_stop_that_finds_nobody_leaves_the_word_to_the_run_that_is_unanswered() -> None:
    manager = in_contact(STOPPING_OPTIONS)
    manager.signalled(15, 1.0)
    assert manager.received(Ended(2, OWN, Lost("not known")), 1.5) == []
    answered = at_work(STOPPING_OPTIONS)
    answered.signalled(15, 1.0)
    assert finish(answered.received(Ended(2, OWN, Lost("not known")), 1.5)) == 1


# Standing still.


@pytest.mark.parametrize(("late", "grants"), [(2.0, False), (2.1, True)])
def test_a_tick_that_comes_late_grants_one_more_answer(late: float, *, grants: bool) -> None:
    manager = at_work()
    manager.disconnected("cut", 1.0)
    actions = manager.tick(60.0 + late)
    assert (actions == []) is grants
    if grants:
        assert manager.deadline() == 60.0 + late + 30.0


def test_a_late_tick_in_contact_counts_the_poll_from_now() -> None:
    manager = at_work()
    assert manager.tick(5.0) == [Send(Poll(2))]
    assert manager.tick(50.0) == []  # the answer may lie there, unread
    assert manager.deadline() == 80.0
    assert manager.tick(79.9) == []
    assert [type(action) for action in manager.tick(80.0)] in ([Reconnect, Log], [Log, Finish])
