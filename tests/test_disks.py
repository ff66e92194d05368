"""Which files are known to lie on this machine."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from appserver import disks

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere a device of its own is all that is looked at"
)

TMPFS, NFS, CIFS, FUSE, NINE_P = 0x01021994, 0x6969, 0xFF534D42, 0x65735546, 0x01021997
BTRFS = 0x9123683E
NONE = os.makedev(0, 5)


class Library:
    """The C library on a machine whose file systems are of one type."""

    def __init__(self, number: int, answer: int = 0) -> None:
        self.number = number
        self.answer = answer

    def __call__(self, _name: None) -> Library:
        return self

    def fstatfs(self, _descriptor: int, found: ctypes.Array[ctypes.c_char]) -> int:
        ctypes.c_long.from_buffer(found).value = self.number
        return self.answer


def test_a_device_of_its_own_lies_here() -> None:
    assert disks.lies_here(-1, os.makedev(8, 1))


@pytest.mark.parametrize("number", [TMPFS, BTRFS, BTRFS - (1 << 32)])
def test_what_is_kept_on_this_machine_without_a_device_lies_here(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", Library(number))
    assert disks.lies_here(0, NONE)


@pytest.mark.parametrize("number", [NFS, CIFS, FUSE, NINE_P, 0])
def test_what_others_may_have_does_not_lie_here(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", Library(number))
    assert not disks.lies_here(0, NONE)


def test_what_cannot_be_known_does_not_lie_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", Library(TMPFS, -1))
    assert not disks.lies_here(0, NONE)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert not disks.lies_here(0, NONE)


def test_the_kernel_says_it_of_a_file_in_memory() -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or os.major(memory.stat().st_dev) != 0:
        pytest.skip("there is no file system in memory")
    with open("/proc/self/status", "rb") as other:
        assert not disks.lies_here(other.fileno(), os.fstat(other.fileno()).st_dev)
    descriptor = os.open(memory, os.O_RDONLY)
    try:
        assert disks.lies_here(descriptor, os.fstat(descriptor).st_dev)
    finally:
        os.close(descriptor)


def test_nothing_is_loaded_to_know_it() -> None:
    code = "import sys; from appserver import disks; sys.exit(disks.lies_here(0, 5) or 'ctypes' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=True, timeout=60)
