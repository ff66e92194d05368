"""The floors of the house: an import goes down, never up or in a circle, and a few rooms know very little."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("pki", "appserver", "appmgr")
"""Lowest first: each may import itself and what stands before it."""

MAX_MODULE_LINES = 500

KNOW_NO_IO = (
    "appserver/protocol.py",
    "appserver/outcome.py",
    "appserver/identity.py",
    "appserver/services.py",
    "appmgr/deploy/appmon.py",
    "appmgr/deploy/modular.py",
    "appmgr/deploy/legacy.py",
    "appmgr/deploy/merging.py",
    "appmgr/deploy/difference.py",
    "appmgr/deploy/pacemaker.py",
)
IO_MODULES = {"trio", "socket", "ssl", "subprocess", "asyncio", "selectors"}

STANDARD_LIBRARY_ONLY = ("appserver/launcher.py", "appserver/waiter.py", "appserver/records.py")
"""What runs in or beside a waiter: its memory is what these import."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))}


def imports_of(module: str) -> set[str]:
    """Every module that `module` imports anywhere in its text, inside functions too."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return set(_imports(ast.parse(path.read_text(encoding="utf-8")), package))


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            base = (above + (node.module or "")).rstrip(".")
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in MODULES)


def ours_below(module: str) -> set[str]:
    """The modules of ours that importing `module` brings along, itself included."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting += [name for name in imports_of(current) if name in MODULES]
    return found


def present(paths: tuple[str, ...]) -> list[str]:
    return [name_of(ROOT / path) for path in paths if (ROOT / path).exists()]


def test_the_import_finder_sees_every_form_of_import() -> None:
    text = "import a.b\nfrom c import d\nfrom . import errors\nfrom .errors import E\ndef f():\n    import g\n"
    assert set(_imports(ast.parse(text), "pki")) == {"a.b", "c", "pki", "pki.errors", "g"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_an_import_goes_down_a_floor_or_stays(module: str) -> None:
    floor = FLOORS.index(module.partition(".")[0])
    too_high = {name for name in imports_of(module) if name.partition(".")[0] in FLOORS[floor + 1 :]}
    assert not too_high, f"{module} reaches up to {sorted(too_high)}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: {name for name in imports_of(module) if name in MODULES} - {module} for module in MODULES}
    while free := [module for module, wanted in graph.items() if not wanted]:
        graph = {module: wanted - set(free) for module, wanted in graph.items() if module not in free}
    # What is left leads into a circle; what nobody left needs is only on the way to it.
    while idle := set(graph) - {name for wanted in graph.values() for name in wanted}:
        graph = {module: wanted for module, wanted in graph.items() if module not in idle}
    assert not graph, f"a circle among {sorted(graph)}"


@pytest.mark.parametrize("module", present(KNOW_NO_IO))
def test_pure_rooms_know_no_io(module: str) -> None:
    for name in ours_below(module):
        assert not {found.partition(".")[0] for found in imports_of(name)} & IO_MODULES, name


@pytest.mark.parametrize("module", present(STANDARD_LIBRARY_ONLY))
def test_what_runs_beside_an_application_is_standard_library_only(module: str) -> None:
    allowed = sys.stdlib_module_names | set(FLOORS)
    for name in ours_below(module):
        foreign = {found.partition(".")[0] for found in imports_of(name)} - allowed
        assert not foreign, f"{name}, which {module} needs, imports {sorted(foreign)}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_is_too_long_to_hold_one_idea(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= MAX_MODULE_LINES


def test_every_module_has_its_place_in_the_plan_of_the_house() -> None:
    plan = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[a-z_0-9]+", plan))
    modules = {path.stem for package in FLOORS for path in (ROOT / package).rglob("*.py")}
    assert modules - {"__init__", "__main__"} <= named


def test_the_manager_knows_nothing_of_the_program_that_deploys_it() -> None:
    """It stands beside the manager on the top floor, in a room of its own, and may use what is there."""
    outside = [module for module in MODULES if not module.startswith("appmgr.deploy")]
    assert len(outside) < len(MODULES)
    for module in outside:
        assert not {name for name in imports_of(module) if name.startswith("appmgr.deploy")}, module
