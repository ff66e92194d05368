"""A server can do all that it may come to do without opening a module."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from appserver.beforehand import NEEDED_AT_ANY_TIME

ROOT = Path(__file__).parent.parent

BEFORE_IT_LISTENS = {"appserver/cli.py", "appserver/options.py", "appserver/platforms.py"}
"""What these import in functions, they do before a server listens, or in its place."""

ELSEWHERE = {"_winapi", "msvcrt"}
"""Of Windows, where they are part of the interpreter."""

LOADED = """
import sys
from pki.later import import_trio
import_trio()
from appserver.beforehand import load_what_may_be_needed
load_what_may_be_needed()
waiting = [name for name in sys.argv[1:] if type(sys.modules.get(name)).__name__ != "module"]
assert not waiting, waiting
"""


def imported_in_functions(path: Path) -> set[str]:
    found: set[str] = set()
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    found.update(each.name for each in node.names)
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found.add(node.module)
    return found


def test_what_a_server_imports_in_functions_is_loaded_before_it_listens() -> None:
    modules = [path for path in (ROOT / "appserver").glob("*.py") if f"appserver/{path.name}" not in BEFORE_IT_LISTENS]
    found = {name for path in [*modules, ROOT / "pki" / "names.py"] for name in imported_in_functions(path)}
    assert "shlex" in found
    assert found - ELSEWHERE <= set(NEEDED_AT_ANY_TIME)


@pytest.mark.skipif(sys.platform == "win32", reason="some of them are not there")
def test_nothing_of_it_waits_any_more() -> None:
    subprocess.run([sys.executable, "-c", LOADED, *NEEDED_AT_ANY_TIME], cwd=ROOT, check=True, timeout=60)
