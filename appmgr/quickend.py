"""Ends the process before its memory is taken apart.

Whoever waits for a process hears of its end only when the kernel has given all of its memory back. For a manager that
takes milliseconds, as long as all the rest of the way from its application's end to its own, and where thirty end at
once they take the processors from each other for it. Memory that another process shares is not taken apart, though. So
a manager whose exit status is certain leaves one behind, the keeper: started by `clone` with CLONE_VM, as `vfork` does
it but without waiting, in this memory and on a stack of its own. It does a single call of the C library's `usleep` and
ends. The memory goes with it, when nobody waits any more.

Why that is harmless:

- Nothing of Python runs in it. It has every signal blocked, so that no handler runs in it either, and only a KILL ends
  it earlier: then it takes the memory apart at once. What `usleep` writes beside its own stack belongs to a thread that
  makes no use of it any more (errno, and whether it may be cancelled).
- Its stack is never given back, since what lives in freed memory returns to anywhere.
- It holds nothing that others could miss: all descriptors are closed before, which is a part of our end in any case (so
  whoever reads our log sees its end with ours, and locks of whoever started us are free), and it is at home in `/`.
- It has a name and a process group of its own: whoever counts managers by name, or waits until nobody of the manager's
  group is left, does not see it.
- It takes the processor from nobody (`SCHED_BATCH`), neither at its start nor when it takes the memory apart.
- It ends by itself after `KEEPER_SECONDS`. Its parent is whoever takes orphans in: process 1, which expects them.
- Where it cannot be had (another system, no process to spare), the process ends as every other does. So it does where
  nobody would gain: started by process 1, which as systemd waits for all that is left of a unit, or in a container
  might not expect orphans. And in a sandbox, which might end us for a call it does not know, with another status.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import ctypes

KEEPER_SECONDS = 0.5
"""Longer than hundreds of managers take to end together, and too short to be in the way of anything."""

KEEPER_STACK_BYTES = 8 * 1024
"""`usleep` needs a fraction of a page; there are no frames of signals."""

KEEPER_NAME = b"cmappmgr-keeper"
"""What `ps` and `pgrep` call it; 15 bytes is all that the kernel keeps."""

_STACK_ALIGNMENT_BYTES = 64
"""More than any of the kernel's architectures asks for."""

_CLONE_VM = 0x100
"""linux/sched.h. Without a signal in its low byte: nobody is told of the keeper's end."""

_PR_SET_NAME = 15
"""linux/prctl.h."""

_SIGNALS = (*range(1, 32), *range(35, 65))
"""The C library has 32 to 34 for itself, and sends them to none but its own threads."""

_ALL = 0xFFFFFFFF
"""The highest number that a descriptor can have, to `close_range`."""


def quick_end(status: int) -> NoReturn:
    """End the process with `status`, at once; nothing that is buffered is written. No other thread may be needed."""
    try:
        # Most key stores bring ctypes along, else `prepare_quick_end` does. Loading it now costs more than it saves.
        if sys.platform == "linux" and "ctypes" in sys.modules and os.getppid() > 1:
            _leave_keeper()
    finally:
        os._exit(status)


def prepare_quick_end() -> None:
    """Make ready beforehand what `quick_end` needs, a third of a millisecond that it then need not spare. Raises what
    `ctypes` does, and OSError, where there will be no keeper.
    """
    if sys.platform == "linux":
        _means()


@lru_cache(1)
def _means() -> tuple[ctypes.PyDLL, tuple[object, ...], ctypes.Array[ctypes.c_char]]:
    """Give the C library, the arguments of its `clone`, and the stack in them, which is never given back.

    Raises OSError, also in a sandbox, and AttributeError.
    """
    import ctypes

    with open("/proc/self/status", "rb") as file:
        if b"\nSeccomp:\t0\n" not in file.read():
            raise OSError("calls of this process are filtered")
    # The interpreter's lock stays ours in its calls: whichever thread got it would hold up the end.
    library = ctypes.PyDLL(None)
    for name in ("clone", "close_range", "prctl"):
        getattr(library, name, None)  # it remembers them
    pointer = ctypes.c_void_p
    stack = ctypes.create_string_buffer(KEEPER_STACK_BYTES)
    top = ctypes.addressof(stack) + KEEPER_STACK_BYTES
    top -= top % _STACK_ALIGNMENT_BYTES
    microseconds = int(KEEPER_SECONDS * 1_000_000)
    return library, (ctypes.cast(library.usleep, pointer), pointer(top), _CLONE_VM, pointer(microseconds)), stack


def _leave_keeper() -> None:
    if sys.platform == "win32":
        return
    library, sleeping, _ = _means()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    library.prctl(_PR_SET_NAME, KEEPER_NAME)
    _close_all(library)
    os.chdir("/")
    # A new process takes the processor from whoever made it, and who waits for that then goes first: most probably the
    # server, if it is on this machine. One of a batch does not. Whoever gave us another policy has reasons of his own.
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    keeper = library.clone(*sleeping)
    if keeper > 0:
        os.setpgid(keeper, keeper)


def _close_all(library: ctypes.PyDLL) -> None:
    import ctypes

    try:
        if library.close_range(0, ctypes.c_uint(_ALL), 0) == 0:
            return
    except AttributeError:
        pass  # a C library older than 2.34; the kernel has it from 5.9 on
    os.closerange(0, max(map(int, os.listdir("/proc/self/fd"))) + 1)
