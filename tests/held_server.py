"""A server that can be held where no test reaches it from outside, by its environment.

CMAPP_TEST_LOOK_UP: a look for a program touches this path with `.held` behind it, and goes on when the path is there.
CMAPP_TEST_DRAIN_SECONDS: what the goodbyes may take.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from appserver import commands, listener, starting
from appserver.cli import main

LOOK_UP, DRAIN_SECONDS = "CMAPP_TEST_LOOK_UP", "CMAPP_TEST_DRAIN_SECONDS"


def hold_look_ups(path: str) -> None:
    resolve_command = commands.resolve_command

    def held(*words: object) -> commands.Program:
        Path(f"{path}.held").touch()
        while not os.path.exists(path):
            time.sleep(0.01)
        return resolve_command(*words)  # type: ignore[arg-type]

    starting.resolve_command = held  # type: ignore[attr-defined, assignment]


if __name__ == "__main__":
    if LOOK_UP in os.environ:
        hold_look_ups(os.environ[LOOK_UP])
    if DRAIN_SECONDS in os.environ:
        listener.DRAIN_SECONDS = float(os.environ[DRAIN_SECONDS])
    sys.exit(main())
