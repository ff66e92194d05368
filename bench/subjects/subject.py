"""What the harness must know of a subject. Everything else about it is its own module's business."""

from __future__ import annotations

import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from bench.measure import descendants, without_zombies
from bench.processes import WAIT_SECONDS, BenchError, end, start, tail

_LOOK_SECONDS = 0.001
"""How often a server's log is looked at until it says that it listens: a thousandth of what is measured."""


class Subject(ABC):
    """A way to run an application elsewhere and to end like it.

    `client_mib` is a generous guess at the memory of one client, by which it is decided whether so many fit.
    """

    name: str
    client_mib: float = 0.0
    environment: Mapping[str, str] | None = None

    def __init__(self, directory: str) -> None:
        self.directory = os.path.join(directory, self.name)
        os.mkdir(self.directory, 0o700)
        self.log = os.path.join(self.directory, "server.log")
        self.server_pid: int | None = None

    @abstractmethod
    def open(self, most: int) -> float:
        """Start the server, for `most` applications at once; give the seconds until it listened.

        Raises BenchError.
        """

    @abstractmethod
    def client(self, words: Sequence[str]) -> list[str]:
        """Give the command of a client that runs `words` in the guest and ends with their exit status."""

    def close(self) -> None:
        """End the server and whatever belongs to it, once no client runs."""
        if self.server_pid is not None:
            end(self.server_pid)
            self.server_pid = None

    def guest_pids(self, applications: set[int]) -> set[int]:
        """Give all processes of the guest's side that live, but for the applications and what they started."""
        if self.server_pid is None:
            return set()
        theirs = applications.union(*(descendants(pid) for pid in applications))
        return without_zombies({self.server_pid} | descendants(self.server_pid)) - theirs

    def host_pids_beside(self) -> set[int]:
        """Give the processes of the host's side that all clients share."""
        return set()

    def listen(
        self, words: list[str], pattern: str, environment: Mapping[str, str] | None = None
    ) -> tuple[float, re.Match[str]]:
        """Start the server; give the seconds until its log matched `pattern`, and the match. Raises BenchError."""
        size = os.path.getsize(self.log) if os.path.exists(self.log) else 0
        began = time.monotonic()
        self.server_pid = start(words, self.log, environment)
        while time.monotonic() < began + WAIT_SECONDS:
            with open(self.log, encoding="utf-8") as file:
                file.seek(size)
                if match := re.search(pattern, file.read()):
                    return time.monotonic() - began, match
            if not without_zombies({self.server_pid}):
                raise BenchError(f"the server of {self.name} ended: {tail(self.log)}")
            time.sleep(_LOOK_SECONDS)
        raise BenchError(f"the server of {self.name} did not listen within {WAIT_SECONDS} s: {tail(self.log)}")
