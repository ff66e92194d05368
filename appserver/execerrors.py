"""Why the system would not execute a program, as a refusal on the wire and in words. Standard library only."""

from __future__ import annotations

import errno
import os

_REFUSALS = {
    errno.ENOENT: ("no-such-command", "there is no such command, or its interpreter is missing"),
    errno.ENOTDIR: ("no-such-command", "a part of the path is not a directory"),
    errno.EACCES: ("not-executable", "permission denied"),
    errno.ENOEXEC: ("start-failed", "it is neither a binary of this machine nor a script with a #! line"),
}


def explain_exec_error(number: int) -> tuple[str, str]:
    """Give the refusal's code and the reason for an error number of exec."""
    return _REFUSALS.get(number, ("start-failed", os.strerror(number)))
