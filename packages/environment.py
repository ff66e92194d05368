"""The Python environment of the packages, as it will lie in `/opt/cmapp`.

It is a virtual environment without pip: a `pyvenv.cfg`, a link to the system's Python, and a directory of libraries.
Nothing in it holds the path where it was built. The libraries are wheels for the target, chosen by tag and checked by
digest, so that it does not matter which Python runs the build. Its bytecode is compiled here by the target's own Python
and trusted without a look at the sources (PEP 552, unchecked), so that a start reads it and writes nothing, whoever it
is started by, and no file is left behind that no package owns.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pins import PINS, platforms
from release import ROOT, Release

UNWANTED = ("bin", "trio/_tests", "trio/_tools", "*.dist-info/RECORD", "cmapp-*.dist-info/direct_url.json")
"""Scripts that name the Python of the build, what is for those who work on a library, and what pip notes for itself: it
does not look after this environment."""

_CONFIGURATION = """\
home = /usr/bin
include-system-site-packages = false
version = {version}
"""


def make_environment(release: Release, prefix: str, tree: Path, work: Path) -> None:
    """Make the environment at `prefix` below `tree`; `work` is a directory for what is needed meanwhile."""
    home = tree / prefix.lstrip("/")
    libraries = home / f"lib/python{release.python_version}/site-packages"
    shutil.copytree(_libraries(release), libraries)
    (home / "bin").mkdir(exist_ok=True)
    (home / "bin/python3").symlink_to(release.python)
    (home / "pyvenv.cfg").write_text(_CONFIGURATION.format(version=release.python_version), encoding="ascii")
    wheel = _wheel(release, work)
    _pip("install", "--target", str(libraries), "--no-compile", "--no-deps", "--no-index", str(wheel))
    _remove_unwanted(libraries)
    _compile(release, tree, libraries)


def _libraries(release: Release) -> Path:
    """Give the directory with the libraries of others, fetched where it is not there from an earlier build."""
    told = f"{PINS.read_text(encoding='utf-8')} {release.python_version} {release.machine} {UNWANTED}"
    found = ROOT / "build" / f"libraries-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    if not found.exists():
        making = Path(tempfile.mkdtemp(prefix="libraries-", dir=found.parent))
        _pip(
            "install",
            *("--target", str(making), "--no-compile", "--no-deps", "--only-binary=:all:", "--implementation=cp"),
            *(f"--python-version={release.python_version}", *platforms(release.machine)),
            *("--require-hashes", "--requirement", str(PINS)),
        )
        _remove_unwanted(making)
        with contextlib.suppress(OSError):  # another build was faster
            making.rename(found)
        shutil.rmtree(making, ignore_errors=True)
    return found


def _remove_unwanted(libraries: Path) -> None:
    for pattern in UNWANTED:
        for path in libraries.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


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
