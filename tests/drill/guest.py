"""One guest of the drill: its directory, its server in one of two versions, and its managers as real processes.

Nothing is polled: a server is ready, and a manager has something to say, when a line comes through a pipe; a process
has ended when its pidfd says so.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import trio
from pair import MEASURED, NODE, SERVER

from drill.census import LAUNCHER, name_of, waiters_of
from drill.reports import FAILURE_STATUS, Report, read_log

TREE = Path(__file__).parents[2]
PACKAGES = ("appmgr", "appserver", "pki")

READY_SECONDS = 60
"""A server starts in half a second; only a failure waits for this."""

MANAGER_SECONDS = 180
"""Longer than any manager of the drill has reason to live."""

MANAGER_TIMEOUT_SECONDS = 60
"""What managers are told: far more than any fault of the drill lasts, so that giving up is never right."""

LOG_MAX_BYTES = 200_000
MAX_PROCESSES = 30
KEPT_LOG_LINES = 2000
"""Of the server, for complaints."""

TRACEBACK_LINES = 60
"""Shown from each line on that begins a traceback."""

MAX_TRACEBACK_LINES = 600


_CLAIMED = re.compile(rb"(?:started|attached to) the application")


class Guest:
    """Directory, configuration and server. Times are of the monotonic clock."""

    def __init__(self, directory: Path, keys: Path) -> None:
        self.directory = directory
        self.state_dir = directory / "state"
        self.notes_dir = directory / "notes"
        self.host_config = directory / "cmappmgr.conf"
        self.server: trio.Process | None = None
        self.port = 0
        self.server_away: deque[tuple[float, float]] = deque(maxlen=100)
        self.log: deque[str] = deque(maxlen=KEPT_LOG_LINES)
        self.tracebacks: list[str] = []
        """What the server, and the last launcher and its waiters, said that they should not."""
        self._tracebacks = 0
        self._traceback_lines_left = 0
        self._roots = (TREE, directory / "other-version")
        self._version = 0
        self._nursery: trio.Nursery | None = None
        shutil.copytree(keys, directory, dirs_exist_ok=True)
        self.notes_dir.mkdir()
        _copy_packages(self._roots[1])
        lines = ["keyStore=server.private", "trustStore=client.public", "stateDir=state", "logDir=log"]
        lines += ["listen=127.0.0.1", f"logMaxBytes={LOG_MAX_BYTES}", f"maxProcesses={MAX_PROCESSES}", ""]
        (directory / "cmappserver.conf").write_text("\n".join(lines))

    @contextlib.contextmanager
    def living_in(self, nursery: trio.Nursery) -> Iterator[None]:
        """Have the logs read by tasks of this nursery; at the end kill the server."""
        self._nursery = nursery
        try:
            yield
        finally:
            if self.server is not None:
                self.server.kill()

    def configure_host(self, port: int) -> None:
        lines = ["keyStore=client.private", f"{NODE}:", "address=127.0.0.1", f"port={port}"]
        self.host_config.write_text("\n".join([*lines, "trustStore=server.public", ""]))

    def environment(self, version: int) -> dict[str, str]:
        return MEASURED | {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(self._roots[version])}

    def other_version(self) -> None:
        """Have the next server started from the other copy of the packages."""
        self._version = 1 - self._version

    async def start_server(self) -> None:
        """Start a server and wait until it listens; it keeps its port. Raises TooSlowError."""
        assert self._nursery is not None
        self.server = await trio.lowlevel.open_process(
            [sys.executable, *SERVER, "--config", str(self.directory / "cmappserver.conf"), "--port", str(self.port)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=self.environment(self._version),
            cwd="/",
            start_new_session=True,
        )
        ready = trio.Event()
        self._nursery.start_soon(self._read_log, self.server, ready)
        with trio.fail_after(READY_SECONDS):
            await ready.wait()

    async def _read_log(self, server: trio.Process, ready: trio.Event) -> None:
        assert server.stderr is not None
        rest = b""
        async for data in server.stderr:
            *lines, rest = (rest + data).split(b"\n")
            for line in map(bytes.decode, lines):
                self.log.append(line)
                self._keep_traceback(line)
                if " listening on " in line:
                    self.port = int(line.rsplit(" ", 1)[1])
                    ready.set()

    async def end_server(self, number: int) -> int:
        """End the server with a signal; give its exit status."""
        assert self.server is not None
        self.server.send_signal(number)
        return await self.server.wait()

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Note that there is no server meanwhile, or that it stands still."""
        began = time.monotonic()
        self.server_away.append((began, float("inf")))
        try:
            yield
        finally:
            self.server_away[-1] = (began, time.monotonic())

    def launcher_pid(self) -> int | None:
        """Find the launcher; None where there is none at the moment."""
        try:
            pid = int((self.state_dir / "launcher.lock").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None
        return pid if name_of(pid) == LAUNCHER else None

    def count_tracebacks(self) -> int:
        """Count those in the logs of the server and of the last launcher and its waiters."""
        for line in (self.state_dir / "launcher.log").read_text(errors="replace").splitlines():
            self._keep_traceback(line)
        return self._tracebacks

    def _keep_traceback(self, line: str) -> None:
        if "Traceback" in line:
            self._tracebacks += 1
            self._traceback_lines_left = TRACEBACK_LINES
        if self._traceback_lines_left and len(self.tracebacks) < MAX_TRACEBACK_LINES:
            self._traceback_lines_left -= 1
            self.tracebacks.append(line)

    def waiters(self) -> dict[int, str]:
        return waiters_of(self.state_dir)


def _copy_packages(root: Path) -> None:
    """Copy the packages as they are, under another version."""
    for package in PACKAGES:
        shutil.copytree(TREE / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    version = root / "appserver" / "version.py"
    version.write_text(version.read_text().replace('VERSION = "', 'VERSION = "999.'))


class Manager:
    """One `cmappmgr`, as a cluster runs it: nearly no environment, a process group of its own."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.began_at = time.monotonic()
        self.claimed = trio.Event()
        """Set when it has said that it started its application, or attached to it."""
        self.killed = self.detached = False
        self.halted_at: float | None = None
        self._claimed_at: float | None = None
        self._text = b""

    def send(self, number: int) -> bool:
        """Signal its process group, as a cluster does; False where it has ended."""
        if self.process.poll() is not None:
            return False
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return False
        return True

    async def finish(self) -> Report:
        """Read its log to the end, wait for it, and give its report. Raises TooSlowError where it does not end."""
        assert self.process.stderr is not None
        with trio.fail_after(MANAGER_SECONDS):
            async for data in self.process.stderr:
                self._text += data
                if self._claimed_at is None and _CLAIMED.search(self._text):
                    self._claimed_at = time.monotonic()
                    self.claimed.set()
            status = await self.process.wait()
        self.claimed.set()
        ended_at = time.monotonic()
        report = Report(self.began_at, ended_at, status, self.killed, self.detached, self.halted_at, self._claimed_at)
        read_log(report, self._text.decode())
        return report


async def start_manager(guest: Guest, version: int, options: tuple[str, ...], service: list[str]) -> Manager:
    """Start a manager of either version."""
    own = ["-node", NODE, "--config", str(guest.host_config), "-cmappserver_timeout", str(MANAGER_TIMEOUT_SECONDS)]
    own += ["--poll-interval", "1", "--failure-status", str(FAILURE_STATUS), *options]
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "appmgr", *own, "-service", *service],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=guest.environment(version),
        cwd="/",
        start_new_session=True,
    )
    return Manager(process)


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
