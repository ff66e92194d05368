"""What a server may come to need when it can open nothing any more: modules that are loaded before it listens.

Whoever floods a guest with connections, or an application that takes all descriptors of the machine, must not have an
import fail in the middle of a refusal, of the report of a bug or of clearing away. And an upgrade takes the files of a
server away while it runs. So nothing that a server imports in a function may be missing here, save what it does before
it listens; `tests/test_beforehand.py` keeps it so.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Final

from pki.later import load_now

NEEDED_AT_ANY_TIME: Final = (
    "fcntl",
    "grp",
    "hashlib",
    "pwd",
    "resource",
    "shlex",
    "syslog",
    "tokenize",
    "traceback",
)
"""`traceback` is what trio comes to when something goes wrong in one of its threads. It imports `inspect` and `logging`
as well, but asks the one for no more than `pki.answers` knows, and logs only errors of async generators and of
instruments, of which a server has none; a test keeps both true."""

USED_OF_TRIO = (("trio.to_thread", "run_sync"),)
"""What of trio waits for its first use, and is used at a start, a reload and for a look at names."""


def load_what_may_be_needed() -> None:
    """Load it, as far as this system has it; call it after trio was imported."""
    for name in NEEDED_AT_ANY_TIME:
        with contextlib.suppress(ModuleNotFoundError):
            load_now(name)
    for module, name in USED_OF_TRIO:
        getattr(importlib.import_module(module), name)
