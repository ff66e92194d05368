"""A process that ends before its memory is taken apart, and the keeper that it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from pair import PATIENCE_SECONDS, Guest

from appmgr import quickend

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes just end")

FILTERS = "\nSeccomp:\t0\n" not in Path("/proc/self/status").read_text() if sys.platform == "linux" else False

unfiltered = pytest.mark.skipif(FILTERS, reason="system calls are filtered here, and there is no keeper")

ROOT = Path(__file__).resolve().parent.parent

ENDING = """\
import contextlib, os, sys
from appmgr import quickend
if "idle" in sys.argv:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
quickend.KEEPER_SECONDS = float(sys.argv[2])
with contextlib.suppress(OSError):
    quickend.prepare_quick_end()
if "without close_range" in sys.argv:
    quickend._means()[0].close_range = lambda *_: -1
quickend.quick_end(int(sys.argv[1]))
"""

SHARING = """\
import mmap, os, sys
from appmgr import quickend

def size(process):
    with open(f"/proc/{process}/statm") as file:
        return int(file.read().split()[0])

quickend.KEEPER_SECONDS = 60
quickend._leave_keeper()
with open(f"/proc/self/task/{os.getpid()}/children") as file:
    keeper = int(file.read())
taken = mmap.mmap(-1, 64 << 20)
same = size(keeper) == size("self") > 16384
os.kill(keeper, 9)
os._exit(0 if same else 1)
"""

RETURNING = """\
import ctypes, os
from appmgr import quickend

quickend.KEEPER_SECONDS = 0.05
quickend._leave_keeper()
with open(f"/proc/self/task/{os.getpid()}/children") as file:
    keeper = int(file.read())
kept = [b"\\xff" * size for size in range(4096, 20480, 16) for _ in range(3)]
_, ended = os.waitpid(keeper, 0x40000000)
os._exit(os.waitstatus_to_exitcode(ended) & 255)
"""
"""Uses all freed memory while the keeper waits."""

CONFINED = """\
import ctypes, os, sys
from appmgr import quickend

class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_char_p)]

allow_all = ctypes.c_char_p(bytes.fromhex("0600000000 00ff7f" if sys.byteorder == "little" else "00060000 7fff0000"))
filtering = Filter(1, allow_all)
library = ctypes.CDLL(None)
library.prctl(38, 1, 0, 0, 0)
if library.prctl(22, 2, ctypes.byref(filtering)) != 0:
    sys.exit("no filters here")
quickend.KEEPER_SECONDS = 60
quickend.quick_end(7)
"""

REFUSED = """\
import ctypes, sys
from appmgr import quickend

what = sys.argv[1]

class Library:  # the real one, but for what is asked for
    def __init__(self, name):
        if what == "unloadable":
            raise OSError("no such thing here")
        self.real = RealLibrary(name)

    def __getattr__(self, name):
        if name == what:
            raise AttributeError(name)
        if name == "clone" and what == "refused":
            return lambda *_: -1
        return getattr(self.real, name)

RealLibrary, ctypes.PyDLL = ctypes.PyDLL, Library
try:
    quickend.quick_end(42)
finally:
    quickend.os._exit(1)
