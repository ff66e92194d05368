"""The manager that starts nothing, and the file that tells how things stand."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
from test_manager import OPTIONS, OTHER, OWN, SERVICE, finish, logged, running, sent

from appmgr.manager import Action, Manager, Show
from appmgr.options import ManagerOptions
from appmgr.standing import Standing, StatusFile, lines
from appserver.messages import Ack, Attach, Ended, Error, Poll, Refused, Run, Status, Stop, Stopping, Watch
from appserver.outcome import Account, Exited, Lost, Outcome, Signaled

TERMS = (OPTIONS.survivors, OPTIONS.stop_timeout_seconds, OPTIONS.tail_lines)
SHOWN = replace(OPTIONS, status_file="/run/ping.status")
ATTACH = replace(SHOWN, action="attach")
STOP = replace(SHOWN, action="stop")
STOP_THAT = replace(STOP, run_id=OWN)
NOT_THERE = "the application '/apps/ping_mon' does not run on the node g1, and nothing was started"


def shown(actions: list[Action]) -> Standing:
    """The last that was shown."""
    return [action.standing for action in actions if isinstance(action, Show)][-1]


def in_contact(options: ManagerOptions, now: float = 0.0) -> Manager:
    manager = Manager(options, OWN, 0.0)
    manager.connected(now)
    return manager


# To attach.


def test_a_manager_that_is_to_attach_asks_for_that_and_never_to_run() -> None:
    manager = Manager(ATTACH, OWN, 0.0)
    assert sent(manager.connected(0.0)) == [Attach(1, OWN, SERVICE, *TERMS)]
    manager.disconnected("gone", 1.0)
    assert sent(manager.connected(2.0)) == [Attach(2, OWN, SERVICE, *TERMS)]
    actions = manager.received(running(2, OTHER, attached=True), 2.0)
    assert "attached to the application" in logged(actions)
    assert shown(actions).attached is True
    manager.disconnected("gone", 3.0)
    assert sent(manager.connected(4.0)) == [Watch(3, OTHER, *TERMS)]


def test_a_manager_that_is_told_the_run_attaches_to_that_one() -> None:
    manager = Manager(replace(ATTACH, run_id=OWN), OWN, 0.0)
    assert sent(manager.connected(0.0)) == [Watch(1, OWN, *TERMS)]
    assert "attached to the application" in logged(manager.received(running(1, attached=True), 0.0))


def test_what_does_not_run_is_a_failure_for_who_is_to_attach() -> None:
    actions = in_contact(replace(ATTACH, failure_status=9)).received(Refused(1, "not-running", "no"), 0.1)
    assert (finish(actions), logged(actions)) == (9, NOT_THERE)
    assert (shown(actions).state, shown(actions).cause) == ("failed", "not-running")
    assert (shown(actions).state, shown(actions).cause) == ("failed", "not-running")


def test_what_has_ended_meanwhile_is_an_end_for_who_is_to_attach_and_was_not_started_now() -> None:
    actions = in_contact(ATTACH).received(Ended(1, OTHER, Exited(7)), 0.1)
    assert sent(actions) == [Ack(OTHER)]
    assert finish(actions) == 7
    assert "started" not in logged(actions)


def test_an_old_server_that_does_not_know_the_question_is_named_as_such() -> None:
    actions = in_contact(STOP).received(Error(1, "this server does not know messages of type 'attach'"), 0.1)
    assert finish(actions) == 1
    assert "has to be upgraded" in logged(actions)


# To stop.


def test_a_manager_that_is_to_stop_says_so_at_once() -> None:
    assert sent(Manager(STOP, OWN, 0.0).connected(0.0)) == [Attach(1, OWN, SERVICE, *TERMS), Stop(2, OWN, 30.0)]
    assert sent(Manager(STOP_THAT, OWN, 0.0).connected(0.0)) == [Watch(1, OWN, *TERMS), Stop(2, OWN, 30.0)]


def test_a_stop_is_asked_for_once_over_each_connection_until_it_is_accepted() -> None:
    manager = in_contact(STOP)
    assert sent(manager.received(running(1, OTHER, attached=True), 0.1)) == []
    manager.disconnected("gone", 1.0)
    assert sent(manager.connected(2.0)) == [Watch(3, OTHER, *TERMS), Stop(4, OTHER, 30.0)]
    manager.received(Stopping(4, OTHER), 2.1)
    manager.disconnected("gone", 3.0)
    assert sent(manager.connected(4.0)) == [Watch(5, OTHER, *TERMS)]


@pytest.mark.parametrize("outcome", [Exited(0), Exited(7), Signaled(9), Lost("who knows")])
def test_a_manager_that_was_to_stop_ends_with_0_however_the_application_ended(outcome: Outcome) -> None:
    manager = in_contact(STOP)
    manager.received(running(1, OTHER, attached=True), 0.1)
    manager.received(Stopping(2, OTHER), 0.1)
    actions = manager.received(Ended(None, OTHER, outcome), 0.2)
    assert sent(actions) == [Ack(OTHER)]
    assert finish(actions) == 0
    assert (shown(actions).state, shown(actions).status) == ("stopped", 0)


def test_what_does_not_run_is_stopped_already() -> None:
    actions = in_contact(replace(STOP, failure_status=9)).received(Refused(1, "not-running", "no"), 0.1)
    assert (finish(actions), logged(actions)) == (0, NOT_THERE)
    assert (shown(actions).state, shown(actions).cause) == ("stopped", "not-running")


def test_a_stop_that_is_refused_is_a_failure() -> None:
    actions = in_contact(STOP).received(Refused(2, "rule", "not yours"), 0.1)
    assert finish(actions) == 1
    assert (shown(actions).cause, shown(actions).code) == ("refused", "rule")


def test_a_stop_without_contact_gives_up_after_the_boot_timeout_and_says_why() -> None:
    manager = Manager(replace(STOP, boot_timeout_seconds=5.0), OWN, 0.0)
    manager.contact_failed("Connection refused (errno:111)", 0.1)
    actions = manager.tick(5.0)
    assert finish(actions) == 1
    assert (
        logged(actions)
        == "no contact with the node g1 within 5.0 s, giving up; last reason: Connection refused (errno:111)"
    )
    assert shown(actions).cause == "no-contact"


def test_an_application_that_does_not_end_is_told_apart_from_a_guest_that_does_not_answer() -> None:
    manager = in_contact(STOP, now=50.0)
    manager.received(Stopping(2, OWN), 50.0)
    while finish(actions := manager.tick(manager.deadline())) is None:
        (poll,) = sent(actions)
        assert isinstance(poll, Poll)
        manager.received(Status(poll.seq, OWN, "stopping", 77, 1.0, 0.1, 1000), manager.deadline() - 1)
    assert shown(actions).cause == "not-stopped"
    lost = in_contact(STOP)
    lost.received(Stopping(2, OWN), 0.0)
    lost.disconnected("gone", 1.0)
    assert shown(lost.tick(34.0)).cause == "no-contact"


def test_a_signal_leaves_the_stop_to_the_server() -> None:
    manager = in_contact(STOP)
    manager.received(Stopping(2, OWN), 0.1)
    actions = manager.signalled(15, 1.0)
    assert finish(actions) == 143
    assert "the stop goes on there" in logged(actions)


# What is shown.


def test_all_that_happens_to_a_run_is_shown() -> None:
    manager = Manager(SHOWN, OWN, 0.0)
    assert shown(manager.opening()) == Standing("connecting", run=OWN)
    assert sent(manager.connected(0.0)) == [Run(1, OWN, SERVICE, *TERMS)]
    actions = manager.received(running(1, OTHER, attached=True), 0.0)
    assert shown(actions) == Standing("running", run=OTHER, pid=77, attached=True, text=logged(actions))
    actions = manager.disconnected("gone", 1.0)
    assert shown(actions) == Standing("lost", run=OTHER, pid=77, attached=True, text=logged(actions))
    manager.connected(2.0)
    actions = manager.received(running(2, OTHER, attached=True), 2.0)
    assert shown(actions).state == "running"
    outcome = Signaled(9, Account(killed_for_memory=True))
    actions = manager.received(Ended(None, OTHER, outcome), 3.0)
    assert shown(actions) == Standing(
        "ended", OTHER, 77, True, "signaled", "9", 137, "ended by signal 9 (SIGKILL), killed for memory",
        "the application '/apps/ping_mon' on the node g1 ended: ended by signal 9 (SIGKILL), killed for memory",
    )  # fmt: skip


def test_a_contact_lost_before_the_application_was_heard_of_is_not_shown_as_running() -> None:
    manager = in_contact(SHOWN)
    assert shown(manager.disconnected("gone", 1.0)).state == "connecting"


@pytest.mark.parametrize("early", [True, False])
def test_a_manager_that_leaves_shows_that(early: bool) -> None:
    manager = Manager(SHOWN, OWN, 0.0) if early else in_contact(SHOWN)
    standing = shown(manager.signalled(15, 1.0))
    assert (standing.state, standing.cause, standing.status) == ("detached", "signal", 143)


def test_nothing_is_shown_where_nobody_asked_for_it() -> None:
    manager = Manager(OPTIONS, OWN, 0.0)
    actions = [*manager.opening(), *manager.connected(0.0), *manager.received(running(), 0.0)]
    actions += manager.received(Ended(None, OWN, Exited(0)), 1.0)
    assert not [action for action in actions if isinstance(action, Show)]


# The file.


def test_the_file_has_a_line_for_all_that_is_known() -> None:
    standing = Standing("ended", OWN, 77, False, "exited", "7", 7, text="it ended = so what")
    assert lines(standing) == (
        f"state=ended\nrun={OWN}\npid=77\nattached=no\ncause=exited\ncode=7\nstatus=7\ntext=it ended = so what\n"
    )
    assert lines(Standing("connecting")) == "state=connecting\n"


def test_the_file_is_private_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "status"
    file = StatusFile(str(path), pytest.fail)
    file.begin()
    first = path.stat()
    assert path.read_text() == "state=connecting\n"
    assert stat.S_IMODE(first.st_mode) == 0o600
    file.show(Standing("running", pid=77))
    assert path.read_text() == "state=running\npid=77\n"
    assert path.stat().st_ino != first.st_ino
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_told_once_and_ends_nothing(tmp_path: Path) -> None:
    warnings: list[str] = []
    file = StatusFile(str(tmp_path / "nowhere" / "status"), warnings.append)
    with pytest.raises(FileNotFoundError):
        file.begin()
    file.show(Standing("running"))
    file.show(Standing("running"))
    assert warnings == [
        f"the status file {str(tmp_path / 'nowhere' / 'status')!r} cannot be written: No such file or directory"
    ]


def test_no_file_is_no_file() -> None:
    file = StatusFile(None, pytest.fail)
    file.begin()
    file.show(Standing("running"))
