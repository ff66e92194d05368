"""Who somebody is, and who descends from whom, by what Linux says under /proc."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from appserver.procfs import Stat, boot_id, descendants, is_same_process, oom_kills, process_stat

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def stat(pid: int, ppid: int, session: int = 0, state: str = "S") -> Stat:
    return Stat(pid, state, ppid, session, 0, 0, 1000 + pid, 0, 0)


@linux_only
@pytest.mark.parametrize("name", ["a b", "a) S 1 2", "((", ")", "a\nb"])
def test_a_process_whose_name_holds_blanks_and_parentheses_is_read_right(tmp_path: Path, name: str) -> None:
    program = tmp_path / name
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "600"], start_new_session=True) as process:
        try:
            found = process_stat(process.pid)
            assert found is not None
            assert (found.pid, found.ppid, found.session) == (process.pid, os.getpid(), process.pid)
            assert found.state in "RSD"
            assert found.start_ticks > 0
        finally:
            process.kill()


@linux_only
def test_a_process_is_itself_only_with_its_start_time_and_while_it_lives() -> None:
    with subprocess.Popen(["/bin/sleep", "600"]) as process:
        found = process_stat(process.pid)
        assert found is not None
        assert is_same_process(process.pid, found.start_ticks)
        assert not is_same_process(process.pid, found.start_ticks + 1)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        zombie = process_stat(process.pid)
        assert zombie is not None
        assert (zombie.state, zombie.exit_code) == ("Z", 9)
        assert not is_same_process(process.pid, found.start_ticks)
    assert process_stat(process.pid) is None
    assert not is_same_process(process.pid, found.start_ticks)


@linux_only
def test_real_descendants_are_found() -> None:
    script = "sleep 600 & echo $!; wait"
    with subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert [found.pid for found in descendants(process.pid)] == [child]
        assert child in {found.pid for found in descendants(os.getpid())}
        for pid in (process.pid, child):
            os.kill(pid, 9)


TABLE = [
    stat(1, 0, 1),
    stat(10, 1, 10),
    stat(11, 10, 10),
    stat(12, 11, 12),
    stat(13, 12, 12, "Z"),
    stat(14, 13, 12),
    stat(20, 1, 10),
    stat(21, 20, 21),
    stat(30, 1, 30),
    stat(31, 10, 10, "X"),
]


@pytest.mark.parametrize(
    ("root", "session", "found"),
    [
        (10, None, {11, 12, 14}),
        (10, 10, {11, 12, 14, 20, 21}),
        (12, None, {14}),
        (99, None, set()),
        (99, 10, {10, 11, 12, 14, 20, 21}),
        (30, 30, set()),
        (30, None, set()),
    ],
)
def test_descendants_are_the_living_ones_whatever_died_between(root: int, session: int | None, found: set[int]) -> None:
    assert {seen.pid for seen in descendants(root, session=session, processes=TABLE)} == found


def test_a_table_that_bites_its_tail_ends() -> None:
    # A table is not read at one moment: pids used again meanwhile can make it circular.
    circle = [stat(10, 12), stat(11, 10), stat(12, 11)]
    assert {seen.pid for seen in descendants(10, processes=circle)} == {11, 12}


@linux_only
def test_the_boot_has_a_name_and_kills_are_counted() -> None:
    assert len(boot_id()) == 36
    assert boot_id() == boot_id()
    assert oom_kills() >= 0
