"""A server can do all that it may come to do without opening a module."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from oldest import LOADED_WITH_TRIO

from appserver.beforehand import NEEDED_AT_ANY_TIME
from pki.answers import LASTING
from pki.later import UNUSED_BY_TRIO_HERE, UNUSED_OF_TRIO_HERE

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


NOT_FOR_SERVERS = {"trio._repl", "trio._highlevel_serve_listeners", *UNUSED_OF_TRIO_HERE} - {"trio._threads"}
"""Of trio, beside what it has for tests."""

ONLY_FOR_DOCUMENTATION = {"Signature"}
"""What trio asks of `inspect` where its own pages are made."""


ASKED_AS_IT_IS_IMPORTED = {"isasyncgenfunction", "iscoroutinefunction", "isgeneratorfunction"}
"""What an old trio asks of `inspect` then, and never later."""

IMPORTED = """
import sys
from pki.later import import_trio
import_trio()
print(*[name for name in sys.argv[1:] if type(sys.modules.get(name)).__name__ == "module"])
"""


def trio_of_a_server() -> list[ast.Module]:
    """The modules of trio that a server may come to use."""
    root = Path(trio.__file__).parent
    names = {path: ".".join(("trio", *path.relative_to(root).with_suffix("").parts)) for path in root.rglob("*.py")}
    kept = [
        path
        for path, name in names.items()
        if name not in NOT_FOR_SERVERS and not {"_tests", "testing", "_tools"} & set(name.split("."))
    ]
    return [ast.parse(path.read_text(encoding="utf-8")) for path in kept]


def asked_of(module: str, tree: ast.AST) -> set[str]:
    """The attributes of a module that a program asks for."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    return {node.attr for node in found if isinstance(node.value, ast.Name) and node.value.id == module}


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


def test_all_that_trio_asks_of_inspect_is_known_without_it() -> None:
    asked = {name for tree in trio_of_a_server() for name in asked_of("inspect", tree)}
    assert "iscoroutine" in asked
    asked_of_the_real_one = ASKED_AS_IT_IS_IMPORTED if "inspect" in LOADED_WITH_TRIO else set()
    assert asked - ONLY_FOR_DOCUMENTATION - asked_of_the_real_one <= set(LASTING["inspect"])


def test_the_import_of_trio_loads_what_cannot_wait_with_its_release_and_no_more() -> None:
    words = [sys.executable, "-c", IMPORTED, *UNUSED_BY_TRIO_HERE, *UNUSED_OF_TRIO_HERE, "dis"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert set(done.stdout.split()) == LOADED_WITH_TRIO


def test_trio_logs_only_errors_of_async_generators_and_of_instruments() -> None:
    asked = {name for tree in trio_of_a_server() for name in asked_of("logging", tree)}
    assert asked == {"getLogger"}
    loggers = {
        ast.unparse(node.targets[0])
        for tree in trio_of_a_server()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and "getLogger" in ast.unparse(node.value)
    }
    assert loggers == {"ASYNCGEN_LOGGER", "INSTRUMENT_LOGGER"}


def test_a_server_has_neither_async_generators_nor_instruments() -> None:
    for path in [*(ROOT / "appserver").glob("*.py"), *(ROOT / "pki").glob("*.py")]:
        text = path.read_text(encoding="utf-8")
        assert "asynccontextmanager" not in text, path
        assert "instrument" not in text or path.name == "beforehand.py", path
        for function in ast.walk(ast.parse(text)):
            if isinstance(function, ast.AsyncFunctionDef):
                assert not any(isinstance(node, ast.Yield) for node in ast.walk(function)), f"{path}: {function.name}"
