"""TERM at known moments, and once more: the exit status, the log's last line, who is left behind, and what the next
server finds. True processes; each moment is a fact in a log, or somebody held by STOP.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("speaks of POSIX signals", allow_module_level=True)

from pair import Guest, is_alive, python, wait_ended, wait_for_match, wait_until

pytestmark = pytest.mark.long

STUBBORN = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
LETTING_GO = "SIGTERM: letting the managers go"


def term_server(guest: Guest, times: int) -> None:
    """TERM the server so many times, each when the one before has been heard; it must end with 0."""
    assert guest.server is not None
    before = len(guest.server_log)
    guest.server.terminate()
    if times > 1:
        wait_for_match(lambda: guest.server_log[before:], LETTING_GO)
        guest.server.terminate()
    assert guest.server.wait(30) == 0
    assert "Traceback" not in guest.server_log


def last_line(log: str) -> str:
    return log.rstrip().rpartition("\n")[2]


@pytest.mark.parametrize("times", [1, 2])
def test_server_that_is_ended_during_a_start_leaves_it_to_the_next_one(guest: Guest, times: int) -> None:
    marker = guest.directory / "marker"
    launcher = guest.launcher_pid()
    os.kill(launcher, signal.SIGSTOP)
    manager = guest.manager("-service", "/bin/sh", "-c", f"echo started >> {marker}; exit 3")
    wait_until(lambda: any(record.read_state() for record in guest.records.all()), "the record of the start")
    term_server(guest, times)
    guest.start_server()
    assert manager.wait() == 3
    assert last_line(manager.log).endswith("PROGRAM EXIT CODE 3")
    assert marker.read_text() == "started\n"
    wait_ended(launcher)


@pytest.mark.parametrize("times", [1, 2])
def test_server_that_is_ended_during_a_stop_has_it_completed(guest: Guest, times: int) -> None:
    manager = guest.manager("--on-halt", "stop", "--stop-timeout", "4", "-service", *python(STUBBORN))
    pid = manager.wait_started()
    manager.signal(signal.SIGTERM)
    wait_for_match(lambda: guest.server_log, "stopping ")
    wait_until(lambda: guest.record_of(pid).read_state().stop is not None, "the stop on record")
    term_server(guest, times)
    wait_ended(pid)  # by its waiter, while there is no server
    guest.start_server()
    assert manager.wait() in {128 + signal.SIGKILL, 128 + signal.SIGTERM}
    assert "stopped by" in manager.log


@pytest.mark.parametrize("times", [1, 2])
def test_server_that_is_ended_during_a_handshake_does_not_wait_for_it(guest: Guest, times: int) -> None:
    with socket.create_connection(("127.0.0.1", guest.port)) as stranger:
        stranger.settimeout(30)
        term_server(guest, times)
        assert stranger.recv(1) == b""


def test_second_term_cuts_the_goodbyes_to_a_frozen_manager_short(guest: Guest) -> None:
    manager = guest.manager("-service", "/bin/sleep", "1000")
    pid = manager.wait_started()
    manager.signal(signal.SIGSTOP)
    term_server(guest, 2)
    assert is_alive(pid)
    manager.signal(signal.SIGCONT)
    guest.start_server()
    manager.wait_for("is back after")
    manager.signal(signal.SIGTERM)
    assert manager.wait() == 128 + signal.SIGTERM
    assert is_alive(pid)


@pytest.mark.parametrize("times", [1, 2])
def test_manager_that_is_ended_during_its_request_detaches(guest: Guest, times: int) -> None:
    launcher = guest.launcher_pid()
    os.kill(launcher, signal.SIGSTOP)
    manager = guest.manager("-service", "/bin/sleep", "1000")
    wait_until(lambda: any(record.read_state() for record in guest.records.all()), "the record of the start")
    for _ in range(times):
        manager.signal(signal.SIGTERM)
    assert manager.wait() == 128 + signal.SIGTERM
    assert last_line(manager.log).endswith("PROGRAM EXIT CODE 143")
    os.kill(launcher, signal.SIGCONT)
    following = guest.manager("--on-halt", "stop", "-service", "/bin/sleep", "1000")
    pid = following.wait_started()
    following.signal(signal.SIGTERM)
    assert following.wait() == 128 + signal.SIGTERM
    wait_ended(pid)


def test_manager_whose_log_is_blocked_ends_with_the_outcome_whatever_signals_come(guest: Guest) -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(write, True)
    words = [sys.executable, "-m", "appmgr", "-node", "g1", "--config", str(guest.host_config)]
    script = f"while ! test -e {guest.directory}/go; do sleep 0.02; done; exit 5"
    with subprocess.Popen([*words, "-service", "/bin/sh", "-c", script], env={}, cwd="/", stderr=write) as manager:
        wait_for_match(lambda: guest.server_log, "started ")
        Path(guest.directory / "go").touch()
        wait_for_match(lambda: guest.server_log, "ended .*exited with code 5")
        assert manager.wait(30) == 5
    os.close(read)
    os.close(write)
