"""Cancel the code under test at every point at which it can be cancelled, one after the other.

Between two steps of its tasks nothing of it runs, so that is where a cancellation can come: after a step, when the task
waits for something or has yielded, and before the next one, when what it waited for has come and the cancellation is
found by whatever is awaited next. An instrument counts these points, in all tasks that descend from the one under test,
and cancels at the n-th. A scenario is run with n = 1, 2, 3 ... until it ends before the n-th point: so none is left
out, also where the network decides how many there are. It is done twice, by `cancel` and by a deadline that has come,
which is delivered a turn of the loop later.

After each run nothing may be left: no task (the nurseries see to that, inside a bound of virtual time), no descriptor,
no child process, no thread at work, no complaint of the garbage collector's. What a scenario promises beyond, it checks
itself after `Probe.run`.
"""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest
import trio
import trio._core._run
import trio.testing

MAX_POINTS = 5000
"""More than any scenario has; one that never ends by itself would go on for ever."""

HANG_SECONDS = 100_000.0
"""Of virtual time: a wait that nothing ends is found at once on a clock that jumps."""

REAL_HANG_SECONDS = 40.0
"""The same on the real clock."""

REST_SECONDS = 20.0
"""For what ends by itself after a run: a thread whose result nobody wants any more, a child that has been killed."""


class Way(Enum):
    CANCEL = "cancel"
    DEADLINE = "deadline"


