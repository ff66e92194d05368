"""What the drill did, and when: for the oracle, for complaints, and for counting."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterator

from drill.oracle import Circumstances

KEPT_EVENTS = 1000
KEPT_SPANS = 500
"""More than a drill makes while one service lives."""


class Chronicle:
    """The events of one drill. Times are seconds of the monotonic clock, in words since the drill began."""

    def __init__(self, *, kernel_tells: bool, memory_is_told: bool) -> None:
        self.began_at = time.monotonic()
        self.faults: Counter[str] = Counter()
        self.alive: dict[int, Circumstances] = {}
        """Of each service that is not over."""
        self._contact_away: deque[tuple[float, float]] = deque(maxlen=KEPT_SPANS)
        self._events: deque[tuple[float, int | None, str]] = deque(maxlen=KEPT_EVENTS)
        self._kernel_tells = kernel_tells
        self._memory_is_told = memory_is_told

    def begin(self, index: int) -> None:
        self.alive[index] = Circumstances(self._kernel_tells, self._memory_is_told)

    def end(self, index: int, server_away: list[tuple[float, float]]) -> Circumstances:
        """Give what happened to a service and around it."""
        around = self.alive.pop(index)
        around.server_away = server_away
        around.contact_away = [*server_away, *self._contact_away]
        return around

    def note(self, what: str, index: int | None = None) -> None:
        self._events.append((time.monotonic(), index, what))

    def fault(self, what: str, index: int | None = None) -> None:
        """Count a fault that was carried out."""
        self.faults[what] += 1
        self.note(what, index)

    @contextlib.contextmanager
    def contact_away(self) -> Iterator[None]:
        """Note that managers and server cannot talk meanwhile."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._contact_away.append((began, time.monotonic()))

    def events_of(self, index: int) -> list[str]:
        """Tell what happened to a service, and to the guest meanwhile."""
        times = [at for at, whose, _ in self._events if whose == index]
        if not times:
            return []
        begin, end = times[0] - 1, times[-1] + 1
        return [
            f"{at - self.began_at:9.3f} s  {what}"
            for at, whose, what in self._events
            if whose == index or (whose is None and begin <= at <= end)
        ]
