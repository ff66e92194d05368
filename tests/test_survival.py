"""What survives what (contract, section 2): every row is shown by killing the real thing."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cutter import Cutter
from pair import Guest, is_alive, python, wait_ended, wait_until
from patient import Patient

from appserver.outcome import Lost, Signaled
from appserver.records import StateFile

STUBBORN = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for fd in range(3):
            os.close(fd)
        with open(sys.argv[1], 'w') as file:
            file.write(str(os.getpid()))
        os.rename(sys.argv[1], sys.argv[1] + '.grandchild')
        time.sleep(1000)
    os._exit(0)
os.wait()
time.sleep(1000)
"""


def kernel_tells_strangers() -> bool:
    major, minor = platform.release().split(".")[:2]
    return (int(major), int(minor.split("-")[0])) >= (6, 15)


def test_manager_killed_and_the_next_one_attaches(guest: Guest) -> None:
    app = Patient(guest)
    first = guest.manager(*app.service)
    pid = first.wait_started()
    first.kill()
    second = guest.manager(*app.service)
    assert second.wait_started() == pid
    assert "attached" in second.log
    app.finish()
    assert second.wait() == 7
    assert app.starts() == 1


def test_outcome_that_nobody_collected_is_logged_by_the_next_start(guest: Guest) -> None:
    app = Patient(guest)
    first = guest.manager(*app.service)
    pid = first.wait_started()
    first.kill()
    app.finish()
    wait_until(lambda: "exited with code 7" in guest.server_log)
    second = guest.manager(*app.service)
    assert second.wait() == 7
    assert second.wait_started() != pid
    assert second.log.count("exited with code 7") == 2
    third = guest.manager(*app.service)
    assert third.wait() == 7
    assert third.log.count("exited with code 7") == 1  # the second collected what it reported


def test_server_killed_and_restarted_while_the_application_runs(guest: Guest) -> None:
    app = Patient(guest)
    manager = guest.manager(*app.service)
    pid = manager.wait_started()
    guest.kill_server()
    guest.start_server()
    app.finish()
    assert manager.wait() == 7
    assert app.starts() == 1
    wait_until(lambda: f"pid {pid}" in guest.server_log)


def test_application_ends_while_no_server_runs(guest: Guest) -> None:
    app = Patient(guest)
    manager = guest.manager(*app.service)
    pid = manager.wait_started()
    guest.kill_server()
    app.finish()
    wait_ended(pid)
    guest.start_server()
    assert manager.wait() == 7
    assert app.starts() == 1


def test_manager_and_server_killed_and_the_outcome_reaches_the_next_log(guest: Guest) -> None:
    app = Patient(guest)
    manager = guest.manager(*app.service)
    pid = manager.wait_started()
    manager.kill()
    guest.kill_server()
    app.finish()
    wait_ended(pid)
    guest.start_server()
    again = guest.manager(*app.service)
    assert again.wait() == 7
    assert again.log.count("exited with code 7") == 2


def test_launcher_killed_and_the_server_starts_another(guest: Guest) -> None:
    app, other = Patient(guest), Patient(guest, "other")
    manager = guest.manager(*app.service)
    manager.wait_started()
    os.kill(guest.launcher_pid(), signal.SIGKILL)
    another = guest.manager(*other.service)
    another.wait_started()
    app.finish()
    other.finish()
    assert (manager.wait(), another.wait()) == (7, 7)
    assert (app.starts(), other.starts()) == (1, 1)


def test_server_and_launcher_killed_together(guest: Guest) -> None:
    app = Patient(guest)
    manager = guest.manager(*app.service)
    pid = manager.wait_started()
    assert guest.server is not None
    launcher = guest.launcher_pid()
    os.kill(guest.server.pid, signal.SIGSTOP)
    os.kill(launcher, signal.SIGKILL)
    guest.kill_server()
    app.finish()
    wait_ended(pid)
    guest.start_server()
    assert manager.wait() == 7
    assert app.starts() == 1


def test_launcher_that_does_not_leave_is_killed_by_the_next_server(guest: Guest) -> None:
    launcher = guest.launcher_pid()
    os.kill(launcher, signal.SIGSTOP)
    guest.kill_server()
    guest.start_server()
    wait_ended(launcher)
    assert guest.run("-service", "/bin/sh", "-c", "exit 5")[0] == 5


