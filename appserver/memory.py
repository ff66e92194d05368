"""Tell whether the kernel killed a process because memory ran out. Standard library only; runs in the waiter."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time

assert sys.platform != "win32"

from appserver.procfs import oom_kills

MAX_MESSAGES = 5000
"""Kernel messages looked through at most: the ring buffer holds a few thousand."""

_READ_BYTES = 8192


def was_killed_for_memory(pid: int, *, kills_before: int) -> bool:
    """Look whether the kernel says that it killed `pid` for memory.

    `kills_before` is what `oom_kills` said when the process was started: where the count is the same, the answer is no
    without a look at the kernel's messages. Where those cannot be read (a container), the kernel does not tell, and the
    answer is no.
    """
    if oom_kills() <= kills_before:
        return False
    pattern = re.compile(rb"(?:Killed process |task=[^,]*,pid=)%d\b" % pid)
    return any(pattern.search(message) for message in _kernel_messages())


def _kernel_messages() -> list[bytes]:
    messages: list[bytes] = []
    with contextlib.suppress(OSError):
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            deadline = time.monotonic() + 1
            while len(messages) < MAX_MESSAGES and time.monotonic() < deadline:
                with contextlib.suppress(
                    BrokenPipeError
                ):  # a message was overwritten before we read it: go on behind it
                    messages.append(os.read(fd, _READ_BYTES))
        finally:
            os.close(fd)
    return messages
