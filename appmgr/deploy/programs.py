"""Programs of the host that the closing questions offer: the editor, the cluster's commands, copying.

They take over the terminal, so that they can ask questions of their own, and run for as long as whoever sits there
lets them. No shell is involved.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

from appmgr.deploy.errors import DeployError
from appmgr.deploy.packagefile import reason

SEARCH_DIRECTORIES: Final = (
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
    "/usr/local/cmcluster/bin",
    "/opt/cmcluster/bin",
)
"""Looked through behind PATH, which root has often without them."""

CAPTURED_SECONDS: Final = 60.0
"""For a program that only answers a question. A cluster that elects a leader keeps one waiting for some seconds."""


def find_program(name: str, environment: Mapping[str, str]) -> str | None:
    """Give the path of a program, None where there is none."""
    directories = [*environment.get("PATH", "").split(os.pathsep), *SEARCH_DIRECTORIES]
    return shutil.which(name, path=os.pathsep.join(directory for directory in directories if directory))


def editor(environment: Mapping[str, str]) -> list[str]:
    """Give the words that start the editor: VISUAL, EDITOR, or vi."""
    try:
        words = shlex.split(environment.get("VISUAL") or environment.get("EDITOR") or "vi")
    except ValueError:
        words = []
    return words or ["vi"]


def run_program(words: Sequence[str]) -> int:
    """Run a program on our own terminal to its end, and give its status, negative for a signal.

    Raises `DeployError` where it cannot be started. What interrupts us in the meantime has interrupted it, too.
    """
    try:
        return subprocess.run(words, check=False).returncode
    except OSError as error:
        raise DeployError(f"cannot run {words[0]!r}: {reason(error)}") from error


def capture(words: Sequence[str], text: str | None = None) -> str:
    """Run a program that is given `text` and answers on its standard output. Raises `DeployError` where it fails."""
    try:
        done = subprocess.run(
            words,
            check=False,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=CAPTURED_SECONDS,
        )
    except OSError as error:
        raise DeployError(f"cannot run {words[0]!r}: {reason(error)}") from error
    except subprocess.TimeoutExpired as error:
        raise DeployError(f"{words[0]} did not end within {CAPTURED_SECONDS:g} s") from error
    if done.returncode:
        complaint = " ".join((done.stderr or done.stdout).split())
        raise DeployError(f"{words[0]} failed with {done.returncode}: {complaint:.300}")
    return done.stdout
