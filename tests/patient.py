"""Applications that do as they are told: one that runs until it is to end, and says each time it starts; and one that
does not listen to TERM, and says when it does not."""

from __future__ import annotations

from pathlib import Path

from pair import Guest, python, wait_until

from appserver import procfs

PATIENT = """
import os, sys, time
with open(sys.argv[1] + '.starts', 'a') as file:
    file.write(f'{os.getpid()}\\n')
while not os.path.exists(sys.argv[1] + '.go'):
    time.sleep(0.01)
sys.exit(7)
"""

STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1], 'w').close()
time.sleep(1000)
"""


class Patient:
    """One such application, and its traces. It ends with code 7."""

    def __init__(self, guest: Guest, name: str = "app") -> None:
        self.path = guest.directory / name
        self.service = ("-service", *python(PATIENT), str(self.path))

    def finish(self) -> None:
        Path(f"{self.path}.go").touch()

    def wait_started(self) -> None:
        """Wait until it has said so: the file is there a moment before, and who is killed in between says nothing."""
        wait_until(self.starts, "the start of the application's own code")

    def starts(self) -> int:
        path = Path(f"{self.path}.starts")
        return len(path.read_text().splitlines()) if path.exists() else 0


class Stubborn:
    """One such application."""

    def __init__(self, guest: Guest) -> None:
        self._path = guest.directory / "stubborn"
        self.service = ("-service", *python(STUBBORN), str(self._path))

    def wait_ready(self) -> None:
        wait_until(self._path.exists, "the moment from which it ignores TERM")


def unlocking_children(pid: int) -> list[int]:
    """Give the children of a program that open its stores."""
    return [
        stat.pid for stat in procfs.descendants(pid) if b"pki.opener" in Path(f"/proc/{stat.pid}/cmdline").read_bytes()
    ]
