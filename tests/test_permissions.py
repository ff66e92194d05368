"""Who may do what, end to end: rules with a user, a directory and limits, sections of certificates, audit lines."""

from __future__ import annotations

import os
import pwd
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from pair import Guest, is_alive, wait_ended, wait_for_match, wait_until

if sys.platform == "win32":
    pytest.skip("users and limits of that kind are those of POSIX", allow_module_level=True)


@pytest.fixture
def open_directory() -> Iterator[str]:
    """A directory that every user may enter; that of a test is root's own."""
    with tempfile.TemporaryDirectory() as path:
        os.chmod(path, 0o755)
        yield os.path.realpath(path)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user is root's to give")

ASKER = r"certificate ([0-9A-F]{2}:){31}[0-9A-F]{2} at 127\.0\.0\.1, 'cmappmgr\[\d+\] on "

REPORT = """id -u; id -g; id -G; pwd; ulimit -Sn; ulimit -Hn; echo "$HOME $USER $EXTRA"; echo reopened >> /dev/stderr"""


@as_root
def test_a_rule_gives_user_groups_directory_environment_and_limits(idle: Guest, open_directory: str) -> None:
    daemon = pwd.getpwnam("daemon")
    idle.configure(
        "rule reporter:",
        "allow=/bin/sh",
        "user=daemon",
        f"directory={open_directory}",
        "environment=EXTRA=a=b  c",
        "environment=HOME=/elsewhere",
        "limit=nofile 77:88",
    )
    idle.start_server()
    status, log = idle.run("-service", "/bin/sh", "-c", REPORT)
    assert status == 0, log
    groups = " ".join(map(str, os.getgrouplist("daemon", daemon.pw_gid)))
    (output,) = idle.log_dir.iterdir()
    assert output.read_text().splitlines() == [
        str(daemon.pw_uid),
        str(daemon.pw_gid),
        groups,
        open_directory,
        "77",
        "88",
        "/elsewhere daemon a=b  c",
        "reopened",
    ]
    audit = rf"started '.*, as daemon, asked by {ASKER}"
    wait_for_match(lambda: idle.server_log, audit)


@as_root
def test_a_process_that_runs_as_another_user_is_stopped_and_found_again(idle: Guest) -> None:
    idle.configure("rule all:", "allow=*", "user=daemon")
    idle.start_server()
    manager = idle.manager("--on-halt", "stop", "-service", "/bin/sleep", "1000")
    pid = manager.wait_started()
    assert Path(f"/proc/{pid}").stat().st_uid == pwd.getpwnam("daemon").pw_uid
    idle.kill_server()
    idle.start_server()
    manager.wait_for("contact with the node .* is back")
    manager.signal(signal.SIGTERM)
    assert manager.wait() == 128 + signal.SIGTERM
    assert not is_alive(pid)


@as_root
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("user=nobody-here", "there is no user 'nobody-here' in this guest"),
        (
            "directory=/nowhere",
            "the directory '/nowhere' that its rule names cannot be entered: No such file or directory",
        ),
        ("limit=nofile 999999999999999", "the limit 'nofile' of its rule cannot be set: "),
    ],
)
def test_what_a_rule_names_and_the_system_does_not_have_refuses_the_start(idle: Guest, line: str, told: str) -> None:
    idle.configure("rule all:", "allow=*", line)
    idle.start_server()
    status, log = idle.run("-service", "/bin/true")
    assert status == 1
    assert told in log
    assert "(start-failed)" in log


def test_a_certificate_may_start_attach_and_stop_only_what_its_section_says(idle: Guest) -> None:
    idle.start_server()
    one, other = ("-service", "/bin/sleep", "1000"), ("-service", "/bin/sleep", "2000")
    first = idle.manager(*one)
    pid = first.wait_started()
    idle.configure("clientpublic:", "start=/usr/bin/true", "start=/bin/true", "stop=nothing")
    reload(idle)
    status, log = idle.run(*other)
    assert (status, "may not be started by this manager: its section 'clientpublic'" in log) == (1, True)
    wait_for_match(
        lambda: idle.server_log,
        r"refused \(rule\): '/bin/sleep' .*; asked by certificate ([0-9A-F]{2}:){31}[0-9A-F]{2} at .*, 'cmappmgr\[",
    )
    # What it has started it may attach to again, whatever the rules have become since; but not stop.
    first.kill()
    second = idle.manager("--on-halt", "stop", *one)
    assert second.wait_started() == pid
    second.signal(signal.SIGTERM)
    assert second.wait() == 1
    assert "does not permit to stop" in second.log
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)
    wait_ended(pid)


def test_a_certificate_may_have_only_so_many_processes(idle: Guest) -> None:
    idle.configure("clientpublic:maxProcesses=1")
    idle.start_server()
    manager = idle.manager("-service", "/bin/sleep", "1000")
    pid = manager.wait_started()
    status, log = idle.run("-service", "/bin/true")
    assert (status, "has 1 process running already, and may have 1" in log) == (1, True)
    os.kill(pid, signal.SIGKILL)
    assert manager.wait() == 128 + signal.SIGKILL
    assert idle.run("-service", "/bin/true")[0] == 0


def test_a_section_that_names_nobody_is_told_of_and_takes_nothing_away(idle: Guest) -> None:
    idle.configure("node7:", "start=nothing")
    idle.start_server()
    assert idle.run("-service", "/bin/true")[0] == 0
    assert "the section 'node7' names no certificate in" in idle.server_log


def test_others_are_all_whose_certificate_has_no_section(idle: Guest) -> None:
    idle.configure("others:", "start=nothing")
    idle.start_server()
    status, log = idle.run("-service", "/bin/true")
    assert (status, "its section 'others'" in log) == (1, True)
    idle.configure("others:", "start=nothing", "clientpublic:")
    reload(idle)
    assert idle.run("-service", "/bin/true")[0] == 0


def reload(guest: Guest) -> None:
    assert guest.server is not None
    before = guest.server_log.count("read again and in force")
    guest.server.send_signal(signal.SIGHUP)
    wait_until(lambda: guest.server_log.count("read again and in force") > before, "the reload")
