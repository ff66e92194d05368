"""The environment that applications get: the server's own, less what belongs to systemd and to our interpreter."""

from __future__ import annotations

import sys
from collections.abc import Mapping

_OF_SYSTEMD = frozenset({
    "CREDENTIALS_DIRECTORY",
    "FDSTORE",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "MAINPID",
    "MANAGERPID",
    "MANAGERPIDFDID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "NOTIFY_SOCKET",
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
    "CACHE_DIRECTORY",
    "LOGS_DIRECTORY",
    "CONFIGURATION_DIRECTORY",
    "SYSTEMD_EXEC_PID",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
})
"""What systemd.exec(5) sets for the service itself: an application that took it for its own would, say, notify in our
name."""

_OF_INTERPRETER = ("PYTHON", "__PYVENV", "COVERAGE_", "COV_CORE_")
_OF_VIRTUAL_ENVIRONMENT = frozenset({"VIRTUAL_ENV", "VIRTUAL_ENV_PROMPT"})


def application_environment(current: Mapping[str, str]) -> dict[str, str]:
    """Give the environment of applications, made from `current`, the server's own."""
    environment = {
        name: value
        for name, value in current.items()
        if name not in _OF_SYSTEMD and name not in _OF_VIRTUAL_ENVIRONMENT and not name.startswith(_OF_INTERPRETER)
    }
    if environment.get("LC_CTYPE") in {"C.UTF-8", "C.utf8", "UTF-8"} and not _was_given("LC_CTYPE"):
        del environment["LC_CTYPE"]  # set by our interpreter for itself (PEP 538)
    return environment


def _was_given(name: str) -> bool:
    if sys.platform != "linux":
        return True
    try:
        with open("/proc/self/environ", "rb") as file:
            return any(entry.startswith(name.encode() + b"=") for entry in file.read().split(b"\0"))
    except OSError:
        return True
