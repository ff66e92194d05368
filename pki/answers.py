"""What modules answer to libraries that are being imported, without being loaded (see `later`).

Some libraries use a module as soon as they have imported it, for a thing that needs next to nothing of it: they make a
logger that hardly anybody logs to, derive a class that nobody makes, ask for a word, lay out a docstring, have a value
checked that is always right. Only what the documentation of a module promises is answered, whichever library asks. Any
other name loads the module, and once the import is over so does every one, but for `LASTING`.

Measured (Python 3.11, trio 0.35): 1.4 of 14 MiB of a manager.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from types import AsyncGeneratorType, CoroutineType, ModuleType
from typing import Final, TypeAlias, final

Loaded: TypeAlias = Callable[[ModuleType], None]
"""Told of a module that it is loaded now."""

Answer: TypeAlias = Callable[[ModuleType, Callable[[Loaded], None]], object]
"""Gives what a name of a module that waits stands for; it may ask to be told when the module is loaded."""

_lock = threading.RLock()


@final
class _Logger:
    """A logger that is made when it is first used: from then on it shares all it has with the one of its name."""

    def __init__(self, module: ModuleType, name: str | None = None) -> None:
        object.__setattr__(self, "__dict__", {"module": module, "name": name})

    def __getattribute__(self, attribute: str) -> object:
        with _lock:
            if type(self) is _Logger:  # no other thread was first
                own: dict[str, object] = object.__getattribute__(self, "__dict__")
                module, name = own["module"], own["name"]
                assert isinstance(module, ModuleType)
                real: object = module.getLogger(name)
                if attribute == "__class__":  # `isinstance` would not hear of a class that changes as it asks
                    return type(real)
                object.__setattr__(self, "__dict__", vars(real))
                object.__setattr__(self, "__class__", type(real))
        return getattr(self, attribute)

    def __setattr__(self, attribute: str, value: object) -> None:
        self.__getattribute__("name")
        setattr(self, attribute, value)


def _get_logger(module: ModuleType, _: Callable[[Loaded], None]) -> object:
    return partial(_Logger, module)


def _node_visitor(module: ModuleType, when_loaded: Callable[[Loaded], None]) -> object:
    """Give a class to derive from: what was derived gets the real one in its place when the module is loaded, at the
    latest when a method of it is looked up.
    """

    class NodeVisitor:
        def __getattr__(self, name: str) -> object:
            assert module.NodeVisitor  # loads it, so that this class is no base of ours any more
            return getattr(self, name)

    def exchange(loaded: ModuleType) -> None:
        for derived in NodeVisitor.__subclasses__():
            derived.__bases__ = tuple(loaded.NodeVisitor if base is NodeVisitor else base for base in derived.__bases__)

    when_loaded(exchange)
    return NodeVisitor


@final
class _InstanceOf:
    """A validator that lets pass what is of a type; for everything else it asks the real one."""

    def __init__(self, module: ModuleType, type: type | tuple[type, ...]) -> None:  # noqa: A002  (its name in attrs)
        self._module = module
        self._type = type

    def __call__(self, instance: object, attribute: object, value: object) -> None:
        if not isinstance(value, self._type):
            self._real()(instance, attribute, value)

    def __getattr__(self, name: str) -> object:
        return getattr(self._real(), name)

    def __repr__(self) -> str:
        return repr(self._real())

    def __eq__(self, other: object) -> bool:
        return bool(self._real() == (other._real() if isinstance(other, _InstanceOf) else other))

    def __hash__(self) -> int:
        return hash(self._real())

    def __reduce__(self) -> tuple[object, ...]:
        return self._module.instance_of, (self._type,)

    def _real(self) -> Callable[[object, object, object], None]:
        real: Callable[[object, object, object], None] = self._module.instance_of(self._type)
        return real


def _instance_of(module: ModuleType, _: Callable[[Loaded], None]) -> object:
    return partial(_InstanceOf, module)


def _dedent(_: ModuleType, __: Callable[[Loaded], None]) -> object:
    return _dedented


def _dedented(text: str) -> str:
    """Take from the lines of a text the blanks with which all of them begin, as `textwrap.dedent` does."""
    lines = [line if line.strip(" \t") else "" for line in text.split("\n")]
    filled = sorted(line for line in lines if line) or [""]
    first, last = filled[0], filled[-1]  # what these two begin with, all do
    width = 0
    while first[width : width + 1] in {" ", "\t"} and first[width] == last[width]:
        width += 1
    return "\n".join(line[width:] for line in lines)


def _python_implementation(_: ModuleType, __: Callable[[Loaded], None]) -> object:
    return lambda: "CPython"


ANSWERS: Final[dict[str, Answer]] = {
    "ast.NodeVisitor": _node_visitor,
    "attr.validators.instance_of": _instance_of,
    "logging.getLogger": _get_logger,
    "textwrap.dedent": _dedent,
}
"""By the full name of what is asked for."""

if sys.implementation.name == "cpython":
    ANSWERS["platform.python_implementation"] = _python_implementation


def _coroutine_state(coroutine: CoroutineType[object, object, object]) -> str:
    """Give the word for the state of a coroutine, as `inspect.getcoroutinestate` does."""
    if coroutine.cr_running:
        return "CORO_RUNNING"
    if getattr(coroutine, "cr_suspended", False):  # from Python 3.11
        return "CORO_SUSPENDED"
    if coroutine.cr_frame is None:
        return "CORO_CLOSED"
    if sys.version_info < (3, 11) and coroutine.cr_frame.f_lasti != -1:
        return "CORO_SUSPENDED"
    return "CORO_CREATED"


def _is_coroutine(found: object) -> bool:
    """Tell what `inspect.iscoroutine` tells."""
    return isinstance(found, CoroutineType)


def _is_async_generator(found: object) -> bool:
    """Tell what `inspect.isasyncgen` tells."""
    return isinstance(found, AsyncGeneratorType)


_CORO_WORDS = ("CORO_CREATED", "CORO_RUNNING", "CORO_SUSPENDED", "CORO_CLOSED")

LASTING: Final[dict[str, dict[str, object]]] = {
    "inspect": {
        "getcoroutinestate": _coroutine_state,
        "isasyncgen": _is_async_generator,
        "iscoroutine": _is_coroutine,
        **{word: word for word in _CORO_WORDS},
    }
}
"""What a module has already as it waits, until it is loaded: trio asks for the state of a coroutine at each lock,
whether it is one that a thread has given, and whether it was given something else where one was wanted."""
