"""What waiting modules answer without being loaded, held to what they answer when they are."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pki.answers import ANSWERS, LASTING

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

CHECKED = """
import attr
from attr.validators import instance_of
@attr.s(slots=True)
class Checked:
    number = attr.ib(validator=attr.validators.instance_of(int))
    either = attr.ib(default="", validator=instance_of((str, bytes)))
"""

CHECKED_START = """
from pki.answers import ANSWERS
from pki.later import loaded_when_used
with loaded_when_used({"attr.converters", "attr.validators", "inspect"}, ANSWERS):
    import checked
from checked import Checked
import attr, sys
def loaded(name): return type(sys.modules[name]) is type(sys)
assert not loaded("attr.validators")
"""

CHECKED_USES = {
    "what is of the type passes, and nothing is loaded for it": """
assert (Checked(1).number, Checked(True, b"").either) == (1, b"")
assert not loaded("attr.validators") and not loaded("attr.converters")
""",
    "what is not of the type is refused in the words of the library": """
attribute = attr.fields(Checked).number
for wrong in ("one", None, 1.0):
    try:
        Checked(wrong)
    except TypeError as error:
        refused = error
    try:
        attr.validators.instance_of(int)(None, attribute, wrong)
    except TypeError as error:
        assert refused.args == error.args and "must be <class 'int'>" in error.args[0]
""",
    "it is equal to the real one, and shows and names what that does": """
import pickle
ours, real = attr.fields(Checked).number.validator, attr.validators.instance_of(int)
assert type(ours) is not type(real) and ours == real == ours and not ours != real and hash(ours) == hash(real)
assert repr(ours) == repr(real) and ours.type is int
assert ours == pickle.loads(pickle.dumps(ours)) and ours != attr.validators.instance_of(str)
assert ours == attr.fields(Checked).number.validator and ours != attr.fields(Checked).either.validator
""",
}

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
    run(tmp_path, START + USES[use], "-S")


@pytest.mark.parametrize("use", CHECKED_USES)
def test_a_validator_that_was_answered_is_as_the_real_one(tmp_path: Path, use: str) -> None:
    (tmp_path / "checked.py").write_text(CHECKED, encoding="utf-8")
    run(tmp_path, CHECKED_START + CHECKED_USES[use])


def run(directory: Path, program: str, *options: str) -> None:
    root = Path(__file__).resolve().parent.parent
    paths = f"import sys; sys.path[:0] = [{str(root)!r}, {str(directory)!r}]\n"
    subprocess.run([sys.executable, *options, "-c", paths + program], check=True, cwd=directory, timeout=60)


def test_the_state_of_a_coroutine_is_told_as_by_the_library() -> None:
    states: list[str] = []
    light = LASTING["inspect"]["getcoroutinestate"]
    assert callable(light)

    def look() -> None:
        states.append(light(coroutine))
        assert states[-1] == inspect.getcoroutinestate(coroutine)

    class Turn:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def main() -> None:
        look()
        await Turn()

    coroutine = main()
    look()
    coroutine.send(None)
    look()
    coroutine.close()
    look()
    assert states == ["CORO_CREATED", "CORO_RUNNING", "CORO_SUSPENDED", "CORO_CLOSED"]
    for word in states:
        assert LASTING["inspect"][word] == getattr(inspect, word)


@given(st.text("\t \nab", max_size=60))
def test_a_text_is_laid_out_as_by_the_library(text: str) -> None:
    light = ANSWERS["textwrap.dedent"](textwrap, lambda _: None)
    assert callable(light)
    assert light(text) == textwrap.dedent(text)


def test_what_a_module_has_as_it_waits_is_its_own_once_it_is_loaded(tmp_path: Path) -> None:
    program = (
        "from pki.later import loaded_when_used\n"
        "with loaded_when_used({'inspect'}): import inspect\n"
        "async def main(): pass\n"
        "coroutine = main(); light = inspect.getcoroutinestate\n"
        "assert light(coroutine) == inspect.CORO_CREATED and type(inspect) is not type(sys); coroutine.close()\n"
        "assert light(coroutine) == inspect.CORO_CLOSED and type(inspect) is not type(sys)\n"
        "assert inspect.isfunction(main) and type(inspect) is type(sys)\n"
        "assert inspect.getcoroutinestate is not light and inspect.getcoroutinestate.__module__ == 'inspect'\n"
    )
    run(tmp_path, program, "-S")
