"""Make a .deb of a staged tree."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import textwrap
from pathlib import Path

from contents import COMMON, GUEST, HOST
from release import DEB_MACHINES, ROOT, Release, maintainer

TEMPLATES = ROOT / "packages/deb"

SUMMARIES = {
    COMMON: "Python environment and key tool of cmapp",
    HOST: "watch an application inside a guest from its cluster host",
    GUEST: "run applications in a guest for its cluster host",
}

DESCRIPTIONS = {
    COMMON: (
        "The environment in /opt/cmapp that the programs of cmapp-host and cmapp-guest run in, apart from that of the "
        "system, the tool for keys, cmapppki, and the documentation."
    ),
    HOST: (
        "cmappmgr has the server in a guest run an application, watches it, and ends with its exit status, so that a "
        "cluster restarts it or moves the guest. With cmdeployvpkg, which writes it into the packages of Serviceguard, "
        "and an agent for Pacemaker."
    ),
    GUEST: (
        "cmappserver starts and watches the applications of a guest for the managers on its hosts. They outlive it, "
        "and their exit statuses are kept."
    ),
}

_CONTROL = """\
Package: {name}
Version: {version}
Section: admin
Priority: optional
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {kibibytes}
Depends: {depends}
Description: {summary}
{description}
"""

_CHANGELOG = """\
cmapp ({version}) unstable; urgency=medium

  * See CHANGELOG.md in the documentation of cmapp-common.

 -- {maintainer}  {date}
"""

_COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: cmapp
Source: the source tree of cmapp, from which `make packages` made this

Files: *
Copyright: {year} the cmapp maintainers
License: Apache-2.0
 On Debian systems, the licence is in /usr/share/common-licenses/Apache-2.0.
 {libraries}
"""

_LIBRARIES = (
    "The libraries below /opt/cmapp have licences of their own, which lie in their *.dist-info directories there: "
    "Apache-2.0, BSD, MIT and PSF."
)


def deb_version(release: Release) -> str:
    """Give the version of the packages, with the number of the packaging."""
    return f"{release.version}-1"


def make_deb(release: Release, name: str, tree: Path, output: Path, *, quick: bool) -> Path:
    """Make the package `name` of all files below `tree`, to which documents and control files are added."""
    fields = {
        "name": name,
        "version": deb_version(release),
        "architecture": DEB_MACHINES[release.machine] if name == COMMON else "all",
        "maintainer": maintainer(),
        "date": release.date("%a, %d %b %Y %H:%M:%S +0000"),
        "year": release.date("%Y"),
        "summary": SUMMARIES[name],
        "description": _folded(DESCRIPTIONS[name]),
        "libraries": _folded(_LIBRARIES).strip() if name == COMMON else "",
        "depends": _depends(release, name),
    }
    documents = tree / "usr/share/doc" / name
    documents.mkdir(parents=True, exist_ok=True)
    (documents / "changelog.Debian.gz").write_bytes(gzip.compress(_CHANGELOG.format(**fields).encode(), mtime=0))
    (documents / "copyright").write_text(_COPYRIGHT.format(**fields).rstrip() + "\n", encoding="utf-8")
    if (TEMPLATES / f"{name}.lintian-overrides").exists():
        overrides = tree / "usr/share/lintian/overrides" / name
        overrides.parent.mkdir(parents=True)
        shutil.copyfile(TEMPLATES / f"{name}.lintian-overrides", overrides)
        overrides.chmod(0o644)
    _write_control(tree, name, fields)
    _settle(tree, release.epoch_seconds)
    file = output / f"{name}_{fields['version']}_{fields['architecture']}.deb"
    subprocess.run(
        [
            "dpkg-deb",
            "--root-owner-group",
            *(["-Zgzip", "-z1"] if quick else ["-Zxz"]),
            "--build",
            str(tree),
            str(file),
        ],
        env={**os.environ, "SOURCE_DATE_EPOCH": str(release.epoch_seconds)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return file


def _depends(release: Release, name: str) -> str:
    if name == COMMON:
        # The wheels are built for this minor version of Python, and ask for no newer glibc than this.
        return f"python{release.python_version}, libc6 (>= 2.28)"
    return f"{COMMON} (= {deb_version(release)})"


def _write_control(tree: Path, name: str, fields: dict[str, str]) -> None:
    files = [path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink()]
    # As Debian counts: each file in whole kibibytes, and one for a directory or a link.
    counted = sum(-(-path.stat().st_size // 1024) for path in files) + len(list(tree.rglob("*"))) - len(files)
    sums = "".join(f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.relative_to(tree)}\n" for path in files)  # noqa: S324
    control = tree / "DEBIAN"
    control.mkdir()
    (control / "control").write_text(_CONTROL.format(**fields, kibibytes=counted), encoding="utf-8")
    (control / "md5sums").write_text(sums, encoding="utf-8")
    for script in ("postinst", "prerm", "postrm"):
        source = TEMPLATES / f"{name}.{script}"
        if source.exists():
            shutil.copyfile(source, control / script)
            (control / script).chmod(0o755)


def _settle(tree: Path, epoch_seconds: int) -> None:
    """Give every file the date of the release and a mode that does not depend on who builds."""
    for path in [tree, *tree.rglob("*")]:
        if not path.is_symlink():
            executable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if executable else 0o644)
        os.utime(path, (epoch_seconds, epoch_seconds), follow_symlinks=False)


def _folded(text: str) -> str:
    return "\n".join(f" {line}" for line in textwrap.wrap(text, 76))
