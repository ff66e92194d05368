"""Write `pins.txt` anew: the newest libraries that go into the packages, and the digests of their wheels.

The packages bring their own environment, so what is in it is decided here and not by the day of the build.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

PINS = Path(__file__).resolve().parent / "pins.txt"

LIBRARIES = ("trio", "cryptography", "psutil")
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")

GLIBC = "2.28"
"""The oldest that the wheels run on, that of RHEL 8 and Debian 10."""

_HEAD = """\
# What goes into the packages beside our own code: exact versions and the digests of their wheels, for Python {first} to
# {last} on {machines}. `make pins` writes the file anew from what the index has.

"""


def platforms(machine: str) -> list[str]:
    """Give the platform tags that a wheel may have, as options of pip."""
    names = (
        f"manylinux_{GLIBC.replace('.', '_')}",
        "manylinux_2_17",
        "manylinux2014",
        "manylinux_2_12",
        "manylinux2010",
    )
    return [word for name in names for word in ("--platform", f"{name}_{machine}")]


def main() -> int:
    """Ask the index for every machine and Python, and write the file."""
    with tempfile.TemporaryDirectory() as directory:
        for machine in MACHINES:
            for python in PYTHONS:
                words = [
                    "--only-binary=:all:",
                    "--implementation=cp",
                    f"--python-version={python}",
                    *platforms(machine),
                ]
                pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
                subprocess.run([*pip, "--dest", directory, *words, *LIBRARIES], check=True)
        digests: dict[str, list[str]] = defaultdict(list)
        for wheel in sorted(Path(directory).iterdir()):
            name, version, _ = wheel.name.split("-", 2)
            digests[f"{name}=={version}"].append(hashlib.sha256(wheel.read_bytes()).hexdigest())
    pins = [" \\\n    ".join([pin, *(f"--hash=sha256:{one}" for one in found)]) for pin, found in digests.items()]
    head = _HEAD.format(first=PYTHONS[0], last=PYTHONS[-1], machines=" and ".join(MACHINES))
    PINS.write_text(head + "\n".join(pins) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
