"""TERM, INT and HUP to the manager at known moments, and once more: the exit status, the log's last line, and who is
left behind. True processes; each moment is a fact in a log, or somebody held.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress

import pytest

if sys.platform == "win32":
    pytest.skip("speaks of POSIX signals", allow_module_level=True)

from door import HOST, trust
from leases import held_stores
from pair import Guest, Manager, is_alive, wait_ended, wait_for_match, wait_until
from patient import Stubborn, unlocking_children

from appserver.records import RunRecord

pytestmark = pytest.mark.long

SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
signals = pytest.mark.parametrize("number", SIGNALS, ids=[number.name for number in SIGNALS])
times = pytest.mark.parametrize("times", [1, 2])
standing = pytest.mark.parametrize("child", [False, True], ids=["itself", "its child"])
TRIES = 5


def assert_halted(manager: Manager, number: int) -> None:
    """It has ended with the status of the signal, and has said so; HUP is taken as TERM."""
    status = 128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
    assert manager.wait() == status, manager.log
    assert manager.log.rstrip().rpartition("\n")[2].endswith(f"PROGRAM EXIT CODE {status}")
    assert "Traceback" not in manager.log


@signals
@times
def test_manager_that_is_ended_before_it_has_met_the_server_ends_at_once(guest: Guest, number: int, times: int) -> None:
    guest.stop_server()
    manager = guest.manager("--on-halt", "stop", "-service", "/bin/sleep", "1000")
    manager.wait_for("Could not connect to the node g1")
    for _ in range(times):
        manager.signal(number)
    assert_halted(manager, number)
    assert "nothing was started" in manager.log


@signals
@times
@standing
def test_manager_that_is_ended_while_its_keys_are_opened_leaves_nobody(
    guest: Guest, number: int, times: int, child: bool
) -> None:
    with held_stores(guest.directory / "client.private", guest.directory / "server.public", child=child) as wait:
        manager = guest.manager("-service", "/bin/sleep", "1000")
        wait()
        before = unlocking_children(manager.process.pid)
        assert len(before) == child
        for _ in range(times):
            os.kill(manager.process.pid, number)  # not to its group: the child must end without
        assert_halted(manager, number)
        for pid in before:
            wait_ended(pid)


@signals
@times
@standing
def test_manager_that_is_ended_while_it_reads_its_trust_store_again_leaves_nobody(
    guest: Guest, number: int, times: int, child: bool
) -> None:
    """Somebody with another key answers, which has it look whether that one is trusted by now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        guest.configure_host(port=server.getsockname()[1])
        manager = guest.manager("-service", "/bin/sleep", "1000")
        connection, _ = server.accept()
        paths = guest.directory / "client.private", guest.directory / "server.public"
        with connection, held_stores(*paths, child=child) as wait:
            connection.settimeout(30)
            # It does not like the key.
            with suppress(OSError), trust(HOST).context.wrap_socket(connection, server_side=True) as secured:
                secured.recv(1)
            wait()
            before = unlocking_children(manager.process.pid)
            assert len(before) == child
            for _ in range(times):
                os.kill(manager.process.pid, number)
            assert_halted(manager, number)
            for pid in before:
                wait_ended(pid)


@signals
@times
def test_manager_that_is_ended_during_its_request_detaches(guest: Guest, number: int, times: int) -> None:
    launcher = guest.launcher_pid()
    os.kill(launcher, signal.SIGSTOP)
    manager = guest.manager("-service", "/bin/sleep", "1000")
    wait_until(lambda: any(record.read_state() for record in guest.records.all()), "the record of the start")
    for _ in range(times):
        manager.signal(number)
    assert_halted(manager, number)
    os.kill(launcher, signal.SIGCONT)
    following = guest.manager("--on-halt", "stop", "-service", "/bin/sleep", "1000")
    pid = following.wait_started()
    following.signal(signal.SIGTERM)
    assert following.wait() == 128 + signal.SIGTERM
    wait_ended(pid)


@signals
def test_second_signal_while_the_application_is_stopped_detaches(guest: Guest, number: int) -> None:
    app = Stubborn(guest)
    manager = guest.manager("--on-halt", "stop", "--stop-timeout", "8", *app.service)
    pid = manager.wait_started()
    app.wait_ready()
    manager.signal(number)
    wait_for_match(lambda: guest.server_log, "stopping ")
    wait_until(lambda: guest.record_of(pid).read_state().stop is not None, "the stop on record")
    manager.signal(number)
    assert_halted(manager, number)
    assert is_alive(pid)
    wait_ended(pid)  # a stop that was accepted is completed


@signals
def test_manager_whose_log_is_blocked_ends_with_the_outcome_whatever_signals_come(guest: Guest, number: int) -> None:
    """They come while it writes the end of the application's output: it has acknowledged the outcome before."""
    assert any(end_blocked_manager(guest, number, attempt) for attempt in range(TRIES)), "each had ended too soon"


def end_blocked_manager(guest: Guest, number: int, attempt: int) -> bool:
    """Signal a manager that has its outcome and cannot write its log; tell whether it lived when a signal came."""
    go = guest.directory / f"go{attempt}"
    read, write = os.pipe()
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 4096)
    os.set_blocking(write, True)
    words = [sys.executable, "-m", "appmgr", "-node", "g1", "--config", str(guest.host_config)]
    script = f"while ! test -e {go}; do sleep 0.02; done; seq 100; exit 5"
    with subprocess.Popen([*words, "-service", "/bin/sh", "-c", script], env={}, cwd="/", stderr=write) as manager:
        wait_until(lambda: len(running(guest)) == 1, "the start")
        (record,) = running(guest)
        go.touch()
        wait_until(record.is_collected, "the acknowledgement of the outcome")
        heard = 0
        while manager.poll() is None:
            manager.send_signal(number)
            heard += 1
        assert manager.wait(30) == 5
    os.close(read)
    os.close(write)
    return heard > 0


def running(guest: Guest) -> list[RunRecord]:
    return [record for record in guest.records.all() if record.read_state().phase == "running"]
