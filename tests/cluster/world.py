"""Namespaces that hold a cluster, and vanish with whoever made them.

A `World` is a tree of processes in namespaces of its own (processes, mounts, network, names, shared memory) with a
reaper as its first process. Everything else is started inside: a node of the cluster is such a tree within the tree,
and so is a guest. A process namespace ends with its first process, so a machine crashes when that one is killed; and
the world ends, with all processes, mounts and interfaces, when the tests do, however they end: the kernel kills its
first process then. Files are on a tmpfs of the world at `/mnt`, so they vanish too.

All pids here are those of the tests' own namespace.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from pair import wait_until
from typing_extensions import Self

from appserver import procfs

FILES = "/mnt"
"""Where the world keeps its files, to those inside."""

COMMAND_SECONDS = 60

REAPER = (
    "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
    "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)\n"
    "while True: signal.pause()"
)
"""The first process of a world or of a guest. Whom nobody waits for, the kernel takes away."""

NEW = ("--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL", "--propagation", "private")


class WorldError(Exception):
    """A command in the world has failed: what it was and what it said."""


class Machine:
    """Namespaces and their first process, inside of `outer` or by themselves.

    `preparation` is what a shell does in them before that process; `/proc` is theirs by then.
    """

    def __init__(self, outer: Machine | None, preparation: str = ":", first: str | None = None) -> None:
        command = first or f"exec {sys.executable} -I -S -c '{REAPER}'"
        script = f"set -e\nmount -t proc proc /proc\n{preparation}\n{command}\n"
        words = ["setpriv", "--pdeathsig", "KILL"] if outer is None else list(outer.words)
        self._depth: int = 2 if outer is None else outer._depth + 1
        self._entered: list[subprocess.Popen[bytes]] = []
        self._inner: list[Machine] = []
        if outer is not None:
            outer._inner.append(self)
        self._process = subprocess.Popen(
            [*words, "unshare", *NEW, "bash", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(lambda: self._first() or self._process.poll() is not None, "the first process of a machine")
        found = self._first()
        if found is None:
            raise WorldError(f"the namespaces were not made: status {self._process.poll()}")
        self.pid = found

    @property
    def words(self) -> tuple[str, ...]:
        """What to put before a command to have it run here."""
        return ("nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "--")

    def start(self, *words: str, log: Path) -> None:
        """Start a command here, which ends with the machine at the latest."""
        with log.open("ab") as file:
            self._entered.append(
                subprocess.Popen(
                    [*self.words, *words], stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
                )
            )

    def run(self, *words: str, check: bool = True) -> str:
        """Run a command here; give what it says. Raises WorldError."""
        done = subprocess.run(
            [*self.words, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if check else subprocess.DEVNULL,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if check and done.returncode != 0:
            raise WorldError(f"{' '.join(words)}: {done.stdout.strip() or done.returncode}")
        return done.stdout

    def ip(self, *words: str) -> None:
        """Change the network here; pids in `words` are those of the tests."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-n", "--", "ip", *words],
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise WorldError(f"ip {' '.join(words)}: {done.stderr.strip()}")

    def path(self, inside: str) -> Path:
        """Where a file of this machine is for the tests."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def outer_pid(self, inner: int) -> int:
        """Give the pid, for the tests, of the process that has the pid `inner` here."""
        here = _namespace(self.pid)
        for stat in procfs.all_processes():
            numbers = _pids_by_namespace(stat.pid)
            if len(numbers) == self._depth and numbers[-1] == inner and _namespace(stat.pid) == here:
                return stat.pid
        raise WorldError(f"no process here has the pid {inner}")

    def crash(self) -> None:
        """End every process here at once, as a power failure does."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._reap()

    def _reap(self) -> None:
        for process in (self._process, *self._entered):
            process.wait(COMMAND_SECONDS)
        for machine in self._inner:
            machine._reap()

    def _first(self) -> int | None:
        for stat in procfs.descendants(self._process.pid):
            numbers = _pids_by_namespace(stat.pid)
            if len(numbers) == self._depth and numbers[-1] == 1:
                return stat.pid
        return None


class World(Machine):
    """The outermost namespaces, with a switch. A context manager: leaving it removes everything."""

    def __init__(self) -> None:
        super().__init__(None, f"mount -t tmpfs -o mode=755 tmpfs {FILES}\nmount -t tmpfs tmpfs /dev/shm")
        wait_until(lambda: os.path.ismount(self.path(FILES)) or self._process.poll() is not None, "the world's files")
        self.files = self.path(FILES)
        self.ip("link", "set", "lo", "up")
        self.add_switch(self, "switch")

    @staticmethod
    def add_switch(machine: Machine, name: str) -> None:
        """Add a bridge that keeps no knowledge of who is where: a guest that has moved is found at once."""
        words = ("type", "bridge", "ageing_time", "0", "mcast_snooping", "0", "forward_delay", "0")
        machine.ip("link", "add", name, *words)
        machine.ip("link", "set", name, "up")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.crash()


def unavailable() -> str | None:
    """Tell why no world can be made here; None where one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "namespaces need Linux and root"
    missing = [name for name in ("unshare", "nsenter", "setpriv", "ip", "bash") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} are missing: install util-linux, iproute2 and bash"
    try:
        with World():
            return None
    except (WorldError, OSError, AssertionError) as error:
        return f"this system does not let us make namespaces: {error}"


def _namespace(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None


def _pids_by_namespace(pid: int) -> list[int]:
    """Give a process's pids, the outermost namespace's first, as far as they are inside of ours."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return []
    line = next((line for line in status.splitlines() if line.startswith("NSpid:")), "")
    return [int(word) for word in line.split()[1:]]
