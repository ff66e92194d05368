"""What a launcher's modules take from `typing`, without importing it.

That module is two thirds of a megabyte, of the launcher and of all its waiters together, for names that do next to
nothing when a program runs. To type checkers these *are* the standard ones. At run time they are what this project
uses: names in annotations, which are not evaluated (`from __future__ import annotations`), and classes of tuples with
fields and nothing else; those are refused otherwise. A test holds them to the standard ones.
"""

from __future__ import annotations

TYPE_CHECKING = False
"""Taken as true by type checkers, as that of `typing` is."""

if TYPE_CHECKING:
    from typing import Literal as Literal
    from typing import NamedTuple as NamedTuple
    from typing import NoReturn as NoReturn
    from typing import TypeAlias as TypeAlias
    from typing import final as final
else:
    from collections import namedtuple

    NoReturn = TypeAlias = None

    class Literal:
        """An alias of some of its values is one of it, and nobody asks it which."""

        def __class_getitem__(cls, _values):
            return cls

    def final(decorated):
        """Say to type checkers that nobody derives from a class."""
        return decorated

    class _Fields(type):
        def __new__(cls, name, bases, body):
            if not bases:
                return super().__new__(cls, name, bases, body)
            other = [each for each in body if not each.startswith("__")]
            if other:
                raise TypeError(f"{name} has more than fields, {other[0]!r}: take the standard library's class")
            made = namedtuple(name, body["__annotations__"], module=body["__module__"])  # noqa: PYI024  (as it does)
            made.__doc__ = body.get("__doc__")
            made.__qualname__ = body["__qualname__"]
            return made

    class NamedTuple(metaclass=_Fields):
        """The base of classes of tuples whose fields have names."""
