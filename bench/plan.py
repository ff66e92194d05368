"""What is measured when: which subject, with how many applications, how often. Pure.

Subjects take turns within a round, each time in another order, so that the machine's moods hit all alike. Large sizes
come last and once: they take the longest, and the goals are not theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

from bench.goals import FLOOR_LOCAL, FLOOR_TCP, JAVA, JAVA_DEFAULT, PAIR, SSH, SSH_SHARED

SMALL_SIZES = (1, 10, 30)
"""As many as a server permits unless it is told otherwise."""

LARGE_SIZES = (100, 300)
JAVA_MOST = 30
"""More of its clients would take more memory than the machine has, and more minutes than the rest together."""

SSH_MOST = 100
"""Three hundred of its clients at once take a minute of two cores, and show nothing that a hundred do not."""

BESIDE_EVERY = 3
"""In every third round those take part, at other sizes than 1, on whom no goal depends."""

REST_SECONDS = 60.0
"""The minute of the goals, at their size."""

SHORT_REST_SECONDS = 10.0
"""Two polls, for the curve."""

GOAL_SIZE = 30

_TURNS = (PAIR, SSH, JAVA, FLOOR_TCP, SSH_SHARED, FLOOR_LOCAL)


@final
@dataclass(frozen=True, slots=True)
class Step:
    """One subject at one size: all started at once, `repeats` single ones, a rest, restarts, all ended at once."""

    subject: str
    size: int
    round: int
    repeats: int
    rest_seconds: float = 0.0
    restarts: int = 0


def steps(rounds: int, sizes: Sequence[int], *, java: bool = True, ssh_most: int = SSH_MOST) -> Iterator[Step]:
    """Give the steps in order; OpenSSH takes part up to `ssh_most` applications.

    The pair rests, and its server is started anew, at each size but the least; at that of the goals in the last round
    only, so that whatever a restart changes enters the end of that round alone.
    """
    small = [size for size in sizes if size <= GOAL_SIZE]
    for number in range(rounds):
        for size in small:
            for subject in _in_turn(number):
                if _takes_part(subject, size, number) and (java or subject != JAVA):
                    yield _step(subject, size, number, last=number == rounds - 1)
        if number == 0 and java and GOAL_SIZE in small:
            yield Step(JAVA_DEFAULT, GOAL_SIZE, number, repeats=1)
    for size in sorted(set(sizes) - set(small)):
        for subject in _in_turn(0):
            if size <= _most(subject, ssh_most):
                yield _step(subject, size, rounds, last=True)


def _most(subject: str, ssh_most: int) -> float:
    return {JAVA: JAVA_MOST, SSH: ssh_most, SSH_SHARED: ssh_most}.get(subject, math.inf)


def _in_turn(number: int) -> tuple[str, ...]:
    first = number % len(_TURNS)
    return _TURNS[first:] + _TURNS[:first]


def _takes_part(subject: str, size: int, number: int) -> bool:
    if size == 1 or number % BESIDE_EVERY == 0:
        return True
    return size == GOAL_SIZE and subject in {PAIR, SSH}


def _step(subject: str, size: int, number: int, *, last: bool) -> Step:
    repeats = 5 if size == 1 else 2
    if subject == PAIR and size == GOAL_SIZE and last:
        return Step(subject, size, number, repeats, REST_SECONDS, restarts=3)
    if subject == PAIR and size not in {1, GOAL_SIZE}:
        return Step(subject, size, number, repeats, SHORT_REST_SECONDS, restarts=1)
    return Step(subject, size, number, repeats)
