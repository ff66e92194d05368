"""Managers that start nothing, with the real pair."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from pair import Guest, is_alive, wait_ended, wait_until

from appserver import procfs

SLEEP = ("-service", "/bin/sleep", "1000")


def standing(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines()) if path.exists() else {}


def test_stop_ends_what_nobody_watches_and_starts_nothing(guest: Guest, tmp_path: Path) -> None:
    manager = guest.manager(*SLEEP)
    pid = manager.wait_started()
    manager.kill()
    status, log = guest.run("--action", "stop", "--status-file", str(tmp_path / "status"), *SLEEP)
    assert status == 0
    assert "ended by signal 15 (SIGTERM), stopped by cmappmgr" in log
    assert not is_alive(pid)
    assert standing(tmp_path / "status")["state"] == "stopped"
    status, log = guest.run("--action", "stop", *SLEEP)
    assert status == 0
    assert "does not run on the node" in log
    assert guest.run("--action", "attach", "--failure-status", "9", *SLEEP)[0] == 9
    assert guest.server_log.count("started ") == 1


def test_stop_of_a_run_leaves_another_one_of_the_service_alone(guest: Guest) -> None:
    manager = guest.manager("--run-id", "a" * 32, *SLEEP)
    pid = manager.wait_started()
    assert guest.run("--action", "stop", "--run-id", "b" * 32, *SLEEP)[0] == 0
    assert is_alive(pid)
    assert guest.run("--action", "stop", "--run-id", "a" * 32, *SLEEP)[0] == 0
    assert not is_alive(pid)
    assert manager.wait() == 128 + signal.SIGTERM


def test_who_attaches_to_the_run_of_a_killed_manager_hears_how_it_ended(guest: Guest, tmp_path: Path) -> None:
    path = tmp_path / "status"
    words = ("--status-file", str(path), "--run-id", "a" * 32)
    manager = guest.manager(*words, "-service", "/bin/sh", "-c", "sleep 1000; exit 7")
    pid = manager.wait_started()
    wait_until(lambda: standing(path).get("state") == "running", "a status file that says so")
    assert standing(path)["pid"] == str(pid)
    manager.kill()
    assert standing(path)["state"] == "running"
    os.kill(procfs.descendants(pid)[-1].pid, signal.SIGKILL)
    wait_ended(pid)
    status, log = guest.run(*words, "--action", "attach", "-service", "/bin/sh", "-c", "sleep 1000; exit 7")
    assert status == 7
    assert "exited with code 7" in log
    assert (standing(path)["state"], standing(path)["cause"], standing(path)["code"]) == ("ended", "exited", "7")


def test_a_status_file_that_cannot_be_written_ends_the_manager(guest: Guest, tmp_path: Path) -> None:
    status, log = guest.run("--failure-status", "9", "--status-file", str(tmp_path / "no" / "status"), *SLEEP)
    assert status == 9
    assert "cannot be written: No such file or directory" in log


def test_unusable_keys_are_shown(guest: Guest, tmp_path: Path) -> None:
    guest.host_config.write_text("keyStore=/nowhere\n")
    assert guest.run("--status-file", str(tmp_path / "status"), *SLEEP)[0] == 1
    shown = standing(tmp_path / "status")
    assert (shown["state"], shown["cause"], shown["status"]) == ("failed", "unusable", "1")
    assert "/nowhere" in shown["text"]
