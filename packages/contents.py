"""Which file of the source tree goes into which package, and where to.

Three packages: the host and the guest have a package each, because neither needs the other's program, and a guest that
has no manager cannot be misled to run one. What both need, the Python environment and the tool for keys, is in a third,
`cmapp-common`: the two would otherwise own the same files and could not be installed on one machine.
"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import completions
import man_pages
from release import ROOT, Release

COMMON, HOST, GUEST = "cmapp-common", "cmapp-host", "cmapp-guest"

PREFIX = "/opt/cmapp"
"""The Python environment. Other software on such hosts has a top-level package `pki` as well, so nothing of ours is on
the system's own path, and nothing of the system's is on ours."""

PROGRAMS = {
    "cmapppki": (COMMON, "pki.cli"),
    "cmappmgr": (HOST, "appmgr.cli"),
    "cmdeployvpkg": (HOST, "appmgr.deploy.cli"),
    "cmappserver": (GUEST, "appserver.cli"),
}
"""Each with its package and the module whose `main` it is."""

DOCUMENTS = ("README.md", "CHANGELOG.md", "SECURITY.md", "docs")

_SCRIPT = """\
#!{prefix}/bin/python3 -I
import sys

from {module} import main

sys.exit(main())
"""


def stage(release: Release, name: str, tree: Path) -> None:
    """Put all files of a package below `tree`, but for the Python environment itself and what a format adds."""
    for program, (package, module) in PROGRAMS.items():
        if package == name:
            _stage_program(tree, program, module)
    _stage_pages(release, name, tree)
    _stage_completions(name, tree)
    match name:
        case "cmapp-common":
            _stage_documents(tree)
        case "cmapp-host":
            for agent in sorted((ROOT / "packages/ocf").glob("cmapp*")):
                _copy(f"packages/ocf/{agent.name}", tree / "usr/lib/ocf/resource.d/cmapp" / agent.name, mode=0o755)
            _stage_units("cmappmgr", tree)
            _copy("packages/examples/cmappmgr.conf", tree / f"usr/share/doc/{name}/examples/cmappmgr.conf")
        case "cmapp-guest":
            (tree / "opt/hp/cmappserver").mkdir(parents=True)
            _stage_units("cmappserver", tree)
            _copy("packages/examples/cmappserver.conf", tree / f"usr/share/doc/{name}/examples/cmappserver.conf")


def _stage_program(tree: Path, program: str, module: str) -> None:
    script = tree / PREFIX.lstrip("/") / "bin" / program
    _write(script, _SCRIPT.format(prefix=PREFIX, module=module), mode=0o755)
    link = tree / "usr/sbin" / program
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(f"{PREFIX}/bin/{program}")


def _stage_pages(release: Release, name: str, tree: Path) -> None:
    for page, text in man_pages.pages(release.epoch_seconds).items():
        program, _, section = page.rpartition(".")
        if PROGRAMS[program.removesuffix(".conf")][0] == name:
            file = tree / f"usr/share/man/man{section[0]}/{page}.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(gzip.compress(text.encode(), mtime=0))


def _stage_completions(name: str, tree: Path) -> None:
    for path, text in completions.completions().items():
        shell, _, file = path.partition("/")
        if PROGRAMS[file.lstrip("_")][0] == name:
            where = {"bash": "bash-completion/completions", "zsh": "zsh/vendor-completions"}[shell]
            _write(tree / "usr/share" / where / file, text)


def _stage_documents(tree: Path) -> None:
    for name in DOCUMENTS:
        source = ROOT / name
        for file in sorted(source.rglob("*.md")) if source.is_dir() else [source]:
            _copy(str(file.relative_to(ROOT)), tree / "usr/share/doc/cmapp-common" / file.relative_to(ROOT))


def _stage_units(program: str, tree: Path) -> None:
    for unit in sorted((ROOT / "packages/systemd").glob(f"{program}*.*")):
        _copy(str(unit.relative_to(ROOT)), tree / "usr/lib/systemd/system" / unit.name)


def _copy(source: str, target: Path, mode: int = 0o644) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / source, target)
    target.chmod(mode)


def _write(target: Path, text: str, mode: int = 0o644) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    target.chmod(mode)
