"""A host and a guest on one switch with their real programs, for the tests of the network between them."""

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
from pair import PATIENCE_SECONDS, Guest, Manager, Place, is_alive, open_guest
from patient import Patient

HOST, GUEST = "10.77.0.1", "10.77.0.2"

WITHIN = 1.0
"""The promise: after the timeout at most this much later."""

LOAD_SECONDS = 2.0
"""What a busy machine may add before a test fails. The figures are printed as they were."""

Row = Callable[[str, float, float | None, str, float | None], None]


@dataclass
class Scene:
    network: Network
    host: Machine
    machine: Machine
    """The guest as a machine; `guest` is what runs there."""
    port: str
    guest: Guest
    answers: Answers

    def watch(self, app: Patient, timeout: float, *words: str) -> tuple[Manager, int]:
        """Start a manager; give it, and the pid of its application when that runs."""
        manager = self.guest.manager("-cmappserver_timeout", f"{timeout:g}", *words, *app.service)
        pid = manager.wait_started()
        self.answers.follow(manager.process.pid)
        return manager, pid

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


@pytest.fixture
def row(record_property: Callable[[str, object], None]) -> Row:
    """Keeps one line of the table: case, timeout, pause, what happened, seconds from the last answer to the end."""

    def keep(case: str, timeout: float, pause: float | None, what: str, seconds: float | None) -> None:
        record_property(*network_figures.line(case, timeout, pause, what, seconds))

    return keep


@pytest.fixture
def network() -> Iterator[Network]:
    reason = unavailable()
    if reason is not None:
        pytest.skip(f"no network can be made: {reason}")
    with Network() as network:
        yield network


@pytest.fixture
def scene(network: Network, tmp_path: Path, keys: Path) -> Iterator[Scene]:
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
