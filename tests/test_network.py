"""A real network between manager and server: what breaks, and for how long, and who notices.

Host and guest are namespaces around a switch (`network`); server, manager and application are the real ones. Two rules
are shown, each by logs, processes, and an observer on the host's interface: a pause shorter than the timeout is never a
failover, and a dead peer is given up within the timeout plus one second of its last answer.

The silence that counts began with the last answer, which may be a poll interval older than the pause. So a pause is
begun at the worst moment, just before a poll, and `SHORTER` leaves room for that interval, and for a machine so busy
that a fault takes a second to end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from pair import wait_for_match
from patient import Patient
from scene import Row, Scene, assert_in_time, assert_untouched

pytestmark = pytest.mark.network

SHORTER_TIMEOUT, SHORTER = 12.0, 5.5
LONGER_TIMEOUT = 4.0

ENDED_EARLIER = "an earlier run of the application ended without a manager"


@dataclass(frozen=True)
class Fault:
    name: str
    begin: Callable[[Scene], None]
    end: Callable[[Scene], None]


def freeze_with_kernel(scene: Scene) -> None:
    scene.machine.freeze()
    scene.network.pull(scene.port)


def thaw_with_kernel(scene: Scene) -> None:
    scene.network.put_back(scene.port)
    scene.machine.thaw()


FAULTS = [
    Fault("the guest's cable is pulled", lambda s: s.network.pull(s.port), lambda s: s.network.put_back(s.port)),
    Fault(
        "the host's link is down",
        lambda s: void(s.host.ip("link", "set", "eth0", "down")),
        lambda s: void(s.host.ip("link", "set", "eth0", "up")),
    ),
    Fault("all to the guest is lost", lambda s: s.machine.be_deaf(), lambda s: s.machine.hear()),
    Fault("all to the host is lost", lambda s: s.host.be_deaf(), lambda s: s.host.hear()),
    Fault("every process of the guest stopped", lambda s: s.machine.freeze(), lambda s: s.machine.thaw()),
    Fault("the guest paused, kernel and all", freeze_with_kernel, thaw_with_kernel),
]

each_fault = pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])


@each_fault
def test_pause_shorter_than_the_timeout_is_no_failover(scene: Scene, fault: Fault, row: Row) -> None:
    staying, ending = Patient(scene.guest, "staying"), Patient(scene.guest, "ending")
    other, _ = scene.watch(ending, SHORTER_TIMEOUT)
    manager, pid = scene.watch(staying, SHORTER_TIMEOUT)
    scene.wait_before_poll(manager, SHORTER_TIMEOUT)
    fault.begin(scene)
    began = time.monotonic()
    ending.finish()
    time.sleep(SHORTER)
    fault.end(scene)
    pause = time.monotonic() - began
    assert other.wait() == 7
    scene.answers.wait_next(manager.process.pid)
    assert_untouched(manager, staying, pid)
    what = "no failover" + (", loss and return in the log" if "lost contact" in manager.log else ", nobody noticed")
    staying.finish()
    assert manager.wait() == 7
    for log in (manager.log, other.log):
        assert log.count("lost contact") == log.count("is back") <= 1
    row(fault.name, SHORTER_TIMEOUT, pause, what, None)


@each_fault
def test_pause_longer_than_the_timeout_ends_the_manager_in_time(scene: Scene, fault: Fault, row: Row) -> None:
    staying, ending = Patient(scene.guest, "staying"), Patient(scene.guest, "ending")
    other, _ = scene.watch(ending, LONGER_TIMEOUT)
    manager, pid = scene.watch(staying, LONGER_TIMEOUT)
    scene.answers.wait_next(manager.process.pid)
    fault.begin(scene)
    seconds = scene.give_up_seconds(manager, time.monotonic())
    assert other.wait() == 1
    ending.finish()
    fault.end(scene)
    row(fault.name, LONGER_TIMEOUT, None, "given up, the application goes on", seconds)
    assert_in_time(seconds, LONGER_TIMEOUT)
    wait_for_match(lambda: scene.guest.server_log, "exited with code 7")
    following, same = scene.watch(staying, LONGER_TIMEOUT)
    assert same == pid
    assert "attached to" in following.log
    assert_untouched(following, staying, pid)
    again, _ = scene.watch(ending, LONGER_TIMEOUT)
    assert ENDED_EARLIER in again.log
    staying.finish()
    assert (following.wait(), again.wait()) == (7, 7)


def void(_: object) -> None:
    """Let a function with a result stand where none is wanted."""
