"""An application that runs until it is told to end, and says each time it starts."""

from __future__ import annotations

from pathlib import Path

from pair import Guest, python, wait_until

PATIENT = """
import os, sys, time
with open(sys.argv[1] + '.starts', 'a') as file:
    file.write(f'{os.getpid()}\\n')
while not os.path.exists(sys.argv[1] + '.go'):
    time.sleep(0.01)
sys.exit(7)
"""


class Patient:
    """One such application, and its traces. It ends with code 7."""

    def __init__(self, guest: Guest, name: str = "app") -> None:
        self.path = guest.directory / name
        self.service = ("-service", *python(PATIENT), str(self.path))

    def finish(self) -> None:
        Path(f"{self.path}.go").touch()

    def wait_started(self) -> None:
        wait_until(Path(f"{self.path}.starts").exists, "the start of the application's own code")

    def starts(self) -> int:
        return len(Path(f"{self.path}.starts").read_text().splitlines())
