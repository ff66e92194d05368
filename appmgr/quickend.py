"""Ends the process before its memory is taken apart.

Whoever waits for a process hears of its end only when the kernel has given all of its memory back. For a manager that
takes milliseconds, as long as all the rest of the way from its application's end to its own, and where thirty end at
once they take the processors from each other for it. Memory that another process shares is not taken apart, though. So
a manager whose exit status is certain leaves one behind, the keeper: started by `clone` with CLONE_VM, as `vfork` does
it but without waiting, in this memory and on a stack of its own. It does a single call of the C library's `usleep` and
ends. The memory goes with it, when nobody waits any more.

Why that is harmless:

- Nothing of Python runs in it, and nothing that it calls writes anywhere but on its own stack.
- It holds nothing that others could miss: all descriptors are closed before, which is a part of our end in any case (so
  whoever reads our log sees its end with ours, and locks of whoever started us are free), and it is at home in `/`.
- It ends by itself after `KEEPER_SECONDS`. It ignores the signals that we ignore, so only a KILL ends it earlier, and
  then it takes the memory apart at once.
- Its parent is whoever takes orphans in: process 1, which expects them.
- Where it cannot be had (another system, no process to spare, a sandbox), the process ends as every other does.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import ctypes

KEEPER_SECONDS = 0.5
"""Longer than hundreds of managers take to end together, and too short to be in the way of anything."""

KEEPER_STACK_BYTES = 16 * 1024
"""`usleep` needs a fraction of a page, and the frame of a signal three."""

_STACK_ALIGNMENT_BYTES = 64
"""More than any of the kernel's architectures asks for."""

_CLONE_VM = 0x100
"""linux/sched.h. Without a signal in its low byte: nobody is told of the keeper's end."""

_ALL = 0xFFFFFFFF
"""The highest number that a descriptor can have, to `close_range`."""


def quick_end(status: int) -> NoReturn:
    """End the process with `status`, at once; nothing that is buffered is written. No other thread may be needed."""
    try:
        if sys.platform == "linux":
            _leave_keeper()
    finally:
        os._exit(status)


def prepare_quick_end() -> None:
    """Look up beforehand what `quick_end` calls, a quarter of a millisecond that it then need not spare. Raises what
    `ctypes` does where there will be no keeper.
    """
    if sys.platform == "linux":
        _library()


@lru_cache(1)
def _library() -> tuple[ctypes.PyDLL, int | None]:
    """Give the C library and the address of `usleep`. Raises OSError, AttributeError."""
    import ctypes  # loaded by now: the key store was opened with it

    # The interpreter's lock stays ours in its calls: whichever thread got it would hold up the end.
    library = ctypes.PyDLL(None)
    for name in ("clone", "close_range"):
        getattr(library, name, None)  # it remembers them
    return library, ctypes.cast(library.usleep, ctypes.c_void_p).value


def _leave_keeper() -> None:
    import ctypes

    library, usleep = _library()
    stack = ctypes.create_string_buffer(KEEPER_STACK_BYTES)
    top = ctypes.addressof(stack) + KEEPER_STACK_BYTES
    top -= top % _STACK_ALIGNMENT_BYTES
    microseconds = int(KEEPER_SECONDS * 1_000_000)
    _close_all(library)
    os.chdir("/")
    pointer = ctypes.c_void_p
    library.clone(pointer(usleep), pointer(top), _CLONE_VM, pointer(microseconds))


def _close_all(library: ctypes.PyDLL) -> None:
    import ctypes

    try:
        if library.close_range(0, ctypes.c_uint(_ALL), 0) == 0:
            return
    except AttributeError:
        pass  # a C library older than 2.34; the kernel has it from 5.9 on
    os.closerange(0, max(map(int, os.listdir("/proc/self/fd"))) + 1)
