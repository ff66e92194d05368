"""What can be done to a module's source so that a test should notice: its mutants.

Runs in `.venv-mutation` (`make mutation` makes it). The changes are mutmut's, plus two that it does not make: a
statement that is only called for its effect is left out, and a condition is turned round. Only mutmut's operators are
used, not its runner: that one changes functions inside the process of the tests, and ours run in launchers and waiters
too, so a mutant here is a whole file.

What no test could or should notice is left alone, by rule: annotations and type aliases, docstrings, imports,
decorators (`final`, `slots`), the messages of assertions, `raise AssertionError`, what only runs on Windows, and the
wording of texts: a literal with a blank in it is taken for words to people. That there are words at all stays a mutant.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import libcst as cst
from mutmut.mutation.mutators import mutation_operators  # type: ignore[import-not-found]  # there only


@dataclass(frozen=True, slots=True)
class Mutant:
    """One changed file: `path` below the root, the `line` of the change, the whole source before and after, and the
    difference.
    """

    path: str
    line: int
    original: str
    source: str
    diff: str

    @property
    def change(self) -> str:
        """The changed lines on one line, as the page and the explanations name a mutant."""
        lines = [line[0] + " " + line[1:].strip() for line in self.diff.splitlines() if line[:1] in {"-", "+"}]
        return " ".join(line for line in lines if line.strip("-+ "))


class Module:
    """The mutants of one file, by number; each is written out only when it is asked for."""

    def __init__(self, root: Path, path: str) -> None:
        self.path = path
        self.source = (root / path).read_text(encoding="utf-8")
        self._module = cst.parse_module(self.source)
        self._changes = [(node, changed) for node in _mutable(self._module) for changed in _changed(node)]

    def __len__(self) -> int:
        return len(self._changes)

    def mutant(self, number: int) -> Mutant | None:
        """Give one mutant; None where it says the same as the original, or is no Python."""
        node, changed = self._changes[number]
        whole = self._module.deep_replace(node, changed)
        assert isinstance(whole, cst.Module)
        source = whole.code
        try:
            compiled = compile(source, self.path, "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            return None
        if compiled == compile(self.source, self.path, "exec", dont_inherit=True):
            return None
        lines = difflib.unified_diff(self.source.splitlines(), source.splitlines(), lineterm="", n=0)
        diff = "\n".join(line for line in lines if not line.startswith(("---", "+++")))
        line = diff.split("-", 1)[1].split(",")[0].split(" ")[0]
        return Mutant(self.path, int(line), self.source, source, diff)


def _mutable(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """Walk the nodes that may be changed, each before what is in it."""
    if isinstance(node, cst.Annotation | cst.Decorator | cst.Import | cst.ImportFrom) or _is_left_alone(node):
        return
    if not _is_typing(node):
        yield node
    for child in _children(node):
        yield from _mutable(child)


def _is_left_alone(node: cst.CSTNode) -> bool:
    match node:
        case cst.Expr(value=cst.SimpleString() | cst.ConcatenatedString()):
            return True  # a docstring
        case cst.AnnAssign(annotation=cst.Annotation(annotation=cst.Name(value="TypeAlias"))):
            return True
        case cst.Assign(value=cst.Subscript(value=cst.Name(value="Literal"))):
            return True
        case cst.Raise(exc=cst.Call(func=cst.Name(value="AssertionError"))):
            return True
        case cst.SimpleString() | cst.ConcatenatedString():
            return " " in cst.Module([]).code_for_node(node)
        case _:
            return False


def _is_typing(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value in {"cast", "TypeVar"}


def _children(node: cst.CSTNode) -> Iterable[cst.CSTNode]:
    match node:
        case cst.Assert():
            return [node.test]
        case cst.If() if "win32" in cst.Module([]).code_for_node(node.test):
            return [node.orelse] if node.orelse is not None else []
        case cst.Call() if _is_typing(node):
            return node.args[1:]
        case cst.Assign() if _is_typing(node.value):
            return []
        case _:
            return node.children


def _changed(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    for kind, operator in mutation_operators:
        if isinstance(node, kind):
            yield from operator(node)
    match node:
        case cst.SimpleStatementLine(body=[cst.Expr(value=cst.Call() | cst.Await()) | cst.Raise() | cst.Del()]):
            yield node.with_changes(body=[cst.Pass()])
        case cst.If() | cst.While() | cst.IfExp():
            test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
            yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test))
        case _:
            pass
