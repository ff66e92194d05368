"""What is built: the release, its date, the machine and the Python that it is for."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

ROOT = Path(__file__).resolve().parent.parent
MAINTAINER = "cmapp maintainers <maintainers@cmapp.invalid>"
"""Of packages whose builder does not say who they are: by its ending an address that nobody has (RFC 2606)."""

OLDEST_PYTHON = (3, 11)
NEWEST_PYTHON = (3, 13)
"""Those that `pins.txt` has wheels for."""

DEB_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def maintainer(environment: Mapping[str, str] = os.environ) -> str:
    """Name who answers for the packages: whoever builds them, where they say so as they do to Debian's own tools."""
    name, address = environment.get("DEBFULLNAME", ""), environment.get("DEBEMAIL", "")
    return f"{name} <{address}>" if name and address else MAINTAINER


class BuildError(Exception):
    """The packages cannot be built here. The text says what is missing."""


@final
@dataclass(frozen=True, slots=True)
class Release:
    """One release for one kind of system.

    `python` is the interpreter of the target, and must be here too, for it compiles what is installed. `python_version`
    is such as `3.11`, `epoch_seconds` the date of every file.
    """

    version: str
    epoch_seconds: int
    machine: str
    python: str
    python_version: str

    def date(self, form: str) -> str:
        """Write the date as `time.strftime` does, in UTC."""
        return time.strftime(form, time.gmtime(self.epoch_seconds))


def this_release(suffix: str = "", python: str = "/usr/bin/python3") -> Release:
    """Give the release of this source tree for systems like this one; `suffix` makes its version a later one.

    Raises BuildError where the packages cannot be for such a system.
    """
    machine = platform.machine()
    if machine not in DEB_MACHINES:
        raise BuildError(f"packages are for {' and '.join(DEB_MACHINES)}, not for {machine!r}")
    try:
        words = [python, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        version = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"the system's own Python, for which packages are built, cannot be run: {error}") from error
    if not OLDEST_PYTHON <= tuple(map(int, version.split("."))) <= NEWEST_PYTHON:
        raise BuildError(f"{python} is Python {version}: packages are for 3.11 to 3.13")
    named = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert named is not None
    return Release(named[1] + suffix, _epoch_seconds(), machine, f"/usr/bin/python{version}", version)


def _epoch_seconds() -> int:
    """Give what SOURCE_DATE_EPOCH says, else the date of the last commit, else of the source itself."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return int(given)
    words = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else int((ROOT / "pyproject.toml").stat().st_mtime)