"""


def end(status: int, keeper_seconds: float = 0.0, *words: str) -> subprocess.Popen[bytes]:
    words = (sys.executable, "-c", ENDING, str(status), str(keeper_seconds), *words)
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def members(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            state, _, _, of_session = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:4]
        except (OSError, ValueError):
            continue
        if int(of_session) == session and state not in "ZX":
            found.append(int(entry.name))
    return found


@pytest.fixture(params=[(), ("without close_range",), ("idle",)], ids=["new kernel", "old kernel", "idle"])
def kept(request: pytest.FixtureRequest) -> Iterator[int]:
    """A keeper that stays, of a process that has ended with 7."""
    if FILTERS:
        pytest.skip("system calls are filtered here, and there is no keeper")
    process = end(7, 60, *request.param)
    said = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, said) == (7, (b"", b""))
    (keeper,) = members(process.pid)
    yield keeper
    for pid in members(process.pid):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("status", [0, 1, 42, 143, 255])
def test_the_status_arrives(status: int) -> None:
    process = end(status)
    assert (process.communicate(timeout=PATIENCE_SECONDS), process.returncode) == ((b"", b""), status)


def test_a_keeper_holds_no_descriptor_and_no_directory(kept: int) -> None:
    # Whoever reads from the process has seen the end of it: the fixture would have waited for a minute.
    assert os.listdir(f"/proc/{kept}/fd") == []
    assert os.readlink(f"/proc/{kept}/cwd") == "/"


def test_a_keeper_can_be_killed(kept: int) -> None:
    session = os.getsid(kept)
    os.kill(kept, signal.SIGKILL)
    wait_for_end(session)


def test_a_keeper_hears_no_other_signal(kept: int) -> None:
    # One that is heard ends the keeper, or its sleep: the process is gone, or has a handler on its small stack.
    for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGALRM, signal.SIGUSR1, signal.SIGRTMIN + 3):
        os.kill(kept, number)
    blocked = next(line for line in Path(f"/proc/{kept}/status").read_text().splitlines() if line.startswith("SigBlk"))
    assert int(blocked.split()[1], 16) == 0xFFFF_FFFC_7FFB_FEFF
    assert members(os.getsid(kept)) == [kept]


def test_a_keeper_is_not_taken_for_its_manager(kept: int) -> None:
    assert Path(f"/proc/{kept}/comm").read_text() == "cmappmgr-keeper\n"
    assert os.getpgid(kept) == kept
    with pytest.raises(ProcessLookupError):
        os.killpg(os.getsid(kept), 0)


def test_a_keeper_takes_the_processor_from_nobody(kept: int, request: pytest.FixtureRequest) -> None:
    given = os.SCHED_IDLE if "[idle]" in request.node.name else os.SCHED_BATCH  # a policy that was given is kept
    assert os.sched_getscheduler(kept) == given


@unfiltered
def test_a_keeper_finds_its_stack_as_it_left_it() -> None:
    done = subprocess.run([sys.executable, "-c", RETURNING], cwd=ROOT, check=False, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0


@pytest.mark.parametrize("parent", [0, 1])
def test_for_process_1_there_is_no_keeper(parent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(BaseException):
        pass

    def end(status: int) -> NoReturn:
        raise Ended(status)

    kept: list[int] = []
    monkeypatch.setattr(os, "getppid", lambda: parent)
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(quickend, "_leave_keeper", lambda: kept.append(1))
    with pytest.raises(Ended, match="7"):
        quickend.quick_end(7)
    assert not kept


def test_in_a_sandbox_there_is_no_keeper() -> None:
    words = [sys.executable, "-c", CONFINED]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True)
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    if b"no filters here" in said:
        pytest.skip("the kernel has no filters of calls")
    left = members(process.pid)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert (process.returncode, left) == (7, [])


def test_a_keeper_ends_by_itself() -> None:
    process = end(7, 0.001)
    process.communicate(timeout=PATIENCE_SECONDS)
    wait_for_end(process.pid)


def wait_for_end(session: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while members(session):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@unfiltered
def test_the_memory_is_shared() -> None:
    done = subprocess.run([sys.executable, "-c", SHARING], cwd=ROOT, check=False, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0


@pytest.mark.parametrize("what", ["refused", "unloadable", "clone", "usleep", "close_range"])
def test_where_no_keeper_can_be_had_the_process_ends_all_the_same(what: str) -> None:
    done = subprocess.run([sys.executable, "-c", REFUSED, what], cwd=ROOT, check=False, timeout=PATIENCE_SECONDS)
    assert done.returncode == 42


def test_other_systems_just_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(BaseException):
        pass

    def end(status: int) -> NoReturn:
        raise Ended(status)

    monkeypatch.setattr(sys, "platform", "sunos5")
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(Ended, match="7"):
        quickend.quick_end(7)


WATCHED = """\
import ctypes, os, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
manager = subprocess.Popen(sys.argv[1:], start_new_session=True)
status = manager.wait()
orphan, ended = os.wait()
print(status, os.waitstatus_to_exitcode(ended), orphan != manager.pid)
"""


@unfiltered
def test_a_manager_leaves_its_memory_to_a_keeper(guest: Guest) -> None:
    words = [*guest.manager_program, "-node", "g1", "--config", str(guest.host_config)]
    words += ["-service", "/bin/sh -c 'exit 7'"]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *words], capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
    )
    assert done.stdout == "7 0 True\n", done.stderr
