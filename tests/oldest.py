"""The oldest libraries that pyproject.toml allows, and in what they, and the oldest Python, differ.

    python tests/oldest.py

prints NAME==VERSION of each. `make test-oldest` has pip install those, so that what is promised is what is tried. They
are asked of the installed distribution, which has them from pyproject.toml: Python 3.10 reads no TOML by itself.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib.metadata import requires, version

_FLOOR = re.compile(r"([A-Za-z0-9_-]+) ?>= ?([0-9.]+)")


def oldest(requirements: Iterable[str]) -> list[str]:
    """Give the oldest release that each requirement allows. Raises `ValueError` for one that is more, or less, than a
    name and a floor.
    """
    found = []
    for requirement in requirements:
        match = _FLOOR.fullmatch(requirement)
        if match is None:
            raise ValueError(f"expected a name and its oldest release, such as 'trio>=0.27', not {requirement!r}")
        found.append("==".join(match.groups()))
    return found


def of_this_project() -> list[str]:
    return oldest(requires("cmapp") or ())


_TRIO = tuple(int(part) for part in version("trio").split(".")[:2])

LOADED_WITH_TRIO: frozenset[str] = frozenset({
    *(("dis", "inspect") if _TRIO < (0, 28) else ()),
    *(("dis", "inspect", "traceback") if sys.version_info < (3, 11) else ()),
})
"""What the import of trio loads, although it could wait. Up to 0.27 it asked `inspect`, which needs `dis`, what kind
each function is that an interrupt must not break. And Python 3.10 has its groups of exceptions from a library that uses
all three."""


if __name__ == "__main__":
    print(*of_this_project(), sep="\n")
