"""TERM to the server at known moments, and once more: the exit status, who is left behind, and what the next
server finds. True processes; each moment is a fact in a log, or somebody held by STOP.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("speaks of POSIX signals", allow_module_level=True)

import held_server
import pair
from leases import held_stores
from pair import Guest, is_alive, wait_ended, wait_for_match, wait_until
from patient import Stubborn, unlocking_children

from appserver.outcome import Account, Signaled

pytestmark = pytest.mark.long

DRAIN_SECONDS = 1000.0
"""For the goodbyes, where a second TERM is to cut them short: a server that waits for them does not end in time."""


def term_server(guest: Guest, times: int, number: int = signal.SIGTERM) -> None:
    """Signal the server so many times, each when the one before has been heard; it must end with 0."""
    assert guest.server is not None
    before = len(guest.server_log)
    guest.server.send_signal(number)
    if times > 1:
        wait_for_match(lambda: guest.server_log[before:], f"{signal.Signals(number).name}: letting the managers go")
        guest.server.send_signal(number)
    assert guest.server.wait(30) == 0
    assert "Traceback" not in guest.server_log


def start_held_server(guest: Guest, monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(guest, "server_program", [sys.executable, str(Path(held_server.__file__))])
        guest.environment = {**os.environ, variable: value}
        guest.start_server()
    guest.environment = None


@pytest.mark.parametrize("times", [1, 2])
def test_server_that_is_ended_during_a_start_leaves_it_to_the_next_one(guest: Guest, times: int) -> None:
    marker = guest.directory / "marker"
    launcher = guest.launcher_pid()
    os.kill(launcher, signal.SIGSTOP)
    manager = guest.manager("-service", "/bin/sh", "-c", f"echo started >> {marker}; exit 3")
    wait_until(lambda: any(record.read_state() for record in guest.records.all()), "the record of the start")
    term_server(guest, times)
    assert not is_alive(launcher)
    guest.start_server()
    assert manager.wait() == 3
    assert manager.log.rstrip().endswith("PROGRAM EXIT CODE 3")
    assert marker.read_text() == "started\n"


@pytest.mark.parametrize(("number", "times"), [(signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 1)])
def test_server_that_is_ended_while_a_program_is_looked_for_starts_nothing(
    idle: Guest, monkeypatch: pytest.MonkeyPatch, number: int, times: int
) -> None:
    """The look hangs in a thread; the manager asks the next server again, which starts it, once."""
    marker, path = idle.directory / "marker", idle.directory / "look"
    start_held_server(idle, monkeypatch, held_server.LOOK_UP, str(path))
    manager = idle.manager("-service", "/bin/sh", "-c", f"echo started >> {marker}; exit 3")
    wait_until(Path(f"{path}.held").exists, "the look for the program")
    term_server(idle, times, number)
    path.touch()
    assert not idle.records.all()
    idle.start_server()
    assert manager.wait() == 3
    assert marker.read_text() == "started\n"


@pytest.mark.parametrize("times", [1, 2])
def test_server_that_is_ended_during_a_stop_has_it_completed(guest: Guest, times: int) -> None:
    app = Stubborn(guest)
    manager = guest.manager("--on-halt", "stop", "--stop-timeout", "4", *app.service)
    pid = manager.wait_started()
    app.wait_ready()
    manager.signal(signal.SIGTERM)
    wait_for_match(lambda: guest.server_log, "stopping ")
    wait_until(lambda: guest.record_of(pid).read_state().stop is not None, "the stop on record")
    term_server(guest, times)
    record = guest.record_of(pid)
    wait_until(lambda: record.read_state().gone, "the end of the stop")  # by its waiter, while there is no server
    outcome = record.read_state().outcome
    assert outcome is not None
    assert replace(outcome, account=Account()) == Signaled(signal.SIGKILL)
    guest.start_server()
    # Without a server it tries for the stop timeout only, and a busy machine may not have started one by then.
    status = manager.wait()
    assert status == 128 + signal.SIGKILL if "stopped by" in manager.log else status == 1


@pytest.mark.parametrize("times", [1, 2])
def test_server_that_is_ended_during_a_handshake_does_not_wait_for_it(guest: Guest, times: int) -> None:
    with socket.create_connection(("127.0.0.1", guest.port)) as stranger:
        stranger.settimeout(30)
        term_server(guest, times)
        assert stranger.recv(1) == b""


def test_second_term_cuts_the_goodbyes_to_a_frozen_manager_short(idle: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    start_held_server(idle, monkeypatch, held_server.DRAIN_SECONDS, str(DRAIN_SECONDS))
    manager = idle.manager("-service", "/bin/sleep", "1000")
    pid = manager.wait_started()
    manager.signal(signal.SIGSTOP)
    term_server(idle, 2)
    assert is_alive(pid)
    manager.signal(signal.SIGCONT)
    idle.start_server()
    manager.wait_for("is back after")
    manager.signal(signal.SIGTERM)
    assert manager.wait() == 128 + signal.SIGTERM
    assert is_alive(pid)


@pytest.mark.parametrize(("number", "times"), [(signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 1)])
@pytest.mark.parametrize("child", [False, True], ids=["itself", "its child"])
def test_server_that_is_ended_while_it_reads_its_keys_again_leaves_nobody(
    guest: Guest, number: int, times: int, child: bool
) -> None:
    assert guest.server is not None
    with held_stores(guest.directory / "server.private", guest.directory / "client.public", child=child) as standing:
        guest.server.send_signal(signal.SIGHUP)
        standing()
        guest.server.send_signal(signal.SIGHUP)  # one more waits for the first
        before = unlocking_children(guest.server.pid)
        assert len(before) == child
        term_server(guest, times, number)
        for pid in before:
            wait_ended(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_server_that_is_ended_while_a_former_launcher_does_not_leave_ends_at_once(idle: Guest, number: int) -> None:
    """Somebody holds that one's lock, and it is not known who; a HUP asks for nothing that is not done anyway."""
    idle.records.prepare()
    path = idle.state_dir / "launcher.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pair, "PATIENCE_SECONDS", 0)  # it does not listen
            with contextlib.suppress(AssertionError):
                idle.start_server()
        wait_for_match(lambda: idle.server_log, "launcher of a former server does not leave")
        assert idle.server is not None
        idle.server.send_signal(signal.SIGHUP)
        idle.server.send_signal(number)
        assert idle.server.wait(30) == 0
    assert "Traceback" not in idle.server_log
