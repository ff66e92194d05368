"""Bound what others can make us do in a time: lines of log, connections accepted, requests of a session. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, final

MAX_REMEMBERED = 1000
"""Keys remembered; of the one heard of longest ago only the number of its events is kept."""

OTHERS: Final = "of other kinds or from other addresses"
"""The key under which events are told that have none of their own any more, or for which there was no line left."""


@final
class RateLimit:
    """Lets one event for each key and `interval_seconds` pass, and `most` of all keys together; counts the others.

    No event is ever lost: each either passes, or is in a number given later.
    """

    def __init__(self, interval_seconds: float, most: int) -> None:
        self._interval_seconds = interval_seconds
        self._most = most
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._others = 0
        self._began = -interval_seconds
        self._passed = 0

    def passes(self, key: str, now: float) -> int | None:
        """Tell whether an event at `now` (monotonic seconds) passes: None if not, else how many were held back before
        it.
        """
        last, held = self._seen.pop(key, (None, 0))
        if last is not None and now - last < self._interval_seconds:
            self._seen[key] = (last, held + 1)
            return None
        if self._room(now) <= 0:
            self._seen[key] = (now if last is None else last, held + 1)
            self._forget()
            return None
        self._passed += 1
        self._seen[key] = (now, 0)
        self._forget()
        return held

    def overdue(self, now: float) -> list[tuple[str, int]]:
        """Give the keys whose interval is over while events were held back, with their number, which starts anew.

        Where there are more than may pass, those with the largest numbers have lines of their own.
        """
        found = [
            (key, held) for key, (last, held) in self._seen.items() if held and now - last >= self._interval_seconds
        ]
        for key, _ in found:
            del self._seen[key]
        found.sort(key=lambda one: -one[1])
        room = self._room(now)
        others = self._others + sum(held for _, held in found[room:])
        self._others = 0
        self._passed += len(found[:room])
        return found[:room] + ([(OTHERS, others)] if others else [])

    def _room(self, now: float) -> int:
        if now - self._began >= self._interval_seconds:
            self._began, self._passed = now, 0
        return max(0, self._most - self._passed)

    def _forget(self) -> None:
        while len(self._seen) > MAX_REMEMBERED:
            _, (_, held) = self._seen.popitem(last=False)
            self._others += held


@final
class Pace:
    """Spreads events out: `per_second` of them, and `burst` at once after a quiet time."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._interval_seconds = 1 / per_second
        self._slack_seconds = (burst - 1) / per_second
        self._due = -self._slack_seconds

    def delay_seconds(self, now: float, places: int = 1) -> float:
        """Take the next place, or several; give how long to wait for the first from `now` (monotonic seconds)."""
        place = max(self._due, now - self._slack_seconds)
        self._due = place + places * self._interval_seconds
        return max(0.0, place - now)
