"""A guest's server and its managers as real processes, for the tests that run everything.

Each `Guest` has its own directory with keys, configuration, state and logs, and a free port. Waiting is always for a
fact (a line in a log, a file, the end of a process), never for a time; `PATIENCE_SECONDS` only bounds it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from appserver import procfs
from appserver.records import Records, RunRecord
from pki.cli import main as cmapppki

PATIENCE_SECONDS = 40
"""Far more than anything takes on two busy cores; only a failure waits for it."""

NODE = "g1"

MEASURED = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
"""What a process needs to be measured: nothing, unless the tests are."""

SERVER = [str(Path(__file__).with_name("covered_server.py"))] if MEASURED else ["-m", "appserver"]

_NUMBERS = itertools.count(1)
"""Managers are started by several threads at once; each needs a log of its own."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pair runs: the guest's address, and the words that bring a command to either machine."""

    address: str = "127.0.0.1"
    in_guest: tuple[str, ...] = ()
    on_host: tuple[str, ...] = ()


LOOPBACK = Place()


class Manager:
    """One `cmappmgr`, started as a cluster does: empty environment, working directory `/`, a process group of its
    own."""

    def __init__(self, guest: Guest, words: tuple[str, ...]) -> None:
        self._log = guest.directory / f"manager-{next(_NUMBERS)}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *guest.place.on_host,
                    *guest.manager_program,
                    "-node",
                    NODE,
                    "--config",
                    str(guest.host_config),
                    *words,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=MEASURED,
                cwd="/",
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait(self) -> int:
        """Wait for the end; give the exit status."""
        return self.process.wait(PATIENCE_SECONDS)

    def wait_for(self, pattern: str) -> re.Match[str]:
        return wait_for_match(lambda: self.log, pattern)

    def wait_started(self) -> int:
        """Wait until it watches its application; give that one's pid."""
        return int(self.wait_for(r"(?:started|attached to) the application .* process (\d+)").group(1))

    def signal(self, number: int) -> None:
        """Signal the process group, as a cluster does."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()


class Guest:
    """One guest: a directory, a server, and whoever watches its applications."""

    def __init__(self, directory: Path, keys: Path, place: Place = LOOPBACK) -> None:
        self.directory = directory
        self.place = place
        shutil.copytree(keys, directory, dirs_exist_ok=True)
        self.state_dir = directory / "state"
        self.log_dir = directory / "log"
        self.server_config = directory / "cmappserver.conf"
        self.host_config = directory / "cmappmgr.conf"
        self.records = Records(str(self.state_dir))
        self.server: subprocess.Popen[bytes] | None = None
        self.managers: list[Manager] = []
        self.port = 0
        self.environment: dict[str, str] | None = None
        """The server's own; that of the tests where None."""
        self.server_program = [sys.executable, *SERVER]
        self.manager_program = [sys.executable, "-m", "appmgr"]
        """What the next ones are started by; those of another release have an interpreter of their own."""
        self.configure()

    def configure(self, *lines: str) -> None:
        """Write the server's configuration."""
        own = [
            "keyStore=server.private",
            "trustStore=client.public",
            "stateDir=state",
            "logDir=log",
            f"listen={self.place.address}",
        ]
        self.server_config.write_text("\n".join([*own, *lines, ""]))

    def configure_host(self, port: int | None = None, address: str | None = None) -> None:
        """Write the managers' configuration."""
        node = [f"address={address or self.place.address}", f"port={port or self.port}", "trustStore=server.public"]
        self.host_config.write_text("\n".join(["keyStore=client.private", f"{NODE}:", *node, ""]))

    @property
    def server_log(self) -> str:
        path = self.directory / "server.log"
        return path.read_text() if path.exists() else ""

    def start_server(self) -> None:
        """Start the server and wait until it listens; a restarted one keeps its port."""
        before = len(self.server_log)
        options = ["--config", str(self.server_config), "--port", str(self.port)]
        with (self.directory / "server.log").open("ab") as log:
            self.server = subprocess.Popen(
                [*self.place.in_guest, *self.server_program, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=None if self.environment is None else self.environment | MEASURED,
                cwd="/",
            )
        ready = rf"listening on {re.escape(self.place.address)} port (\d+)"
        match = wait_for_match(lambda: self.server_log[before:], ready)
        self.port = int(match.group(1))
        self.configure_host()

    def kill_server(self) -> None:
        assert self.server is not None
        self.server.kill()
        self.server.wait()

    def stop_server(self) -> int:
        """End the server by TERM; give its exit status."""
        assert self.server is not None
        self.server.terminate()
        return self.server.wait(PATIENCE_SECONDS)

    def manager(self, *words: str) -> Manager:
        manager = Manager(self, words)
        self.managers.append(manager)
        return manager

    def run(self, *words: str) -> tuple[int, str]:
        """Run a manager to its end; give its exit status and its log."""
        manager = self.manager(*words)
        return manager.wait(), manager.log

    def launcher_pid(self) -> int:
        path = self.state_dir / "launcher.lock"
        wait_until(lambda: path.exists() and path.read_text().strip(), "the launcher")
        return int(path.read_text().split()[0])

    def record_of(self, pid: int) -> RunRecord:
        """Find the record of the run whose main process is `pid`."""
        return next(record for record in self.records.all() if record.read_state().pid == pid)

    def waiter_pid(self, pid: int) -> int:
        """Find the waiter of a main process that still has its first one."""
        stat = procfs.process_stat(pid)
        assert stat is not None
        return stat.ppid

    def close(self) -> None:
        """End everything, applications included, and prove that nothing of it lives."""
        for manager in self.managers:
            with contextlib.suppress(ProcessLookupError):
                manager.signal(signal.SIGKILL)
            manager.process.wait()
        if self.server is not None and self.server.poll() is None:
            self.server.terminate() if MEASURED else self.server.kill()  # one that is killed leaves no measurements
            self.server.wait(PATIENCE_SECONDS)
        with contextlib.suppress(OSError, ValueError, IndexError):
            kill_tree(int((self.state_dir / "launcher.lock").read_text().split()[0]))
        for record in self.records.all() if self.state_dir.exists() else []:
            state = record.read_state()
            if state.pid is not None and not state.gone and procfs.is_same_process(state.pid, state.start_ticks or 0):
                parent = self.waiter_pid(state.pid)
                kill_tree(parent if parent > 1 else state.pid)


def kill_tree(root: int) -> None:
    """Kill a process and all its descendants, the youngest first."""
    for stat in reversed(procfs.descendants(root)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(stat.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(root, signal.SIGKILL)


def make_keys(directory: Path) -> Path:
    """Make the keys of one host and one guest, in one directory."""
    assert cmapppki(["client", "--dir", str(directory)]) == 0
    assert cmapppki(["server", "--dir", str(directory), "--guest", NODE]) == 0
    return directory


@contextlib.contextmanager
def open_guest(directory: Path, keys: Path, place: Place = LOOPBACK) -> Iterator[Guest]:
    guest = Guest(directory, keys, place)
    try:
        yield guest
    finally:
        guest.close()


def wait_until(fact: Callable[[], object], what: str = "what was waited for") -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not fact():
        assert time.monotonic() < deadline, f"{what} did not happen within {PATIENCE_SECONDS} s"
        time.sleep(0.005)


def wait_for_match(text: Callable[[], str], pattern: str) -> re.Match[str]:
    wait_until(lambda: re.search(pattern, text()), f"{pattern!r}, in place of {text()!r},")
    match = re.search(pattern, text())
    assert match is not None
    return match


def wait_ended(pid: int) -> None:
    """Wait until a process that is not ours has ended (a zombie has)."""
    wait_until(lambda: (stat := procfs.process_stat(pid)) is None or stat.state in "ZX", f"the end of {pid}")


def is_alive(pid: int) -> bool:
    stat = procfs.process_stat(pid)
    return stat is not None and stat.state not in "ZX"


def python(source: str) -> tuple[str, str, str]:
    """Give the words that run a Python program as an application."""
    return (sys.executable, "-c", source)
