"""Functions that a library writes as text, compiled when they are called and not when they are written.

attrs writes four methods for each class, as source, and has Python compile them: for the classes of trio some forty
times at its import, a twentieth of a manager's start, and most of them (how an instance is shown, whether two are
equal) are never called. Here each is a function that compiles its own text at its first call, and is from then on what
attrs would have had: the same function object with the code, the defaults and the line numbers of the text. (Name and
docstring are what attrs makes them.)

What is replaced is no function of attrs but a name that its module `attr._make` looks up, `compile`, while trio is
being imported. A version that has no such module, or does not look that name up there, is left as it is; a text that is
anything else than functions at its outermost level is compiled at once. The difference that remains is what one sees
of a function that was not called yet: its parameters are any.

Measured (Python 3.11, trio 0.35, attrs 26.1): 4.5 of 93 ms of processor time; of 92 functions a manager calls 23.
"""

from __future__ import annotations

import builtins
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Final, final

_FUNCTION: Final = re.compile(r"^def (\w+)", re.MULTILINE)

_NO_FUNCTION: Final = re.compile(r"^(?!def |[ )]|$)", re.MULTILINE)
"""A line at the outermost level that neither begins a function nor goes on with its parameters."""


@contextmanager
def compiled_when_called(module: str) -> Iterator[None]:
    """Have functions whose text this module compiles in the context be compiled at their first call.

    Nothing happens where the module is not imported yet. Not for several threads at once.
    """
    if module not in sys.modules:
        yield
        return
    names = vars(sys.modules[module])
    before = names.get("compile", compile)
    names["compile"] = _compile
    try:
        yield
    finally:
        if before is compile:
            del names["compile"]
        else:
            names["compile"] = before


def _compile(source: object, filename: str, mode: str, **more: object) -> CodeType:
    """Give code that makes the functions of a text, which are not compiled; for any other text what `compile` gives."""
    if more or mode != "exec" or not isinstance(source, str) or _NO_FUNCTION.search(source):
        code: CodeType = builtins.compile(source, filename, mode, **more)  # type: ignore[call-overload]
        return code

    def make(of_module: dict[str, object], made: dict[str, object]) -> None:
        begins = [found.start() for found in _FUNCTION.finditer(source)]
        for begin, end in zip(begins, [*begins[1:], len(source)], strict=True):
            text = _Text(source[begin:end], filename, source.count("\n", 0, begin))
            made[text.function_name] = text.function(of_module)

    return _MAKING.replace(co_consts=tuple(make if each == _MAKER else each for each in _MAKING.co_consts))


_MAKER: Final = "the maker"

_MAKING: Final = compile(f"made = {_MAKER!r}; made(globals(), locals()); del made", __name__, "exec")
"""What attrs executes in place of its text, with the maker for that word: a constant may be any object."""


def _unmade(*values: object, __text__: _Text, **named: object) -> object:
    return __text__.compile()(*values, **named)


@final
class _Text:
    """The text of one function."""

    __slots__ = ("_filename", "_function", "_lines_before", "_source")

    def __init__(self, source: str, filename: str, lines_before: int) -> None:
        self._source = source
        self._filename = filename
        self._lines_before = lines_before

    @property
    def function_name(self) -> str:
        found = _FUNCTION.match(self._source)
        assert found is not None
        return found[1]

    def function(self, of_module: dict[str, object]) -> FunctionType:
        """Give the function, which is compiled when it is called."""
        self._function = FunctionType(_unmade.__code__, of_module, self.function_name)
        self._function.__qualname__ = self.function_name
        self._function.__kwdefaults__ = {"__text__": self}
        return self._function

    def compile(self) -> FunctionType:
        """Make the function what its text says, and give it.

        Another thread may call it in the middle of this, in its old shape or the new one; so both find what they need,
        and doing it twice does no harm.
        """
        made: dict[str, FunctionType] = {}
        lines = "\n" * self._lines_before
        exec(builtins.compile(lines + self._source, self._filename, "exec"), self._function.__globals__, made)  # noqa: S102
        found = made[self.function_name]
        self._function.__defaults__ = found.__defaults__
        self._function.__kwdefaults__ = {**(found.__kwdefaults__ or {}), "__text__": self}
        self._function.__code__ = found.__code__
        self._function.__kwdefaults__ = found.__kwdefaults__
        return self._function
