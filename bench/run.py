"""One run: the subjects are opened, take their turns as planned, and are closed again, whatever happens."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import groupby

from bench import goals
from bench.applications import Applications
from bench.measure import available_mib
from bench.plan import GOAL_SIZE, Step
from bench.processes import end_descendants, watch_over_descendants
from bench.samples import Sample, Samples
from bench.stage import Stage
from bench.subjects.floor import LocalFloor, TcpFloor
from bench.subjects.java import DefaultJava, Java
from bench.subjects.pair import Pair
from bench.subjects.ssh import SEPARATION_DIRECTORY, SharedSsh, Ssh
from bench.subjects.subject import Subject

KINDS: tuple[type[Subject], ...] = (Pair, Ssh, SharedSsh, Java, DefaultJava, LocalFloor, TcpFloor)

OPENINGS = 3
"""How often each server is started for the figure of its bare start."""

SPARE_MIB = 512.0
"""What must stay free beside the clients of a step."""


def measure(steps: Iterable[Step], samples: Samples) -> None:
    """Carry out the steps and add what they give to `samples`, also to those of a run that fails half-way.

    A step that needs more memory than there is is left out, and said. Ends everything that it started, also when it
    is interrupted. Raises BenchError, OSError.
    """
    watch_over_descendants()
    made_by_us = not os.path.exists(SEPARATION_DIRECTORY)
    try:
        with tempfile.TemporaryDirectory(prefix="cmapp-bench-") as directory:
            try:
                _measure_in(directory, list(steps), samples)
            finally:
                end_descendants()
    finally:
        if made_by_us:
            with contextlib.suppress(OSError):
                os.rmdir(SEPARATION_DIRECTORY)


def _measure_in(directory: str, steps: list[Step], samples: Samples) -> None:
    applications = Applications(directory)
    try:
        for large, some in groupby(steps, lambda step: step.size > GOAL_SIZE):
            part = list(some)
            most = max(step.size for step in part)
            place = os.path.join(directory, "large" if large else "small")
            os.mkdir(place, 0o700)
            with _opened(place, {step.subject for step in part}, most, samples) as subjects:
                for step in part:
                    _measure_step(subjects[step.subject], step, applications, samples)
    finally:
        applications.close()


@contextlib.contextmanager
def _opened(directory: str, names: set[str], most: int, samples: Samples) -> Iterator[dict[str, Subject]]:
    subjects = {kind.name: kind(directory) for kind in KINDS if kind.name in names}
    with contextlib.ExitStack() as stack:
        for subject in subjects.values():
            stack.callback(subject.close)
            for opening in range(OPENINGS):
                subject.close()
                seconds = subject.open(most)
                if subject.server_pid is not None:
                    samples.add(Sample(goals.LISTENING.key, subject.name, 0, opening, 1000 * seconds))
        yield subjects


def _measure_step(subject: Subject, step: Step, applications: Applications, samples: Samples) -> None:
    title = f"round {step.round + 1}: {goals.SUBJECTS[subject.name]}, {step.size}"
    if step.size * subject.client_mib + SPARE_MIB > available_mib():
        print(f"{title}: left out, there is not enough memory for so many", flush=True)
        return
    began = time.monotonic()
    Stage(subject, step, applications, samples).run()
    print(f"{title}: {time.monotonic() - began:.1f} s", flush=True)
