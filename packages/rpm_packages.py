"""Make the .rpm packages of staged trees."""

from __future__ import annotations

import os
import shutil
import subprocess
import textwrap
from pathlib import Path

from contents import COMMON, GUEST, HOST
from deb_packages import DESCRIPTIONS, SUMMARIES
from release import ROOT, Release, maintainer

TEMPLATE = ROOT / "packages/rpm/cmapp.spec"

_DEBIAN_ONLY = ("usr/share/lintian", "DEBIAN")


def make_rpms(release: Release, trees: dict[str, Path], work: Path, output: Path, *, quick: bool) -> list[Path]:
    """Make all packages, each of the files below its tree. `work` is a directory for what is needed meanwhile."""
    fields = {
        "version": release.version,
        "python": release.python,
        "date": release.date("%a %b %d %Y"),
        "payload": "w1.gzdio" if quick else "w6.xzdio",
        "maintainer": maintainer(),
    }
    for name, short in ((COMMON, "common"), (HOST, "host"), (GUEST, "guest")):
        fields |= {
            f"{short}_summary": SUMMARIES[name].capitalize(),
            f"{short}_description": textwrap.fill(DESCRIPTIONS[name], 76),
        }
        fields |= {f"{short}_tree": str(trees[name]), f"{short}_files": _files(trees[name])}
    text = TEMPLATE.read_text(encoding="utf-8")
    for field, value in fields.items():
        text = text.replace(f"@{field}@", value)
    spec = work / "cmapp.spec"
    spec.write_text(text, encoding="utf-8")
    subprocess.run(
        ["rpmbuild", "-bb", "--quiet", "--define", f"_topdir {work}", "--target", release.machine, str(spec)],
        env={**os.environ, "SOURCE_DATE_EPOCH": str(release.epoch_seconds)},
        check=True,
    )
    made = sorted((work / "RPMS").rglob("*.rpm"))
    return [Path(shutil.copy(file, output)) for file in made]


def _files(tree: Path) -> str:
    """List what the package owns: every file, and of the directories those that are ours alone."""
    found: list[str] = []
    for path in sorted(tree.rglob("*")):
        name = "/" + str(path.relative_to(tree))
        if name.lstrip("/").startswith(_DEBIAN_ONLY):
            continue
        if path.is_dir() and not path.is_symlink():
            if name.startswith(("/opt/cmapp", "/opt/hp", "/usr/lib/ocf/resource.d/cmapp", "/usr/share/doc/")):
                found.append(f'%dir "{name}"')
        elif name.startswith("/usr/share/doc/"):
            found.append(f'%doc "{name}"')
        else:
            found.append(f'"{name}"')
    return "\n".join(found)
