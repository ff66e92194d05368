"""A real network between manager and server: who answers there, and whether anybody does.

Addresses move, other servers answer, names have dead addresses, either end stands still, and the cable is slow.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from network import Machine, Network
from pair import Guest, Place, is_alive, make_keys, open_guest, python, wait_ended
from patient import Patient
from scene import GUEST, HOST, LOAD_SECONDS, WITHIN, Row, Scene, assert_in_time, assert_untouched, end_of, open_scene
from wire import TUN_DEVICE

pytestmark = pytest.mark.network

TIMEOUT = 9.0
SHORT_TIMEOUT = 4.0
LONG_TIMEOUT, LONG_PAUSE = 12.0, 6.0
PATIENT_TIMEOUT = 20.0
DEAD = "10.77.0.3"


def test_guest_that_migrates_is_not_missed(scene: Scene, row: Row) -> None:
    app = Patient(scene.guest)
    manager, pid = scene.watch(app, TIMEOUT)
    scene.wait_before_poll(manager, TIMEOUT)
    began = time.monotonic()
    scene.machine.freeze()
    hardware = scene.machine.hardware()
    scene.network.unplug(scene.machine)
    time.sleep(1.5)
    scene.network.plug(scene.machine, f"{GUEST}/24", hardware=hardware)
    scene.machine.thaw()
    pause = time.monotonic() - began
    scene.answers.wait_next(manager.process.pid)
    assert_untouched(manager, app, pid)
    app.finish()
    assert manager.wait() == 7
    assert manager.log.count("lost contact") == manager.log.count("is back") <= 1
    row("the guest migrates behind another port", TIMEOUT, pause, "no failover", None)


def test_another_server_at_the_address_is_no_contact_and_no_outcome(scene: Scene, tmp_path: Path, row: Row) -> None:
    app = Patient(scene.guest)
    manager, pid = scene.watch(app, TIMEOUT)
    stranger = scene.network.machine("stranger")
    with other_server(scene, stranger, tmp_path) as other:
        scene.answers.wait_next(manager.process.pid)
        began = time.monotonic()
        scene.network.pull(scene.port)
        scene.network.plug(stranger, f"{GUEST}/24")
        manager.wait_for("lost contact")
        time.sleep(1.5)
        scene.network.unplug(stranger)
        scene.network.put_back(scene.port)
        scene.machine.announce()
        pause = time.monotonic() - began
        scene.answers.wait_next(manager.process.pid)
        assert_untouched(manager, app, pid)
        app.finish()
        assert manager.wait() == 7
        assert "refused" in other.server_log
    row("another server with another key answers", TIMEOUT, pause, "no failover, and the outcome is the guest's", None)


def test_another_server_that_stays_at_the_address_is_given_up_in_time(scene: Scene, tmp_path: Path, row: Row) -> None:
    app = Patient(scene.guest)
    manager, pid = scene.watch(app, SHORT_TIMEOUT)
    stranger = scene.network.machine("stranger")
    with other_server(scene, stranger, tmp_path):
        scene.answers.wait_next(manager.process.pid)
        scene.network.pull(scene.port)
        broken_at = time.monotonic()
        scene.network.plug(stranger, f"{GUEST}/24")
        seconds = scene.give_up_seconds(manager, broken_at)
    assert "certificate" in manager.log
    assert is_alive(pid)
    row("another server with another key answers", SHORT_TIMEOUT, None, "given up, the reason names the key", seconds)
    assert_in_time(seconds, SHORT_TIMEOUT)


def test_first_of_two_addresses_is_dead(scene: Scene, row: Row) -> None:
    dead = scene.network.machine("dead")
    scene.network.plug(dead, f"{DEAD}/24")
    dead.be_deaf()
    scene.host.write_etc("hosts", [f"{DEAD} twofold", f"{GUEST} twofold"])
    scene.guest.configure_host(address="twofold")
    app = Patient(scene.guest)
    began = time.monotonic()
    manager, pid = scene.watch(app, LONG_TIMEOUT)
    started = time.monotonic() - began
    scene.wait_before_poll(manager, LONG_TIMEOUT)
    scene.network.pull(scene.port)
    time.sleep(LONG_PAUSE)
    scene.network.put_back(scene.port)
    scene.answers.wait_next(manager.process.pid)
    assert_untouched(manager, app, pid)
    app.finish()
    assert manager.wait() == 7
    what = f"started after {started:.1f} s; no failover"
    row("the first of two addresses is dead, and a cable is pulled", LONG_TIMEOUT, LONG_PAUSE, what, None)


def test_first_of_two_addresses_is_another_server(scene: Scene, tmp_path: Path, row: Row) -> None:
    stranger = scene.network.machine("stranger")
    scene.network.plug(stranger, f"{DEAD}/24")
    place = Place(DEAD, in_guest=stranger.words)
    with open_guest(tmp_path / "other", make_keys(tmp_path / "other-keys"), place) as other:
        other.port = scene.guest.port
        other.start_server()
        scene.host.write_etc("hosts", [f"{DEAD} twofold", f"{GUEST} twofold"])
        scene.guest.configure_host(address="twofold")
        app = Patient(scene.guest)
        manager, _ = scene.watch(app, TIMEOUT)
        app.finish()
        assert manager.wait() == 7
    row("the first of two addresses is another server's", TIMEOUT, 0.0, "started, and its outcome delivered", None)


def test_name_server_that_is_away_does_not_keep_contact_away(scene: Scene, row: Row) -> None:
    scene.host.write_etc("hosts", [f"{GUEST} guest"])
    scene.host.write_etc("resolv.conf", [f"nameserver {DEAD}"])
    scene.guest.configure_host(address="guest")
    app = Patient(scene.guest)
    manager, pid = scene.watch(app, PATIENT_TIMEOUT)
    scene.host.write_etc("hosts", [])
    began = time.monotonic()
    scene.guest.kill_server()
    scene.guest.start_server()
    pause = time.monotonic() - began
    manager.wait_for("is back")
    assert_untouched(manager, app, pid)
    app.finish()
    assert manager.wait() == 7
    row("the server restarts, its name cannot be looked up any more", PATIENT_TIMEOUT, pause, "no failover", None)


def test_server_that_is_stopped_accepts_and_never_answers(scene: Scene, row: Row) -> None:
    app = Patient(scene.guest)
    manager, pid = scene.watch(app, SHORT_TIMEOUT)
    assert scene.guest.server is not None
    os.kill(scene.guest.server.pid, signal.SIGSTOP)
    broken_at = time.monotonic()
    seconds = scene.give_up_seconds(manager, broken_at)
    assert is_alive(pid)
    row("the server stopped right after the start", SHORT_TIMEOUT, None, "given up, the application goes on", seconds)
    began = time.monotonic()
    late = scene.guest.manager("-cmappserver_timeout", f"{SHORT_TIMEOUT:g}", *app.service)
    waited = end_of(late) - began
    assert late.wait() == 1
    assert "Could not connect to the node" in late.log
    row(
        "the same, for a manager that starts now",
        SHORT_TIMEOUT,
        None,
        f"given up {waited:.2f} s after the start of the process",
        None,
    )
    os.kill(scene.guest.server.pid, signal.SIGCONT)
    assert_in_time(seconds, SHORT_TIMEOUT)
    assert SHORT_TIMEOUT <= waited <= SHORT_TIMEOUT + WITHIN + LOAD_SECONDS
    following, same = scene.watch(app, SHORT_TIMEOUT)
    assert same == pid
    app.finish()
    assert following.wait() == 7


@pytest.mark.parametrize("timeout", [2.0, 3.0, 6.0])
def test_manager_that_stood_still_itself_asks_once_more(scene: Scene, timeout: float, row: Row) -> None:
    staying, ending = Patient(scene.guest, "staying"), Patient(scene.guest, "ending")
    other, _ = scene.watch(ending, timeout)
    manager, pid = scene.watch(staying, timeout)
    scene.wait_before_poll(manager, timeout)
    scene.host.freeze()
    ending.finish()
    pause = timeout + 1
    time.sleep(pause)
    scene.host.thaw()
    assert other.wait() == 7
    scene.answers.wait_next(manager.process.pid)
    assert_untouched(manager, staying, pid)
    staying.finish()
    assert manager.wait() == 7
    row("the manager stopped itself, longer than the timeout", timeout, pause, "no failover", None)


def test_slow_and_lossy_cable_only_makes_things_slow(network: Network, tmp_path: Path, keys: Path, row: Row) -> None:
    if not os.access(TUN_DEVICE, os.R_OK):
        pytest.skip(f"neither tc netem nor {TUN_DEVICE} is to be had")
    host, machine = network.machine("host"), network.machine("guest")
    network.plug(host, f"{HOST}/24")
    means = network.plug_slow(machine, f"{GUEST}/24", delay_seconds=0.3, loss=0.05)
    with open_scene(tmp_path, keys, network, host, machine, "") as scene:
        ending, stopped = Patient(scene.guest, "ending"), Patient(scene.guest, "stopped")
        began = time.monotonic()
        stopping, pid = scene.watch(stopped, PATIENT_TIMEOUT, "--on-halt", "stop", "--poll-interval", "1")
        started = time.monotonic() - began
        manager, _ = scene.watch(ending, PATIENT_TIMEOUT, "--poll-interval", "1")
        for _ in range(8):
            scene.answers.wait_next(manager.process.pid)
        ending.finish()
        assert manager.wait() == 7
        stopping.signal(signal.SIGTERM)
        assert stopping.wait() == 128 + signal.SIGTERM
        wait_ended(pid)
        assert (ending.starts(), stopped.starts()) == (1, 1)
    what = f"started after {started:.1f} s; start, polls, end and stop are right"
    row(f"300 ms and 5 % loss each way ({means})", PATIENT_TIMEOUT, 0.0, what, None)


def test_path_that_loses_long_packets_delivers_the_outcome_and_its_tail(
    network: Network, tmp_path: Path, keys: Path, row: Row
) -> None:
    if not os.access(TUN_DEVICE, os.R_OK):
        pytest.skip(f"{TUN_DEVICE} is not to be had")
    host, machine = network.machine("host"), network.machine("guest")
    network.plug(host, f"{HOST}/24")
    wire = network.plug_narrow(machine, f"{GUEST}/24")
    wire.max_bytes = 1300  # a packet of 1,280 bytes in its frame
    with open_scene(tmp_path, keys, network, host, machine, "") as scene:
        source = "for _ in range(20): print('x' * 300)\nraise SystemExit(5)"
        status, log = scene.guest.run("-cmappserver_timeout", f"{TIMEOUT:g}", "-service", *python(source))
    assert (status, log.count("output: xxx")) == (5, 20)
    row("packets over 1,280 bytes are lost without a word", TIMEOUT, 0.0, "outcome and tail delivered", None)


@contextlib.contextmanager
def other_server(scene: Scene, machine: Machine, directory: Path) -> Iterator[Guest]:
    """Have another guest, with keys of its own, serve the same address and port; it waits only for its cable."""
    machine.ip("addr", "add", f"{GUEST}/32", "dev", "lo")
    place = Place(GUEST, in_guest=machine.words)
    with open_guest(directory / "other", make_keys(directory / "other-keys"), place) as other:
        other.port = scene.guest.port
        other.start_server()
        yield other
