"""The pair of this project as a user installs it: from an environment of its own, without environment variables."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import final

from bench.goals import PAIR
from bench.measure import descendants, name_of, without_zombies
from bench.processes import BenchError, tail
from bench.subjects.subject import Subject

DEFAULT_MAX_PROCESSES = 30
NODE = "guest"
_WAITING_NAMES = ("cmapp-launcher", "cmapp-waiter")
_LOOK_SECONDS = 0.05

_IN_MEMORY = "/dev/shm"
"""Where the state lies, as it does in the default `/run` of a system with systemd. The place of temporary files may be
a disk on which a new file next to many that were just removed takes a millisecond, and a run has five."""


def installed(program: str) -> str:
    """Give the path of an installed program: that of the interpreter which runs this."""
    return os.path.join(os.path.dirname(sys.executable), program)


def make_keys(directory: str) -> None:
    """Make the keys of one host and one guest with the pair's own tool; Java reads the same stores."""
    for words in (["client"], ["server", "--guest", NODE]):
        command = [installed("cmapppki"), *words, "--dir", directory]
        subprocess.run(command, env={}, check=True, stdout=subprocess.DEVNULL)


@final
class Pair(Subject):
    """`cmappserver`, and a `cmappmgr` for each application."""

    name = PAIR
    client_mib = 20.0

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self._state: str | None = None

    def open(self, most: int) -> float:
        """Start the server with fresh keys and an empty state."""
        if not os.path.exists(self._file("client.private")):
            make_keys(self.directory)
        memory = _IN_MEMORY if os.path.isdir(_IN_MEMORY) else None
        self._state = tempfile.mkdtemp(prefix="cmapp-bench-", dir=memory)
        own = [
            "keyStore=server.private",
            "trustStore=client.public",
            f"stateDir={self._state}",
            "logDir=log",
            "listen=127.0.0.1",
            f"maxProcesses={max(most, DEFAULT_MAX_PROCESSES)}",
        ]
        self._write("cmappserver.conf", own)
        return self._listen(0)

    def close(self) -> None:
        """End the server and remove the state."""
        super().close()
        if self._state is not None:
            shutil.rmtree(self._state, ignore_errors=True)
            self._state = None

    def client(self, words: Sequence[str]) -> list[str]:
        """Give a manager's command; each application has words of its own, so each is a service of its own."""
        return [installed("cmappmgr"), "-node", NODE, "--config", self._file("cmappmgr.conf"), "-service", *words]

    def guest_pids(self, applications: set[int]) -> set[int]:
        """Give server, launcher and waiters; the latter also when the server that wanted them is dead."""
        helpers = {pid for pid in descendants(os.getpid()) if name_of(pid) in _WAITING_NAMES}
        server = set() if self.server_pid is None else {self.server_pid}
        return without_zombies(helpers | server) - applications

    def restart(self, logs: Sequence[str]) -> float:
        """Kill the server and start it again beside its applications; give the seconds until it listened.

        Returns when all managers, by their `logs`, have found it again. Raises BenchError.
        """
        assert self.server_pid is not None
        before = [_times_back(log) for log in logs]
        os.kill(self.server_pid, signal.SIGKILL)
        os.waitpid(self.server_pid, 0)
        seconds = self._listen(self._port)
        for log, times in zip(logs, before, strict=True):
            while _times_back(log) == times:
                time.sleep(_LOOK_SECONDS)
        return seconds

    def _listen(self, port: int) -> float:
        command = [installed("cmappserver"), "--config", self._file("cmappserver.conf"), "--port", str(port)]
        seconds, match = self.listen(command, r"listening on 127\.0\.0\.1 port (\d+)")
        self._port = int(match[1])
        node = ["address=127.0.0.1", f"port={self._port}", f"trustStore=server_{NODE}.public"]
        self._write("cmappmgr.conf", ["keyStore=client.private", f"{NODE}:", *node])
        return seconds

    def _file(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def _write(self, name: str, lines: list[str]) -> None:
        with open(self._file(name), "w", encoding="utf-8") as file:
            file.write("\n".join([*lines, ""]))


def _times_back(log: str) -> int:
    with open(log, encoding="utf-8") as file:
        text = file.read()
    if "PROGRAM EXIT CODE" in text:
        raise BenchError(f"a manager ended when its server was started again: {tail(log)}")
    return text.count(" is back after ")
