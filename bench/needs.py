"""What the benchmark needs beside Python: OpenSSH's client and server, and a JDK without a screen.

As root on a machine with apt they are installed, quietly. No daemon is started by that: a benchmark that opens port 22
would be a surprise, so while the packages are unpacked a policy says no, where the machine has none of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator

from bench.processes import BenchError

POLICY = "/usr/sbin/policy-rc.d"
"""What a Debian system asks before a package may start its service; 101 forbids it."""

NEEDS = {"ssh": "openssh-client", "sshd": "openssh-server", "javac": "default-jdk-headless"}
"""Each program, and the package of Debian and Ubuntu that has it."""

_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def install() -> None:
    """Install what is missing, where we may. Raises BenchError naming what is missing where we may not."""
    missing = [package for program, package in NEEDS.items() if shutil.which(program, path=_PATH) is None]
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise BenchError(f"{', '.join(missing)} must be installed first; as root, and with apt, make bench does it")
    print(f"installing {', '.join(missing)}", flush=True)
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    with _no_services():
        for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *missing]):
            done = subprocess.run(
                ["apt-get", *words], env=environment, capture_output=True, text=True, errors="replace", check=False
            )
            if done.returncode != 0:
                raise BenchError(f"apt-get {words[0]} failed: {done.stderr.strip()[-500:]}")


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    try:
        fd = os.open(POLICY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755)
    except FileExistsError:
        yield
        return
    try:
        with open(fd, "w", encoding="ascii") as file:
            file.write("#!/bin/sh\nexit 101\n")
        yield
    finally:
        os.unlink(POLICY)
