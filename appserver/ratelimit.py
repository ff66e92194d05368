"""Bound what a stranger can make us write into the log, and how many half-open connections it can hold. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar, final

MAX_REMEMBERED = 1000
"""Addresses remembered; the one heard of longest ago is forgotten, which costs at most a line of log."""

_Token = TypeVar("_Token")


@final
class RateLimit:
    """Lets one event for each key and `interval_seconds` pass, and counts the others."""

    def __init__(self, interval_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def passes(self, key: str, now: float) -> int | None:
        """Tell whether an event at `now` (monotonic seconds) passes: None if not, else how many were held back before
        it.
        """
        last, held = self._seen.pop(key, (None, 0))
        if last is not None and now - last < self._interval_seconds:
            self._seen[key] = (last, held + 1)
            return None
        self._seen[key] = (now, 0)
        while len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)
        return held

    def overdue(self, now: float) -> list[tuple[str, int]]:
        """Give the keys whose interval is over while events were held back, with their number, which starts anew."""
        found = [
            (key, held) for key, (last, held) in self._seen.items() if held and now - last >= self._interval_seconds
        ]
        for key, _ in found:
            del self._seen[key]
        return found


@final
class HalfOpen(Generic[_Token]):
    """Who has connected but not yet proved who it is.

    Where a bound is reached the *oldest* gives way, so that a manager, which needs a few milliseconds, gets in beside
    any number of strangers who just sit there.
    """

    def __init__(self, most: int, most_per_address: int) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._waiting: OrderedDict[_Token, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, token: _Token, address: str) -> _Token | None:
        """Let one more in; give the one that has to leave for it."""
        same = [other for other, other_address in self._waiting.items() if other_address == address]
        leaving = None
        if len(same) >= self._most_per_address:
            leaving = same[0]
        elif len(self._waiting) >= self._most:
            leaving = next(iter(self._waiting))
        if leaving is not None:
            del self._waiting[leaving]
        self._waiting[token] = address
        return leaving

    def leave(self, token: _Token) -> None:
        """It has proved who it is, or is gone; one that had to leave before is fine."""
        self._waiting.pop(token, None)
