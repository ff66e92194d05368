"""The real server on disks, clocks and boots that misbehave: a longer suite, `make test-disk`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("mounts, namespaces and strace are Linux's", allow_module_level=True)

from fakes import small_disk
from pair import PATIENCE_SECONDS, SERVER, Guest, is_alive, open_guest, wait_ended, wait_for_match, wait_until
from patient import Patient

pytestmark = pytest.mark.disk

YEAR_SECONDS = 365 * 86400
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and namespaces need root")


@pytest.fixture
def idle(tmp_path: Path, keys: Path) -> Iterator[Guest]:
    """A guest whose server has not been started."""
    with open_guest(tmp_path / "guest", keys) as guest:
        yield guest


def test_state_directory_removed_while_an_application_runs_costs_no_outcome(guest: Guest) -> None:
    app = Patient(guest)
    manager = guest.manager(*app.service)
    manager.wait_started()
    shutil.rmtree(guest.state_dir)
    status, log = guest.run("-service", "/bin/true")
    assert status == 1
    assert "cannot be recorded" in log
    assert "No such file or directory" in log
    app.finish()
    assert manager.wait() == 7
    assert app.starts() == 1
    assert "Traceback" not in guest.server_log


def test_log_directory_removed_while_an_application_runs_refuses_starts_only(guest: Guest) -> None:
    app = Patient(guest)
    manager = guest.manager(*app.service)
    manager.wait_started()
    shutil.rmtree(guest.log_dir)
    status, log = guest.run("-service", "/bin/true")
    assert status == 1
    assert f"its log {guest.log_dir}" in log
    app.finish()
    assert manager.wait() == 7


def test_damaged_request_of_what_runs_is_mended_at_the_restart(guest: Guest) -> None:
    app = Patient(guest)
    manager = guest.manager(*app.service)
    pid = manager.wait_started()
    record = guest.record_of(pid)
    request = record.read_request()
    guest.kill_server()
    Path(record.file("request")).write_bytes(b"torn")
    guest.start_server()
    assert "but its waiter knows it" in guest.server_log
    assert record.read_request() == request
    other = guest.manager(*app.service)
    assert other.wait_started() == pid
    app.finish()
    assert (manager.wait(), other.wait()) == (7, 7)
    assert app.starts() == 1


def test_damaged_request_and_a_killed_waiter_leave_no_second_copy(guest: Guest) -> None:
    app = Patient(guest)
    manager = guest.manager(*app.service)
    pid = manager.wait_started()
    record = guest.record_of(pid)
    waiter = guest.waiter_pid(pid)
    guest.kill_server()
    os.kill(waiter, signal.SIGKILL)
    wait_ended(waiter)
    Path(record.file("request")).write_bytes(b"torn")
    guest.start_server()
    status, log = guest.run(*app.service)
    assert status == 1
    assert f"process {pid}, still runs and may be one of the same service" in log
    assert guest.run("-service", "/bin/sh", "-c", "exit 5")[0] == 5
    app.finish()
    assert manager.wait() in {7, 1}
    assert app.starts() == 1


@AS_ROOT
def test_server_on_a_read_only_disk_says_so_and_finds_all_when_it_is_mended(tmp_path: Path, keys: Path) -> None:
    directory = tmp_path / "guest"
    with small_disk(directory / "state", 1024) as disk, open_guest(directory, keys) as guest:
        guest.start_server()
        assert guest.run("-service", "/bin/sh", "-c", "exit 5")[0] == 5
        launcher = guest.launcher_pid()
        guest.stop_server()
        wait_ended(launcher)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        options = ["--config", str(guest.server_config), "--port", "0"]
        argv = [sys.executable, *SERVER, *options]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS, cwd="/")
        assert done.returncode == 1
        assert "Read-only file system" in done.stderr
        assert "Traceback" not in done.stderr
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        guest.start_server()
        assert guest.run("-service", "/bin/sh", "-c", "exit 6")[0] == 6


CLOCK = """
import time
_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + {0}
time.time_ns = lambda: _time_ns() + {0} * 1_000_000_000
"""
"""Of the server only. libfaketime 0.9.10 breaks `clock_nanosleep` on the monotonic clock, which Python sleeps by."""


def test_clock_set_forward_and_back_by_a_year_confuses_nobody(idle: Guest) -> None:
    app, serials = Patient(idle), []
    shifted = idle.directory / "shifted"
    shifted.mkdir()
    idle.environment = {**os.environ, "PYTHONPATH": f"{shifted}:{Path(__file__).parents[1]}"}
    idle.start_server()
    manager = idle.manager(*app.service)
    manager.wait_started()
    for number, offset_seconds in enumerate((YEAR_SECONDS, -YEAR_SECONDS, 0)):
        idle.stop_server()
        (shifted / "sitecustomize.py").write_text(CLOCK.format(offset_seconds))
        idle.start_server()
        uncollected = idle.manager("-service", "/bin/sh", "-c", f"sleep 0.2; exit $(cat {idle.directory}/code)")
        (idle.directory / "code").write_text(str(20 + number))
        uncollected.wait_started()
        uncollected.kill()
        wait_for_match(lambda: idle.server_log, f"exited with code {20 + number}")
        serials.append(max(record.read_request().serial for record in idle.records.all()))
    assert serials == [2, 3, 4]
    idle.stop_server()
    idle.start_server()
    latest = idle.manager("-service", "/bin/sh", "-c", f"sleep 0.2; exit $(cat {idle.directory}/code)")
    assert latest.wait() == 22
    assert latest.log.count("exited with code 22") == 2, "the latest earlier run is told, not the one of the future"
    app.finish()
    assert manager.wait() == 7
    assert app.starts() == 1


@AS_ROOT
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_after_a_reboot_nothing_of_the_old_boot_is_adopted_or_signalled(idle: Guest) -> None:
    app = Patient(idle)
    idle.start_server()
    manager = idle.manager("--on-halt", "stop", "--stop-timeout", "1", *app.service)
    pid = manager.wait_started()
    waiter = idle.waiter_pid(pid)
    idle.kill_server()
    os.kill(waiter, signal.SIGKILL)
    wait_ended(waiter)
    other_boot = idle.directory / "boot_id"
    other_boot.write_text("01234567-89ab-cdef-0123-456789abcdef\n")
    script = f'mount --bind {other_boot} /proc/sys/kernel/random/boot_id && exec "$@"'
    idle.place = replace(idle.place, in_guest=("unshare", "--mount", "/bin/sh", "-c", script, "sh"))
    idle.start_server()
    assert manager.wait() == 1
    assert "rebooted" in manager.log
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)


PID_REUSE = """
import contextlib, os, pathlib, signal, subprocess, sys, time
from pair import open_guest, wait_ended, wait_until, is_alive
from patient import Patient
with open_guest(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])) as guest:
    guest.start_server()
    app = Patient(guest)
    manager = guest.manager("--on-halt", "stop", "--stop-timeout", "1", *app.service)
    pid = manager.wait_started()
    waiter = guest.waiter_pid(pid)
    launcher = guest.launcher_pid()
    guest.kill_server()
    for victim in (waiter, pid, launcher):
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            pass
    def is_released():
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # we are pid 1 here, and its parent once the launcher is gone
        return not os.path.exists(f"/proc/{pid}")
    wait_until(is_released, "the release of the pid")
    for _ in range(1000):
        pathlib.Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        stranger = subprocess.Popen(["/bin/sleep", "1000"], start_new_session=True)
        if stranger.pid == pid:
            break
        stranger.kill()
        stranger.wait()
    assert stranger.pid == pid, "the pid could not be had again"
    guest.start_server()
    assert manager.wait() == 1, manager.log
    assert "lost" in manager.log, manager.log
    assert stranger.poll() is None, "the stranger was signalled"
    stranger.kill()
    stranger.wait()
