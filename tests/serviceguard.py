"""What of Serviceguard the tests need: how it reads service entries, and how it runs a service. By its published rules.

- A modular file's `service_cmd` is the rest of the line, without the double quotes around it. A legacy control
  script is a shell's: its arrays are read by one.
- The command is run by `/bin/sh -c` with an empty environment, in a process group of its own. Any end of that
  process is a failure, also a normal one.
- `service_restart` says how often it is started again: none, N, unlimited. Beyond that the package fails over. The
  count never goes back by itself; an administrator resets it (`cmmodpkg -R -s`).
- A halt is TERM to the process group, and KILL where the process has not ended after `service_halt_timeout`.

It has no clock of its own and no thread: a test says when to look for the end of the process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

PATIENCE_SECONDS = 40

Verdict = Literal["restarted", "failed over"]


@dataclass(frozen=True)
class Entry:
    """A service entry as the cluster has understood it."""

    name: str
    command: str
    restart: str = "none"
    halt_timeout: float = 0


def modular_entries(text: str) -> list[Entry]:
    """Read the services of a modular package file."""
    groups: list[dict[str, str]] = []
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        if name.lower() == "service_name":
            groups.append({})
        if groups and not name.startswith("#"):
            groups[-1].setdefault(name.lower(), value.strip())
    return [
        Entry(
            group["service_name"],
            _without_quotes(group["service_cmd"]),
            group.get("service_restart", "none"),
            float(group.get("service_halt_timeout", 0)),
        )
        for group in groups
    ]


def _without_quotes(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value


def legacy_entries(script: str) -> list[Entry]:
    """Have a shell read the arrays of a control script."""
    shell = shutil.which("bash") or shutil.which("ksh")
    if shell is None:
        pytest.skip("no shell with arrays, which control scripts are written for")
    tell = 'printf "%s\\0" "${SERVICE_NAME[I]}" "${SERVICE_CMD[I]}" "${SERVICE_RESTART[I]}"'
    ask = f'for I in "${{!SERVICE_NAME[@]}}"; do {tell}; done'
    done = subprocess.run([shell, "-c", f"{script}\n{ask}"], env={}, capture_output=True, text=True, check=True)
    words = done.stdout.split("\0")[:-1]
    restarts = {"": "none", "-R": "unlimited"}
    return [
        Entry(name, command, restarts.get(restart.strip()) or restart.split()[-1])
        for name, command, restart in zip(words[::3], words[1::3], words[2::3], strict=True)
    ]


@dataclass
class Service:
    """One service of a running package."""

    entry: Entry
    log_path: Path
    restarts: int = 0
    """The counter that `cmviewcl -v` shows."""

    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def start(self) -> None:
        with self.log_path.open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    ["/bin/sh", "-c", self.entry.command],
                    env={},
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def await_end(self) -> Verdict:
        """Wait until the process ends, whatever its status, and do what the entry says."""
        self.processes[-1].wait(PATIENCE_SECONDS)
        allowed = {"none": 0.0, "unlimited": float("inf")}.get(self.entry.restart)
        if self.restarts >= (float(self.entry.restart) if allowed is None else allowed):
            return "failed over"
        self.restarts += 1
        self.start()
        return "restarted"

    def reset_count(self) -> None:
        """`cmmodpkg -R -s`."""
        self.restarts = 0

    def halt(self) -> bool:
        """Halt the service; tell whether it took a KILL."""
        process = self.processes[-1]
        self._signal(signal.SIGTERM)
        try:
            process.wait(self.entry.halt_timeout)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            process.wait(PATIENCE_SECONDS)
            return True
        return False

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.processes[-1].pid, number)

    def close(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE_SECONDS)
