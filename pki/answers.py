"""What modules of the standard library answer to libraries that are being imported, without being loaded (see `later`).

Some libraries use a module as soon as they have imported it, for a thing that needs next to nothing of it: they make a
logger that hardly anybody logs to, derive a class that nobody makes, ask for a word. Only what the documentation of the
standard library promises is answered, whichever library asks. Any other name loads the module, and once the import is
over so does every one.

Measured (Python 3.11, trio 0.35): 0.7 of 14 MiB of a manager.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from types import ModuleType
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


def _python_implementation(_: ModuleType, __: Callable[[Loaded], None]) -> object:
    return lambda: "CPython"


ANSWERS: Final[dict[str, Answer]] = {"ast.NodeVisitor": _node_visitor, "logging.getLogger": _get_logger}
"""By the full name of what is asked for."""

if sys.implementation.name == "cpython":
    ANSWERS["platform.python_implementation"] = _python_implementation
