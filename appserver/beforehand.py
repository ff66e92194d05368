"""What a server may come to need when it can open nothing any more: modules that are loaded before it listens.

Whoever floods a guest with connections, or an application that takes all descriptors of the machine, must not have an
import fail in the middle of a refusal, of the report of a bug or of clearing away. And an upgrade takes the files of a
server away while it runs. So nothing that a server imports in a function may be missing here, save what it does before
it listens; `tests/test_beforehand.py` keeps it so.
"""

from __future__ import annotations

import contextlib
from typing import Final

from pki.later import load_now

NEEDED_AT_ANY_TIME: Final = (
    "fcntl",
    "grp",
    "inspect",
    "ipaddress",
    "logging",
    "pwd",
    "resource",
    "shlex",
    "shutil",
    "syslog",
    "tempfile",
    "traceback",
    "trio._channel",
)
"""`inspect` and `logging` are what trio comes to when something goes wrong in it."""


def load_what_may_be_needed() -> None:
    """Load it, as far as this system has it; call it after trio was imported."""
    for name in NEEDED_AT_ANY_TIME:
        with contextlib.suppress(ModuleNotFoundError):
            load_now(name)
