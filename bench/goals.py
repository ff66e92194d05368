"""The figures that are measured, what each is called, and what it is to be. Pure.

A goal is a ratio to another subject of the same run, so that it does not depend on the machine; the two that nobody
else has anything to compare with are absolute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from bench.samples import Samples

PAIR = "pair"
SSH = "ssh"
SSH_SHARED = "ssh-shared"
JAVA = "java"
JAVA_DEFAULT = "java-default"
FLOOR_LOCAL = "floor-local"
FLOOR_TCP = "floor-tcp"

SUBJECTS = {
    PAIR: "this pair",
    SSH: "OpenSSH",
    SSH_SHARED: "OpenSSH, shared connection",
    JAVA: "Java stand-in, small heap",
    JAVA_DEFAULT: "Java stand-in, defaults",
    FLOOR_LOCAL: "floor: local wait",
    FLOOR_TCP: "floor: bare TCP",
}
"""Every subject by the name that samples carry, in the order of the tables."""


@final
@dataclass(frozen=True, slots=True)
class Goal:
    """At most `limit`: of the figure of the subject `of`, or, where that is None, in the figure's unit."""

    limit: float
    of: str | None = None


@final
@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table. `size` is the number of applications at which its goal holds."""

    key: str
    title: str
    unit: str
    size: int
    goal: Goal | None = None
    in_growth_only: bool = False


MILLISECONDS, SECONDS, MEBIBYTES = "ms", "s", "MiB"

COLD = Figure("cold", "cold start of a manager of `/bin/true`, start to end", MILLISECONDS, 1, Goal(0.40, SSH))
END = Figure("end", "process ends → manager has ended", MILLISECONDS, 1, Goal(1.5, SSH))
STARTS = Figure("starts", "managers started at once → all their applications run", MILLISECONDS, 30, Goal(0.5, SSH))
ENDS = Figure("ends", "applications end at once → all their managers have ended", MILLISECONDS, 30, Goal(1.0, SSH))
GUEST_PSS = Figure("guest-pss", "guest side: PSS of all processes but the applications", MEBIBYTES, 30, Goal(0.6, SSH))
HOST_PSS = Figure("host-pss", "host side: PSS of one manager, mean", MEBIBYTES, 30, Goal(0.25, JAVA_DEFAULT))
HOST_PSS_MAX = Figure("host-pss-max", "host side: PSS of one manager, greatest", MEBIBYTES, 30)
GUEST_PRIVATE = Figure(
    "guest-private", "guest side: private memory of the same processes", MEBIBYTES, 30, in_growth_only=True
)
HOST_PRIVATE = Figure(
    "host-private", "host side: private memory of one manager, mean", MEBIBYTES, 30, in_growth_only=True
)
SERVER_CPU = Figure("server-cpu", "at rest: CPU of the server, a minute", SECONDS, 30, Goal(0.3))
GUEST_CPU = Figure("guest-cpu", "at rest: CPU of server, launcher and waiters, a minute", SECONDS, 30)
MANAGER_CPU = Figure("manager-cpu", "at rest: CPU of one manager, mean, a minute", SECONDS, 30, Goal(0.03))
LISTENING = Figure(
    "listening", "server start → listening, with as many records to find again", MILLISECONDS, 30, Goal(500)
)

FIGURES = (
    COLD,
    END,
    STARTS,
    ENDS,
    GUEST_PSS,
    GUEST_PRIVATE,
    HOST_PSS,
    HOST_PSS_MAX,
    HOST_PRIVATE,
    SERVER_CPU,
    GUEST_CPU,
    MANAGER_CPU,
    LISTENING,
)


def is_held(figure: Figure, samples: Samples) -> bool | None:
    """Tell whether the pair holds the figure's goal; None where there is none, or not enough was measured."""
    if figure.goal is None:
        return None
    if figure.goal.of is None:
        value = samples.median(figure.key, PAIR, figure.size)
    else:
        ratio = samples.ratio(figure.key, PAIR, figure.goal.of, figure.size)
        value = None if ratio is None else ratio.value
    return None if value is None else value <= figure.goal.limit
