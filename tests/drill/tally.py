"""Counts what a drill found, and says which columns must be zero."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from drill import oracle

LEFT_OVER = "processes left over at the end"
ZOMBIES = "zombies at the end"
GROWN = "descriptors more at the end than at the beginning"
TRACEBACKS = "tracebacks of the server or the launcher"
BROKEN = "drills that broke off"

MUST_BE_ZERO = (
    oracle.WRONG,
    oracle.LOST_FORBIDDEN,
    oracle.UNTOLD,
    oracle.DOUBLE,
    oracle.ALIVE,
    oracle.OVER_BOUND,
    LEFT_OVER,
    ZOMBIES,
    GROWN,
    TRACEBACKS,
    BROKEN,
)
MAY_BE = (oracle.RIGHT, oracle.LOST_ALLOWED, oracle.GAVE_UP, oracle.OUT_OF_REACH, oracle.OVER_BOUND_ALLOWED)


@dataclass
class Tally:
    """The figures of one drill."""

    runs: int = 0
    managers: int = 0
    found: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    sorts: Counter[str] = field(default_factory=Counter)
    usages: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Of server and launcher, at the beginning and at the end."""
    seconds: float = 0.0

    @property
    def bad(self) -> int:
        return sum(self.found[column] for column in MUST_BE_ZERO)

    def is_clean(self) -> bool:
        return self.bad == 0

    def rows(self) -> list[list[str]]:
        """Give the table: what, how many, how many there may be."""
        faults = ", ".join(f"{what} {count}" for what, count in sorted(self.faults.items()))
        sorts = ", ".join(f"{sort} {count}" for sort, count in sorted(self.sorts.items()))
        rows = [["runs asked for", f"{self.runs:,} ({sorts})", ""], ["managers", f"{self.managers:,}", ""]]
        rows.append(["faults", f"{self.faults.total():,} ({faults})", ""])
        rows += [[column, f"{self.found[column]:,}", ""] for column in MAY_BE]
        rows += [[column, f"{self.found[column]:,}", "0"] for column in MUST_BE_ZERO]
        for whose, (before, after) in self.usages.items():
            rows += [[f"{whose} at the beginning", before, ""], [f"{whose} at the end", after, ""]]
        return rows
