"""What an application gets by its rule, and what is said where it cannot have it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("spawns by fork", allow_module_level=True)

from appserver.attributes import PLAIN, Account, Attributes, Limit
from appserver.spawn import Program, explain_report, spawn

SHOW = 'pwd; umask; ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj; echo "$A"; read x || echo null'


def spawned(
    executable: str, argv: tuple[str, ...], log: Path, attributes: Attributes = PLAIN
) -> tuple[int, bytes, bytes]:
    environment = {b"PATH": os.fsencode(os.defpath), b"A": b"x"}
    with log.open("ab") as file:
        return spawn(lambda: (b"told", Program(executable, argv, environment, file.fileno(), attributes)))


def output(log: Path, attributes: Attributes) -> list[str]:
    pid, told, report = spawned("/bin/sh", ("sh", "-c", SHOW), log, attributes)
    assert (told, report) == (b"told", b"")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return log.read_text().split()


def test_what_its_rule_sets_is_in_force(tmp_path: Path) -> None:
    attributes = Attributes(directory=str(tmp_path), limits=(Limit("nofile", 20, 30),))
    assert output(tmp_path / "log", attributes) == [str(tmp_path), "0022", "20", "30", "0", "x", "null"]


def test_without_a_rule_it_starts_at_the_root(tmp_path: Path) -> None:
    found = output(tmp_path / "log", PLAIN)
    assert found[:2] == ["/", "0022"]
    assert found[4:] == ["0", "x", "null"]


NOTHING_MORE = """
import os, sys
sys.path.append(sys.argv[1])
import appserver.launcher
from appserver.attributes import PLAIN
from appserver.spawn import Program, spawn
sys.addaudithook(lambda event, words: event == "import" and os.write(2, f"import {words[0]}\\n".encode()))
os.waitpid(spawn(lambda: (b"", Program("/bin/true", ("true",), {}, 2, PLAIN)))[0], 0)
"""


def test_a_child_imports_nothing_after_the_fork() -> None:
    """Each application would pay for it, in time and in memory that its waiter no longer shares."""
    root = Path(__file__).parent.parent
    words = [sys.executable, "-I", "-S", "-c", NOTHING_MORE, str(root)]
    assert subprocess.run(words, env={}, stderr=subprocess.PIPE, check=True, timeout=60).stderr == b""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take on another user")
def test_user_group_and_groups_are_those_of_the_rule(tmp_path: Path) -> None:
    argv = ("sh", "-c", "grep -E 'Uid|Gid|Groups' /proc/self/status")
    account = Attributes(account=Account(4001, 4002, (4003, 4004)))
    os.waitpid(spawned("/bin/sh", argv, tmp_path / "log", account)[0], 0)
    found = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert found == [["Uid:", *["4001"] * 4], ["Gid:", *["4002"] * 4], ["Groups:", "4003", "4004"]]


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        (
            Attributes(directory="/nowhere/at"),
            "the directory '/nowhere/at' that its rule names cannot be entered: No such file or directory (errno:2)",
        ),
        (
            Attributes(limits=(Limit("nofile", 30, 20),)),
            "the limit 'nofile' of its rule cannot be set: Invalid argument (errno:22)",
        ),
    ],
)
def test_what_cannot_be_had_is_named(tmp_path: Path, attributes: Attributes, text: str) -> None:
    pid, told, report = spawned("/bin/true", ("true",), tmp_path / "log", attributes)
    os.waitpid(pid, 0)
    error = explain_report("/bin/true", attributes, report)
    assert (told, error.code, str(error)) == (b"told", "start-failed", text)


@pytest.mark.parametrize(
    ("executable", "report", "code", "text"),
    [
        ("/", f"exec {errno.EACCES}", "is-a-directory", "'/' is a directory, a command was expected"),
        ("/", f"exec {errno.EISDIR}", "is-a-directory", "'/' is a directory, a command was expected"),
        ("/x", f"exec {errno.EACCES}", "not-executable", "'/x' cannot be executed: permission denied (errno:13)"),
        (
            "/x",
            f"user {errno.EPERM}",
            "start-failed",
            "the user of its rule cannot be taken on: Operation not permitted (errno:1)",
        ),
        (
            "/x",
            f"directory {errno.EACCES}",
            "start-failed",
            "the directory '/' that its rule names cannot be entered: Permission denied (errno:13)",
        ),
    ],
)
def test_the_childs_report_becomes_a_refusal(executable: str, report: str, code: str, text: str) -> None:
    error = explain_report(executable, PLAIN, report.encode())
    assert (error.code, str(error)) == (code, text)


def test_nothing_is_left_open_whatever_comes_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_fork() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    before = os.listdir("/proc/self/fd")
    os.waitpid(spawned("/bin/true", ("true",), tmp_path / "log")[0], 0)
    pid, _, report = spawned("/nowhere", ("true",), tmp_path / "log")
    os.waitpid(pid, 0)
    assert report == f"exec {errno.ENOENT}".encode()
    monkeypatch.setattr(os, "fork", no_fork)
    with pytest.raises(OSError, match="Resource temporarily unavailable"):
        spawned("/bin/true", ("true",), tmp_path / "log")
    assert os.listdir("/proc/self/fd") == before


def test_a_child_that_has_nothing_to_execute_or_fails_before_it_tells_ends(capfd: pytest.CaptureFixture[str]) -> None:
    def bug() -> tuple[bytes, None]:
        raise ValueError("what happened")

    pid, told, report = spawn(lambda: (b"a word", None))
    assert (told, report) == (b"a word", b"")
    os.waitpid(pid, 0)
    pid, told, report = spawn(bug)
    assert (told, report) == (b"", b"")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 127
    assert "what happened" in capfd.readouterr().err
