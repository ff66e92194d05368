"""A small Debian with systemd and Python, built once into a directory of the clone that git ignores.

It is kept under a name that its recipe decides, so that a changed recipe builds anew. Nothing is ever changed in it:
`open_copy` gives a copy to work in, which goes with its user.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

BUILD = Path(__file__).resolve().parents[2] / "build"
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
SUITE = "bookworm"

PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "python3-venv", "iproute2", "procps")
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")

TOOLS = {"mmdebstrap": "mmdebstrap", "systemd-nspawn": "systemd-container", "systemd-analyze": "systemd"}
"""Programs that are needed on this machine, and the Debian packages that they are in."""

BUILD_SECONDS = 600
"""Under a minute where the mirror is near."""

COMMAND_SECONDS = 300
"""For a command in a root file system that is not booted; seconds on an idle machine."""

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", "SYSTEMD_PAGER": ""}
"""Of every command inside."""


class CommandFailed(Exception):
    """A command inside ended with another status than 0: what it was and what it said."""


class NoContainer(Exception):
    """No container can be had here; says why. Skip what needs one."""


def install_tools() -> None:
    """Install what is missing, where we are root on a Debian. Raises NoContainer."""
    if os.geteuid() != 0:
        raise NoContainer("a container with systemd wants root")
    packages = [package for program, package in TOOLS.items() if shutil.which(program) is None]
    if not packages:
        return
    if shutil.which("apt-get") is None:
        raise NoContainer(f"please install {', '.join(packages)}: there is no apt-get to do it")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(["apt-get", "-qq", *words], env=quiet, capture_output=True, text=True, check=False)
        if done.returncode:
            raise NoContainer(f"{', '.join(packages)} cannot be installed: {done.stderr.strip()[-300:]}")


def build_root() -> Path:
    """Give the root file system, built if it is not there yet. Do not change anything in it. Raises NoContainer."""
    install_tools()
    recipe = [
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
    ]
    digest = hashlib.sha256(repr([recipe, SUITE, MIRROR]).encode()).hexdigest()[:8]
    root = BUILD / "root" / f"{SUITE}-{digest}"
    root.parent.mkdir(parents=True, exist_ok=True)
    with _locked(root.parent / "lock"):
        if not root.exists():
            _build(recipe, root)
    return root


def _build(recipe: list[str], root: Path) -> None:
    began = time.monotonic()
    making = root.with_suffix(".making")
    shutil.rmtree(making, ignore_errors=True)  # of one that was killed over it
    words = ["mmdebstrap", "--quiet", "--mode=root", *recipe, SUITE, str(making), MIRROR]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=BUILD_SECONDS)
    if done.returncode:
        shutil.rmtree(making, ignore_errors=True)
        raise NoContainer(f"no root file system can be built from {MIRROR}: {done.stderr.strip()[-300:]}")
    (making / "etc/machine-id").write_text("")  # "uninitialized" would make every boot a first one, with presets
    (making / "etc/hostname").write_text("guest\n")  # not this machine's
    making.rename(root)
    print(f"root file system built in {time.monotonic() - began:.0f} s")


@contextlib.contextmanager
def open_copy(root: Path) -> Iterator[Path]:
    """Copy a root file system to work in; it is removed at the end. Some two seconds."""
    copies = BUILD / "copies"
    copies.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        with _locked(BUILD / "copies.lock"):
            _sweep(copies)
            directory = Path(tempfile.mkdtemp(dir=copies))
            held.callback(shutil.rmtree, directory)
            held.enter_context(_locked(directory))  # as long as it is locked, it has a user
        copy = directory / "root"
        subprocess.run(["cp", "--archive", "--reflink=auto", str(root), str(copy)], check=True)
        yield copy


def run_in(root: Path, *words: str) -> str:
    """Run a command in a root file system that is not booted, with processes and a /proc of its own and this machine's
    network; give what it printed. Raises CommandFailed; subprocess.TimeoutExpired after COMMAND_SECONDS.
    """
    apart = ["unshare", "--pid", "--fork", "--kill-child", f"--mount-proc={root}/proc", "chroot", str(root)]
    return printed_by(words, run_to_end([*apart, *words], COMMAND_SECONDS))


def run_to_end(words: Sequence[str], timeout_seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a command with the environment of all inside, whatever its status. Raises subprocess.TimeoutExpired."""
    return subprocess.run(
        words,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_seconds,
    )


def printed_by(words: Sequence[str], done: subprocess.CompletedProcess[str]) -> str:
    """Give what a command that has ended printed. Raises CommandFailed."""
    if done.returncode:
        raise CommandFailed(f"{' '.join(words)}: status {done.returncode}: {done.stdout}{done.stderr}".strip())
    return done.stdout.strip()


def _sweep(copies: Path) -> None:
    """Remove the copies of those who were killed before they could."""
    for directory in copies.iterdir():
        with contextlib.suppress(BlockingIOError), _locked(directory, fcntl.LOCK_NB):
            shutil.rmtree(directory)


@contextlib.contextmanager
def _locked(path: Path, flags: int = 0) -> Iterator[None]:
    if not path.is_dir():
        path.touch()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | flags)
        yield
    finally:
        os.close(fd)