def test_waiter_killed_and_the_process_stays_watched(guest: Guest) -> None:
    app = Patient(guest)
    manager = guest.manager(*app.service)
    pid = manager.wait_started()
    waiter = guest.waiter_pid(pid)
    os.kill(waiter, signal.SIGKILL)
    wait_ended(waiter)
    other = guest.manager(*app.service)
    assert other.wait_started() == pid
    app.finish()
    assert {manager.wait(), other.wait()} == ({7} if kernel_tells_strangers() else {1})
    assert app.starts() == 1


def test_waiter_and_process_killed_at_one_go(guest: Guest) -> None:
    app = Patient(guest)
    manager = guest.manager(*app.service)
    pid = manager.wait_started()
    waiter = guest.waiter_pid(pid)
    os.kill(waiter, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    assert manager.wait() in {128 + 9, 1}
    assert manager.wait() == 128 + 9 or "lost" in manager.log


def test_waiter_killed_and_the_process_can_be_stopped(guest: Guest) -> None:
    app = Patient(guest)
    manager = guest.manager("--on-halt", "stop", *app.service)
    pid = manager.wait_started()
    waiter = guest.waiter_pid(pid)
    os.kill(waiter, signal.SIGKILL)
    wait_ended(waiter)
    manager.signal(signal.SIGTERM)
    assert manager.wait() == (128 + 15 if kernel_tells_strangers() else 1)
    assert not is_alive(pid)


def test_waiter_and_server_killed_and_the_process_is_adopted(guest: Guest) -> None:
    app = Patient(guest)
    manager = guest.manager(*app.service)
    pid = manager.wait_started()
    guest.kill_server()
    os.kill(guest.waiter_pid(pid), signal.SIGKILL)
    guest.start_server()
    other = guest.manager(*app.service)
    assert other.wait_started() == pid
    app.finish()
    assert manager.wait() in {7, 1}
    assert app.starts() == 1


@pytest.mark.parametrize("flights", [1, 2, 3])
def test_connection_cut_around_the_request_starts_nothing_twice(guest: Guest, flights: int) -> None:
    """Cut when the server has answered `flights` times: before its greeting, before the reply, after the reply."""
    app = Patient(guest)
    with Cutter(guest.port, flights=flights) as cutter:
        guest.configure_host(port=cutter.port)
        manager = guest.manager(*app.service)
        wait_until(lambda: cutter.cuts > 0, "the cut")
        manager.wait_started()
        app.finish()
        assert manager.wait() == 7
        assert app.starts() == 1


def test_connection_cut_and_the_application_ends_meanwhile(guest: Guest) -> None:
    with Cutter(guest.port, flights=2) as cutter:
        guest.configure_host(port=cutter.port)
        marker = guest.directory / "marker"
        manager = guest.manager("-service", "/bin/sh", "-c", f"echo x >> {marker}; exit 9")
        assert manager.wait() == 9
        assert marker.read_text() == "x\n"
        assert cutter.cuts == 1


def test_record_of_another_boot_is_neither_adopted_nor_signalled(guest: Guest) -> None:
    app = Patient(guest)
    manager = guest.manager(*app.service)
    pid = manager.wait_started()
    guest.kill_server()
    waiter = guest.waiter_pid(pid)
    os.kill(waiter, signal.SIGKILL)
    wait_ended(waiter)
    forge_boot(guest, pid)
    guest.start_server()
    assert manager.wait() == 1
    assert "lost" in manager.log
    assert "rebooted" in manager.log
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)


def forge_boot(guest: Guest, pid: int) -> None:
    record = guest.record_of(pid)
    request, state, run_id = record.read_request(), record.read_state(), record.run_id
    guest.records.remove(run_id)
    forged = replace(request, boot="00000000-0000-0000-0000-000000000000")
    guest.records.create(forged, state)