class Probe(trio.abc.Instrument):
    """Counts the points of one run, and cancels at one of them."""

    def __init__(self, at: int, way: Way, grace_seconds: float) -> None:
        self._at = at
        self._way = way
        self._grace_seconds = grace_seconds
        self._tasks: set[trio.lowlevel.Task] = set()
        self.scope = trio.CancelScope()
        self.points = 0
        self.fired_at: float | None = None
        self.where = "nowhere"

    @property
    def fired(self) -> bool:
        return self.fired_at is not None

    async def run(self, code: Callable[[], Awaitable[object]]) -> None:
        """Run the code under test; it and all that it starts are cancelled together, and must end in time."""
        task = trio.lowlevel.current_task()
        self._tasks.add(task)
        try:
            with self.scope:
                await code()
        finally:
            self._tasks.discard(task)
            if self.fired_at is not None:
                late = trio.current_time() - self.fired_at
                assert late <= self._grace_seconds, f"it ended {late:g} s after its cancellation"

    @contextmanager
    def peer(self) -> Iterator[None]:
        """Be somebody at the other end, who is cut off when the code under test is cancelled."""
        try:
            yield
        except Exception:
            if not self.fired:
                raise

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        if task.parent_nursery is not None and task.parent_nursery.parent_task in self._tasks:
            self._tasks.add(task)

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self._tasks.discard(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._reach(task, "before a step")

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._reach(task, "after a step")

    def _reach(self, task: trio.lowlevel.Task, when: str) -> None:
        if task not in self._tasks:
            return
        self.points += 1
        if self.points == self._at:
            self.where = f"{when} of {task.name} at {_place(task)}"
            self.fired_at = trio.current_time()
            if self._way is Way.CANCEL:
                self.scope.cancel()
            else:
                self.scope.deadline = trio.current_time()


def _place(task: trio.lowlevel.Task) -> str:
    """Name the innermost line of our own that a task stands at."""
    found = "its beginning"
    for frame, line in task.iter_await_frames():
        if "site-packages" not in frame.f_code.co_filename:
            found = f"{os.path.basename(frame.f_code.co_filename)}:{line}"
    return found


Scenario = Callable[[Probe], Awaitable[None]]


@dataclass(frozen=True)
class Swept:
    """What was done to one scenario."""

    name: str
    points: int
    runs: int

    def row(self) -> list[str]:
        return [self.name, str(self.points), str(self.runs), "0"]


@dataclass(frozen=True)
class Remains:
    """What a run could leave behind."""

    descriptors: dict[str, str]
    children: frozenset[str]
    threads: frozenset[str]

    @classmethod
    def now(cls) -> Remains:
        descriptors = {}
        for name in os.listdir("/proc/self/fd"):
            try:
                descriptors[name] = os.readlink(f"/proc/self/fd/{name}")
            except FileNotFoundError:  # that of the directory itself
                continue
        children = {
            pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
        }
        # An idle worker of trio's keeps a name of its own, and leaves after a while.
        threads = frozenset(each.name for each in threading.enumerate() if not each.name.startswith("Trio thread"))
        return cls(descriptors, frozenset(children), threads)

    def assert_nothing_came(self) -> None:
        deadline = time.monotonic() + REST_SECONDS
        while (now := Remains.now()) != self:
            if now.threads <= self.threads and now.children <= self.children and now.descriptors == self.descriptors:
                return
            assert time.monotonic() < deadline, f"left behind: {now}, where there was {self}"
            time.sleep(0.002)


def cancel_at_every_point(
    name: str, scenario: Scenario, *, grace_seconds: float = 0.0, real: bool = False, ways: tuple[Way, ...] = tuple(Way)
) -> Swept:
    """Run `scenario` to its end, and then once for each point and way; give what was counted.

    `grace_seconds` is what the code under test may take to end once it is cancelled. `real`: on the real clock, for
    what speaks to the kernel. Raises AssertionError, which names the point.
    """
    points = runs = 0
    with _complaints() as complaints:
        _run(scenario, Probe(0, Way.CANCEL, grace_seconds), real=real)  # what is opened once and for all, is open now
        before = Remains.now()
        for way in ways:
            for at in itertools.count(1):
                assert at < MAX_POINTS, f"{name}: it does not end by itself"
                probe = Probe(at, way, grace_seconds)
                try:
                    _run(scenario, probe, real=real)
                    gc.collect()
                    before.assert_nothing_came()
                    assert not complaints, complaints
                except Exception as error:
                    text = f"{name}: {way.value} at point {at}, {probe.where}: {type(error).__name__}: {error}"
                    raise AssertionError(text) from error
                if not probe.fired:
                    break
                runs += 1
                points = max(points, at)
    return Swept(name, points, runs)


def sweep(
    name: str, scenarios: Iterable[tuple[Scenario, float]], *, real: bool = False, ways: tuple[Way, ...] = tuple(Way)
) -> Swept:
    """Do so to several scenarios, each with its grace; give what was counted in all of them."""
    swept = [
        cancel_at_every_point(each.__name__, each, grace_seconds=grace, real=real, ways=ways)
        for each, grace in scenarios
    ]
    return Swept(name, sum(each.points for each in swept), sum(each.runs for each in swept))


def show(*swept: Swept) -> None:
    """Print what was counted."""
    for each in swept:
        print(f"{each.name}: {each.points} points, {each.runs} cancellations")


def _run(scenario: Scenario, probe: Probe, *, real: bool) -> None:
    async def bounded() -> None:
        with trio.fail_after(REAL_HANG_SECONDS if real else HANG_SECONDS):
            await scenario(probe)

    # Trio puts the tasks of a turn into a random order; here each run has the same one up to its cancellation.
    trio._core._run._r.seed(0)
    clock = None if real else trio.testing.MockClock(autojump_threshold=0)
    trio.run(bounded, clock=clock, instruments=[probe])


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collect what is complained of where nobody can be told, warnings of unclosed things included."""
    found: list[str] = []
    hook = sys.unraisablehook
    sys.unraisablehook = lambda complaint: found.append(f"{complaint.exc_value!r} in {complaint.object!r}")
    gc.collect()
    gc.freeze()  # so that the collection after each run has only that run's to look through
    try:
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)
            warnings.simplefilter("error")
            yield found
    finally:
        gc.unfreeze()
        sys.unraisablehook = hook
