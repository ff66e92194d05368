"""A real network between manager and server: what breaks, and for how long, and who notices.

Host and guest are namespaces around a switch (`network`); server, manager and application are the real ones. Two rules
are shown, each by logs, processes, and an observer on the host's interface: a pause shorter than the timeout is never a
failover, and a dead peer is given up within the timeout plus one second of its last answer.

The silence that counts began with the last answer, which may be a poll interval older than the pause. So a pause is
begun at the worst moment, just before a poll, and `SHORTER` leaves room for that interval.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import network_figures
import pytest
from answers import Answers
from network import Machine, Network, unavailable
from pair import PATIENCE_SECONDS, Guest, Manager, Place, is_alive, open_guest, wait_for_match
from patient import Patient

pytestmark = pytest.mark.network

HOST, GUEST = "10.77.0.1", "10.77.0.2"

SHORTER_TIMEOUT, SHORTER = 6.0, 3.0
LONGER_TIMEOUT = 4.0

WITHIN = 1.0
"""The promise: after the timeout at most this much later."""

LOAD_SECONDS = 2.0
"""What a busy machine may add before a test fails. The figures are printed as they were."""


ENDED_EARLIER = "an earlier run of the application ended without a manager"


@dataclass
class Scene:
    """A host and a guest on one switch, with their programs."""

    network: Network
    host: Machine
    machine: Machine
    """The guest as a machine; `guest` is what runs there."""
    port: str
    guest: Guest
    answers: Answers

    def watch(self, app: Patient, timeout: float) -> tuple[Manager, int]:
        manager = self.guest.manager("-cmappserver_timeout", f"{timeout:g}", *app.service)
        return manager, manager.wait_started()

    def wait_before_poll(self, manager: Manager, timeout: float) -> None:
        """Wait for the worst moment: the last answer is as old as it gets."""
        moment = self.answers.wait_next(manager.process.pid)
        time.sleep(max(0.0, moment + 0.9 * timeout / 3 - time.monotonic()))

    def give_up_seconds(self, manager: Manager, broken_at: float) -> float:
        """Wait until a manager gives up; give the seconds since the last answer it can have had."""
        ended_at = end_of(manager)
        assert manager.wait() == 1
        assert "giving up" in manager.log
        return ended_at - self.answers.last(manager.process.pid, before=broken_at)


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

Row = Callable[[str, float, float | None, str, float | None], None]


@pytest.fixture
def row(record_property: Callable[[str, object], None]) -> Row:
    """Keeps one line of the table: case, timeout, pause, what happened, seconds from the last answer to the end."""

    def keep(case: str, timeout: float, pause: float | None, what: str, seconds: float | None) -> None:
        record_property(*network_figures.line(case, timeout, pause, what, seconds))

    return keep


@pytest.fixture
def scene(tmp_path: Path, keys: Path) -> Iterator[Scene]:
    reason = unavailable()
    if reason is not None:
        pytest.skip(f"no network can be made: {reason}")
    with Network() as network:
        host, machine = network.machine("host"), network.machine("guest")
        network.plug(host, f"{HOST}/24")
        port = network.plug(machine, f"{GUEST}/24")
        with open_scene(tmp_path, keys, network, host, machine, port) as scene:
            yield scene


@contextlib.contextmanager
def open_scene(
    directory: Path, keys: Path, network: Network, host: Machine, machine: Machine, port: str
) -> Iterator[Scene]:
    place = Place(GUEST, in_guest=machine.words, on_host=host.words)
    with open_guest(directory / "guest", keys, place) as guest:
        guest.start_server()
        with contextlib.closing(Answers(host, guest.port)) as answers:
            yield Scene(network, host, machine, port, guest, answers)


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


def assert_untouched(manager: Manager, app: Patient, pid: int) -> None:
    assert manager.process.poll() is None
    assert is_alive(pid)
    assert app.starts() == 1


def assert_in_time(seconds: float, timeout: float) -> None:
    assert timeout <= seconds <= timeout + WITHIN + LOAD_SECONDS


def end_of(manager: Manager) -> float:
    """Wait for the end of a manager; give its monotonic time."""
    fd = os.pidfd_open(manager.process.pid)
    try:
        ready, _, _ = select.select([fd], [], [], PATIENCE_SECONDS)
        assert ready, manager.log
        return time.monotonic()
    finally:
        os.close(fd)


def void(_: object) -> None:
    """Let a function with a result stand where none is wanted."""
