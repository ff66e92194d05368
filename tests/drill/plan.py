"""What a drill is going to do, all of it made from its seed: the services, and the faults with their order and times.

A fault of one service (its manager or its waiter is killed, paused, told to detach) counts its time from an event of
that service. A fault of the whole guest counts from the end of the one before. So the same seed makes the same plan,
however fast the machine is. What is not repeatable is where a fault falls within what the programs are doing: that is
the machine's business, and the point of doing it ten thousand times.

Each sort of fault draws from a generator of its own, so that a changed rate leaves the plans of the others alone.
"""

from __future__ import annotations

import heapq
import itertools
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

Seconds = float

ENDING_SIGNALS = [
    int(number)
    for number in (
        signal.SIGKILL,
        signal.SIGTERM,
        signal.SIGSEGV,
        signal.SIGABRT,
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGPIPE,
        signal.SIGUSR1,
    )
]

LINGER_SECONDS = 3.0
"""How much longer left children live than their main process: they must still live when they are counted, on a busy
machine."""

FOREVER_SECONDS = 600.0
"""Who must be stopped would live that long: longer than any patience."""

FLOOD_BYTES = 1_500_000
"""Several times the log's bound in the drill."""


@dataclass(frozen=True)
class ManagerFault:
    """Done to one manager, `after` seconds from its start, or from when it says that its service runs: `pause` for
    `seconds`, or `kill` or `detach` (a TERM), upon which the next one is started `seconds` later."""

    what: str
    after: Seconds
    seconds: Seconds
    from_running: bool = False


@dataclass(frozen=True)
class WaiterFault:
    """Done to a service's waiter, `after` seconds from when a manager says that the service runs: `kill` or `pause`."""

    what: str
    after: Seconds
    seconds: Seconds = 0.0


@dataclass(frozen=True)
class GuestFault:
    """Done to the guest, `gap` seconds after the one before; `choice`, from 0 to 1, picks among what there is."""

    what: str
    gap: Seconds
    choice: float
    seconds: Seconds


@dataclass(frozen=True)
class Halt:
    """The manager gets a TERM that means stop, `after` seconds from its start or from when it says `started`."""

    after: Seconds
    from_started: bool


@dataclass(frozen=True)
class Service:
    """One service: what its application does, who watches it, and what happens to those."""

    index: int
    sort: str
    words: tuple[str, ...]
    """The application's; its notes and control group are added when it is known where they lie."""
    options: tuple[str, ...] = ()
    """The managers'."""
    asked: int = 1
    """How often it is asked for, one time at once after the other."""
    managers: int = 1
    """How many ask for it at the same time."""
    halt: Halt | None = None
    manager_faults: tuple[tuple[ManagerFault, ...], ...] = ()
    """For each of the first managers, in the order of their start."""
    waiter_faults: tuple[WaiterFault, ...] = ()
    traits: dict[str, str] = field(default_factory=dict)
    """`words`, read: what the oracle has to know."""


SORTS = {
    "code": 30,
    "signal": 14,
    "memory": 3,
    "children left": 6,
    "children stopped": 6,
    "flood": 4,
    "stop": 14,
    "stop stubborn": 3,
    "stop with children": 4,
    "two managers": 8,
    "asked again": 8,
}
"""Sorts of services, and how many of a hundred."""


def make_services(seed: int, runs: int, *, with_memory: bool = True) -> Iterator[Service]:
    """Make services until they have been asked for `runs` times."""
    random = Random(f"{seed} services")
    sorts = {name: weight for name, weight in SORTS.items() if with_memory or name != "memory"}
    asked = 0
    for index in itertools.count():
        if asked >= runs:
            return
        service = _make_service(random, index, random.choices(list(sorts), list(sorts.values()))[0])
        asked += service.asked
        yield service


