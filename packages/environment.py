"""The Python environment of the packages, as it will lie in `/opt/cmapp`.

It is a virtual environment without pip: a `pyvenv.cfg`, a link to the system's Python, and a directory of libraries.
Nothing in it holds the path where it was built. The libraries are wheels for the target, chosen by tag and checked by
digest, so that it does not matter which Python runs the build. Its bytecode is compiled here by the target's own Python
and trusted without a look at the sources (PEP 552, unchecked), so that a start reads it and writes nothing, whoever it
is started by, and no file is left behind that no package owns.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from pins import PINS, platforms
from release import ROOT, Release

UNWANTED = ("trio/_tests", "trio/_tools")
"""Of the libraries: for those who work on them."""

_CONFIGURATION = """\
home = /usr/bin
include-system-site-packages = false
version = {version}
"""


def make_environment(release: Release, prefix: str, tree: Path, work: Path) -> None:
    """Make the environment at `prefix` below `tree`; `work` is a directory for what is needed meanwhile."""
    home = tree / prefix.lstrip("/")
    libraries = home / f"lib/python{release.python_version}/site-packages"
    libraries.mkdir(parents=True)
    (home / "bin").mkdir(exist_ok=True)
    (home / "bin/python3").symlink_to(release.python)
    (home / "pyvenv.cfg").write_text(_CONFIGURATION.format(version=release.python_version), encoding="ascii")
    wheel = _wheel(release, work)
    _pip(
        "install",
        *("--target", str(libraries), "--no-compile", "--no-deps", "--only-binary=:all:", "--implementation=cp"),
        *(f"--python-version={release.python_version}", *platforms(release.machine)),
        *("--require-hashes", "--requirement", str(PINS)),
    )
    shutil.rmtree(libraries / "bin")  # scripts that name the build's Python
    _pip("install", "--target", str(libraries), "--no-compile", "--no-deps", "--no-index", str(wheel))
    shutil.rmtree(libraries / "bin")
    for directory in UNWANTED:
        shutil.rmtree(libraries / directory)
    for pattern in ("*.dist-info/RECORD", "cmapp-*.dist-info/direct_url.json"):
        for record in libraries.glob(pattern):
            record.unlink()  # of pip, which does not look after this environment; they tell of what was removed
    _compile(release, tree, libraries)


def _wheel(release: Release, work: Path) -> Path:
    """Build our own wheel from a copy of the sources that has the release's version."""
    copy = work / "source"
    for name in ("appmgr", "appserver", "pki"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, copy / name)
    _set_version(copy / "pyproject.toml", "version", release.version)
    _set_version(copy / "appserver/version.py", "VERSION", release.version)
    _pip("wheel", "--no-deps", "--wheel-dir", str(work), str(copy))
    return next(work.glob("cmapp-*.whl"))


def _set_version(file: Path, name: str, version: str) -> None:
    text = file.read_text(encoding="utf-8")
    file.write_text(re.sub(rf'^{name} = ".*"$', f'{name} = "{version}"', text, flags=re.MULTILINE), encoding="utf-8")


def _compile(release: Release, tree: Path, libraries: Path) -> None:
    words = [release.python, "-I", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    subprocess.run([*words, "-s", str(tree), "-p", "/", str(libraries)], check=True)


def _pip(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words], check=True)
