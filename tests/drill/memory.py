"""A control group with little memory, in which the kernel kills whoever wants more. Root only, version 1 or 2."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LIMIT_BYTES = 32 << 20
"""More than an interpreter, less than the application grows to."""

ROOT = Path("/sys/fs/cgroup")


class NoMemoryGroup(Exception):
    """This machine has none for us; says why."""


@contextlib.contextmanager
def open_memory_group() -> Iterator[Path]:
    """Make the group; remove it at the end. Raises NoMemoryGroup where the kernel does not kill in it."""
    version_2 = (ROOT / "cgroup.controllers").exists()
    parent = ROOT if version_2 else ROOT / "memory"
    group = parent / f"cmapp-drill-{os.getpid()}"
    try:
        if version_2 and "memory" not in (parent / "cgroup.subtree_control").read_text():
            (parent / "cgroup.subtree_control").write_text("+memory")
        group.mkdir()
    except OSError as error:
        raise NoMemoryGroup(f"no control group for memory can be made: {error}") from error
    try:
        limit, no_swap = ("memory.max", "memory.swap.max") if version_2 else ("memory.limit_in_bytes", None)
        try:
            (group / limit).write_text(str(LIMIT_BYTES))
            if no_swap is not None and (group / no_swap).exists():
                (group / no_swap).write_text("0")
            _prove(group)
        except OSError as error:
            raise NoMemoryGroup(f"the control group takes no limit: {error}") from error
        yield group
    finally:
        group.rmdir()


def _prove(group: Path) -> None:
    """Have one process killed there, the same way as an application will be."""
    application = str(Path(__file__).with_name("application.py"))
    words = [f"notes={os.devnull}", "seconds=0", "ending=memory", f"group={group}"]
    ended = subprocess.run([sys.executable, "-I", "-S", application, *words], check=False)
    if ended.returncode != -9:
        raise NoMemoryGroup(f"the kernel does not kill in a control group of {LIMIT_BYTES} bytes")


def kernel_tells_of_memory() -> bool:
    """Whether the kernel's messages can be read, which say who was killed for memory."""
    try:
        os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True
