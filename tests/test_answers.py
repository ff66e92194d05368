"""What waiting modules answer without being loaded, held to what they answer when they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = """
import ast, logging, platform
from logging import getLogger

LOGGER, ROOT = logging.getLogger("a.library"), getLogger()
WORD = platform.python_implementation()

class Finder(ast.NodeVisitor):
    def __init__(self, wanted): self.wanted, self.found = wanted, []
    def visit_Name(self, node):
        if node.id == self.wanted: self.found.append(node)
        self.generic_visit(node)
"""

START = """
import sys
assert not {"ast", "logging", "platform"} & set(sys.modules)
from pki.answers import ANSWERS
from pki.later import loaded_when_used
with loaded_when_used({"ast", "logging", "platform"}, ANSWERS):
    import library
def loaded(name): return type(sys.modules[name]) is type(sys)
assert not any(map(loaded, ("ast", "logging")))
"""

USES = {
    "a logger is the one of its name from its first use on": """
import logging, io
stream = io.StringIO()
logging.basicConfig(stream=stream, format="%(name)s %(levelname)s %(message)s")
real = logging.getLogger("a.library")
real.setLevel("INFO")
assert isinstance(library.LOGGER, logging.Logger)
library.LOGGER.info("said %d", 1)
library.LOGGER.propagate = False
assert real.propagate is False and vars(real) is vars(library.LOGGER)
library.LOGGER.info("lost")
library.ROOT.warning("from above")
assert stream.getvalue() == "a.library INFO said 1\\nroot WARNING from above\\n"
""",
    "a logger is loaded by its first use": """
assert library.LOGGER.name == "a.library"
assert loaded("logging") and type(library.LOGGER) is sys.modules["logging"].Logger
""",
    "an attribute of a logger that is set first is set on the one of its name": """
library.LOGGER.disabled = True
import logging
assert logging.getLogger("a.library").disabled is True
""",
    "the module itself answers after the import": """
import ast, logging, platform
from ast import NodeVisitor
assert logging.getLogger("a.library") is logging.getLogger("a.library")
assert NodeVisitor is ast.NodeVisitor and NodeVisitor.__module__ == "ast"
""",
    "a class has its real base once the module is loaded": """
import ast
tree = ast.parse("a + b * a")
assert library.Finder.__mro__ == (library.Finder, ast.NodeVisitor, object)
finder = library.Finder("a")
finder.visit(tree)
assert len(finder.found) == 2 and isinstance(finder, ast.NodeVisitor)
""",
    "a class has its real base when a method of it is looked up": """
finder = library.Finder("a")
assert finder.wanted == "a" and not loaded("ast")
finder.generic_visit
assert loaded("ast") and library.Finder.__mro__[1] is sys.modules["ast"].NodeVisitor
try:
    finder.nothing_such
except AttributeError as error:
    assert "nothing_such" in str(error)
else:
    raise AssertionError
""",
    "the name of the implementation is that of the module": """
import platform
assert library.WORD == platform.python_implementation() and platform.python_version() and loaded("platform")
""",
}


@pytest.mark.parametrize("use", USES)
def test_what_was_answered_is_as_from_the_module(tmp_path: Path, use: str) -> None:
    (tmp_path / "library.py").write_text(LIBRARY, encoding="utf-8")
    root = Path(__file__).resolve().parent.parent
    paths = f"import sys; sys.path[:0] = [{str(root)!r}, {str(tmp_path)!r}]\n"
    subprocess.run([sys.executable, "-S", "-c", paths + START + USES[use]], check=True, cwd=tmp_path, timeout=60)