def _make_service(random: Random, index: int, sort: str) -> Service:
    traits = {"seconds": f"{random.uniform(0.0, 1.2):.3f}", "ending": f"code:{random.randrange(256)}"}
    options: tuple[str, ...] = ()
    halt = None
    if sort == "signal":
        traits["ending"] = f"signal:{random.choice(ENDING_SIGNALS)}"
    elif sort == "memory":
        traits["ending"] = "memory"
    elif sort == "flood":
        traits["flood"] = str(FLOOD_BYTES)
    elif sort.startswith("children"):
        traits |= {"children": str(random.randint(1, 3)), "linger": str(LINGER_SECONDS)}
        if sort == "children stopped":
            traits["linger"] = str(FOREVER_SECONDS)
            options = ("--survivors", "stop", "--stop-timeout", "2")
            if random.random() < 0.5:
                traits["stubborn"] = "1"
    elif sort.startswith("stop"):
        traits["seconds"] = str(FOREVER_SECONDS)
        options = ("--on-halt", "stop", "--stop-timeout", "20")
        halt = Halt(random.uniform(0.0, 0.8), from_started=random.random() < 0.8)
        traits["term"] = random.choice(["default", "default", f"code:{random.randrange(256)}"])
        if sort == "stop stubborn":
            traits["term"] = "ignore"
            options = ("--on-halt", "stop", "--stop-timeout", "4")
        elif sort == "stop with children":
            traits |= {"children": str(random.randint(1, 3)), "linger": str(FOREVER_SECONDS)}
            if random.random() < 0.3:
                traits["stubborn"] = "1"
                options = ("--on-halt", "stop", "--stop-timeout", "4")
    return Service(
        index,
        sort,
        tuple(f"{name}={value}" for name, value in traits.items()),
        options,
        asked=random.randint(2, 3) if sort == "asked again" else 1,
        managers=2 if sort == "two managers" else 1,
        halt=halt,
        manager_faults=_manager_faults(random, may_detach=halt is None),
        waiter_faults=_waiter_faults(random),
        traits=traits,
    )


def _manager_faults(random: Random, *, may_detach: bool) -> tuple[tuple[ManagerFault, ...], ...]:
    """Kill every sixth manager or so, pause and detach some; who takes the place of one may fall too."""
    managers = []
    while random.random() < 0.3:
        faults = []
        if random.random() < 0.25:
            faults.append(ManagerFault("pause", random.uniform(0.0, 1.0), random.uniform(0.1, 1.5)))
        last = random.choices(["kill", "detach", "none"], [6, 2 if may_detach else 0, 2])[0]
        if last != "none":
            later = random.choice([0.0, random.uniform(0.0, 1.5)])
            from_running = random.random() < 0.5
            after = random.uniform(0.0, 0.6 if from_running else 1.2)
            faults.append(ManagerFault(last, after, later, from_running))
        managers.append(tuple(faults))
        if last == "none":
            break
    return tuple(managers)


def _waiter_faults(random: Random) -> tuple[WaiterFault, ...]:
    faults = []
    if random.random() < 0.08:
        faults.append(WaiterFault("pause", random.uniform(0.0, 0.5), random.uniform(0.1, 1.0)))
    while random.random() < 0.1:  # the substitute may fall too
        faults.append(WaiterFault("kill", random.uniform(0.0, 0.5)))
    return tuple(faults)


EVERY_SECONDS = {
    "kill server": 11.0,
    "restart server": 18.0,
    "upgrade server by KILL": 30.0,
    "upgrade server by TERM": 30.0,
    "kill server and launcher": 20.0,
    "kill server and waiter": 20.0,
    "pause server": 10.0,
    "kill launcher": 6.0,
    "pause launcher": 12.0,
    "kill any waiter": 3.0,
    "cut all": 5.0,
    "cut one": 0.8,
    "hush to server": 5.0,
    "hush to manager": 5.0,
}
"""Faults of the guest, and how often each happens, on average."""

PAUSE_SECONDS = {"pause server": 1.5, "pause launcher": 2.0, "hush to server": 2.0, "hush to manager": 2.0}
"""How long they last, at most."""


def make_guest_faults(seed: int, *, faster: float = 1.0) -> Iterator[GuestFault]:
    """Make the endless line of the guest's faults, each sort at its own rate, `faster` times as often."""
    before = 0.0
    streams = [_one_sort(Random(f"{seed} {what}"), what, mean / faster) for what, mean in EVERY_SECONDS.items()]
    for at, what, choice, seconds in heapq.merge(*streams):
        yield GuestFault(what, at - before, choice, seconds)
        before = at


def _one_sort(random: Random, what: str, mean_seconds: Seconds) -> Iterator[tuple[Seconds, str, float, Seconds]]:
    at = 0.0
    while True:
        at += random.expovariate(1 / mean_seconds)
        yield at, what, random.random(), random.uniform(0.05, PAUSE_SECONDS.get(what, 0.3))
