"""Build all packages: `build_packages.py [--suffix TEXT] [--output DIRECTORY]`, as `make packages` does."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contents import COMMON, GUEST, HOST, PREFIX, stage
from deb_packages import make_deb
from environment import make_environment
from release import ROOT, BuildError, this_release
from rpm_packages import make_rpms

TOOLS = {"dpkg-deb": "dpkg", "rpmbuild": "rpm", "python3": "python3"}
"""Programs that the build needs, and the Debian packages that they are in."""


def main() -> int:
    """Build, and say what was made."""
    parser = argparse.ArgumentParser(description="Build the .deb and .rpm packages of this source tree.")
    parser.add_argument("--suffix", default="", help="of the version, such as +next1, to try an upgrade")
    parser.add_argument("--output", default=str(ROOT / "dist"), metavar="DIR", help="(default: %(default)s)")
    options = parser.parse_args()
    began = time.monotonic()
    try:
        need_tools(TOOLS)
        made = build(options.suffix, Path(options.output))
    except BuildError as error:
        print(f"build_packages.py: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"build_packages.py: {error.cmd[0]} ended with {error.returncode}", file=sys.stderr)
        return 1
    for file in made:
        print(f"{file}  {file.stat().st_size / 1e6:.1f} MB")
    print(f"built in {time.monotonic() - began:.0f} s")
    return 0


def build(suffix: str, output: Path, *, quick: bool = False) -> list[Path]:
    """Build the packages into a directory, and give their paths; `quick` ones are larger.

    Raises BuildError, and what a tool fails with.
    """
    release = this_release(suffix)
    output.mkdir(parents=True, exist_ok=True)
    scratch = ROOT / "build"
    scratch.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="packages-", dir=scratch) as directory:
        work = Path(directory)
        trees = {name: work / name for name in (COMMON, HOST, GUEST)}
        for name, tree in trees.items():
            tree.mkdir()
            stage(release, name, tree)
        make_environment(release, PREFIX, trees[COMMON], work)
        debs = [make_deb(release, name, tree, output, quick=quick) for name, tree in trees.items()]
        (work / "rpm").mkdir()
        return [*debs, *make_rpms(release, trees, work / "rpm", output, quick=quick)]


def need_tools(tools: dict[str, str]) -> None:
    """Install the Debian packages of those programs that are missing, where we are root. Raises BuildError."""
    missing = sorted({package for program, package in tools.items() if shutil.which(program) is None})
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise BuildError(f"install {', '.join(missing)} first")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *missing]):
        done = subprocess.run(["apt-get", "-qq", *words], env=quiet, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{', '.join(missing)} cannot be installed: {done.stderr.strip()[-300:]}")


if __name__ == "__main__":
    sys.exit(main())
