"""When to poll: all managers of a host at the same moments.

What a poll costs is mostly waking up. A guest's server that is woken for one poll finds its code and data gone from the
processor's caches, and so does the host's kernel; for the second poll of the same moment everything is there. Thirty
managers that poll whenever their own five seconds are over wake the server thirty times in five seconds, and each of
them where nobody is warm. So polls fall on the beats of a clock that all processes of a host share, as kernels and
systemd have timers wait for each other.

A beat comes about once a second, so the hundreds of managers of a large host are spread over the seconds of their
interval by the moment at which each got its connection, and no beat has them all. An interval has a whole number of
beats, hence those with the same interval meet, whatever it is. Only the first poll of a connection comes earlier than
its interval, by less than one beat.
"""

from __future__ import annotations

import math

BEAT_SECONDS = 1.0
"""The shortest time between two beats, but for intervals that are shorter themselves. Shorter ones would gather fewer
polls, longer ones would have more managers at work in the moment in which an application ends."""

MARGIN_SECONDS = 0.001
"""A timer that ends on a beat, give or take the rounding of sums of seconds, ends on that beat, not before it."""


def next_poll_at(polled_at: float, interval_seconds: float, clock_offset_seconds: float) -> float:
    """Give the time of the poll after the one, or the contact, at `polled_at`: on a beat, at most `interval_seconds`
    and `MARGIN_SECONDS` later.

    `clock_offset_seconds` is what the clock that all managers of the host share is ahead of the one that `polled_at`
    is a time of.
    """
    beat_seconds = interval_seconds / max(1, int(interval_seconds / BEAT_SECONDS))
    beat = math.floor((polled_at + clock_offset_seconds + MARGIN_SECONDS) / beat_seconds)
    return beat * beat_seconds - clock_offset_seconds + interval_seconds
