"""Which files lie on this machine: whoever waits for those waits for no network.

A file system that has a device of its own lies on it. Those without one are of both kinds: what Linux keeps in memory
or spreads over several disks, and what other machines have. Python has no `statfs`, which tells them apart, so the C
library is asked, where somebody has loaded `ctypes` before: to load it takes longer than it is worth to know.
"""

from __future__ import annotations

import os
import sys

_LOCAL = frozenset({
    0x01021994,  # tmpfs
    0x858458F6,  # ramfs
    0x794C7630,  # overlayfs: what may be written to lies on a disk
    0x9123683E,  # btrfs
    0xCA451A4E,  # bcachefs
    0x2FC12FC1,  # zfs
})
"""linux/magic.h, and those that keep theirs elsewhere."""

_STATFS_BYTES = 512
"""Several times what any architecture's `struct statfs` has."""


def lies_here(descriptor: int, device: int) -> bool:
    """Tell whether an open file, of the device that `fstat` tells, is certain to lie on this machine."""
    if sys.platform == "win32":
        return False
    return os.major(device) != 0 or _type(descriptor) in _LOCAL


def _type(descriptor: int) -> int | None:
    ctypes = sys.modules.get("ctypes")
    if sys.platform != "linux" or ctypes is None:
        return None
    found = ctypes.create_string_buffer(_STATFS_BYTES)
    try:
        if ctypes.CDLL(None).fstatfs(descriptor, found) != 0:
            return None
    except (OSError, AttributeError):  # a C library that is linked in, or has no such function
        return None
    # `f_type` comes first; where it is no `long` (s390), what is read matches nothing.
    number: int = ctypes.c_long.from_buffer(found).value
    return number & 0xFFFFFFFF