def test_pid_that_is_somebody_elses_now_is_left_alone(guest: Guest) -> None:
    app = Patient(guest)
    manager = guest.manager("--on-halt", "stop", *app.service)
    pid = manager.wait_started()
    guest.kill_server()
    record = guest.record_of(pid)
    waiter = guest.waiter_pid(pid)
    for victim in (waiter, pid):
        os.kill(victim, signal.SIGKILL)
        wait_ended(victim)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], start_new_session=True)
    try:
        file = StateFile(record)
        file.write(replace(file.state, pid=stranger.pid))
        file.close()
        guest.start_server()
        assert manager.wait() == 1
        assert "lost" in manager.log
        assert stranger.poll() is None
        assert isinstance(record.read_state().outcome, Lost)
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("killed", ["nobody", "server", "server and launcher"])
def test_stop_ends_a_grandchild_that_ignores_term(guest: Guest, killed: str) -> None:
    marker = guest.directory / "marker"
    manager = guest.manager("--on-halt", "stop", "--stop-timeout", "1", "-service", *python(STUBBORN), str(marker))
    pid = manager.wait_started()
    grandchild_file = Path(f"{marker}.grandchild")
    wait_until(grandchild_file.exists)
    grandchild = int(grandchild_file.read_text())
    launcher = guest.launcher_pid()
    manager.signal(signal.SIGTERM)
    wait_until(lambda: "stopping" in guest.server_log)
    if killed != "nobody":
        wait_until(lambda: guest.record_of(pid).read_state().stop is not None)
        guest.kill_server()
        if "launcher" in killed:
            wait_ended(launcher)
        wait_ended(grandchild)  # without a server
        guest.start_server()
    status = manager.wait()
    if killed == "nobody":
        assert status == 128 + 15
    else:  # its patience is for a restart that takes seconds, and a busy machine may take longer
        assert status == 128 + 15 or "giving up" in manager.log
        outcome = guest.records.all()[0].read_state().outcome
        assert isinstance(outcome, Signaled)
        assert (outcome.number, outcome.account.survivors) == (15, 0)
    assert not is_alive(pid)
    assert not is_alive(grandchild)


def test_guest_without_state_after_a_reboot_reports_lost(guest: Guest) -> None:
    app = Patient(guest)
    manager = guest.manager(*app.service)
    pid = manager.wait_started()
    app.wait_started()
    guest.kill_server()
    for victim in (guest.waiter_pid(pid), pid):
        os.kill(victim, signal.SIGKILL)
        wait_ended(victim)
    (guest.state_dir).rename(guest.directory / "state-of-the-last-boot")
    guest.start_server()
    assert manager.wait() == 1
    assert "lost" in manager.log
    assert app.starts() == 1


def test_signal_outcomes_are_never_taken_for_lost(guest: Guest) -> None:
    app = Patient(guest)
    manager = guest.manager(*app.service)
    pid = manager.wait_started()
    record = guest.record_of(pid)
    os.kill(pid, signal.SIGSEGV)
    assert manager.wait() == 128 + 11
    outcome = record.read_state().outcome
    assert isinstance(outcome, Signaled)
    assert outcome.number == 11


# Its child ignores TERM and stays in the session; the main process ends at TERM.
LEAVES_A_STUBBORN_CHILD = """
import os, signal, sys, time
if os.fork() == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with open(sys.argv[1] + '.new', 'w') as file:
        file.write(str(os.getpid()))
    os.rename(sys.argv[1] + '.new', sys.argv[1])
    time.sleep(1000)
time.sleep(1000)
"""


def test_waiter_killed_during_a_stop_after_the_main_process_ended(guest: Guest) -> None:
    marker = guest.directory / "child"
    words = ("-service", *python(LEAVES_A_STUBBORN_CHILD), str(marker))
    manager = guest.manager("--on-halt", "stop", "--stop-timeout", "3", *words)
    pid = manager.wait_started()
    wait_until(marker.exists)
    child = int(marker.read_text())
    waiter = guest.waiter_pid(pid)
    manager.signal(signal.SIGTERM)
    wait_ended(pid)
    os.kill(waiter, signal.SIGKILL)
    assert manager.wait() in {128 + 15, 1}
    assert not is_alive(child)


def test_state_damaged_while_the_application_runs_starts_no_second_one(guest: Guest) -> None:
    app = Patient(guest)
    manager = guest.manager(*app.service)
    pid = manager.wait_started()
    app.wait_started()
    record = guest.record_of(pid)
    guest.kill_server()
    Path(record.file("state")).write_bytes(b"torn")
    guest.start_server()
    other = guest.manager(*app.service)
    other.wait_for("attached to")
    app.finish()
    assert (manager.wait(), other.wait()) == (1, 1)
    assert "outcome lost" in other.log
    assert app.starts() == 1