print("left alone")
"""


@AS_ROOT
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not installed")
def test_stranger_that_got_the_pid_is_neither_adopted_nor_signalled(tmp_path: Path, keys: Path) -> None:
    argv = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", PID_REUSE]
    root, tests = Path(__file__).parents[1], Path(__file__).parent
    done = subprocess.run(
        [*argv, str(tmp_path / "guest"), str(keys)],
        env={**os.environ, "PYTHONPATH": f"{root}:{tests}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * PATIENCE_SECONDS,
    )
    assert done.stdout == "left alone\n", done.stderr


@AS_ROOT
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("call", ["pwrite64", "fork,vfork,clone,clone3", "bind", "setsid"])
def test_launcher_and_waiters_whose_calls_fail_refuse_the_start_or_make_it(guest: Guest, call: str) -> None:
    """From the launcher on, all its waiters included: no call of a kind succeeds any more."""
    launcher = guest.launcher_pid()
    marker = guest.directory / "ran"
    inject = f"inject={call}:error=EIO"
    argv = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject, "-p", str(launcher)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as tracer:
        wait_until(lambda: traced_by(launcher) == tracer.pid, "strace's attaching")
        status, log = guest.run("--failure-status", "42", "-service", "/bin/sh", "-c", f"echo x >> {marker}; exit 5")
        tracer.terminate()
    assert (status == 5) == marker.exists()
    if status != 5:
        assert status == 42
        assert "cannot be started" in log
    assert guest.run("-service", "/bin/sh", "-c", f"echo x >> {marker}; exit 6")[0] == 6
    assert "Traceback" not in guest.server_log


def traced_by(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("TracerPid:"))
