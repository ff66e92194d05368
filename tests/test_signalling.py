"""Who of a tree is asked to end, with a clock that is set by hand; nobody is signalled."""

from __future__ import annotations

import signal
import sys

import pytest

if sys.platform == "win32":
    pytest.skip("signals are Unix", allow_module_level=True)

from appserver import signalling
from appserver.procfs import Stat
from appserver.signalling import terminate


class Bench:
    def __init__(self) -> None:
        self.now = 100
        self.asked: list[int] = []
        self.already: set[tuple[int, int]] = set()

    def look(self, **born: int) -> list[int]:
        """Ask a tree of processes p1, p2, ... that were born at these ticks; give whom that has reached."""
        self.asked = []
        terminate([Stat(int(name[1:]), "S", 1, 1, 0, 0, ticks, 0, 0) for name, ticks in born.items()], self.already)
        return self.asked


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench()

    def note(pid: int, _start_ticks: int, number: int) -> bool:
        if number == signal.SIGTERM:
            made.asked.append(pid)
        return True

    monkeypatch.setattr(signalling, "signal_process", note)
    monkeypatch.setattr(signalling, "_ticks_now", lambda: made.now)
    return made


def test_each_process_is_asked_once(bench: Bench) -> None:
    assert bench.look(p5=1, p6=100) == [5, 6]
    assert bench.look(p5=1, p6=100) == []


def test_who_was_not_seen_at_first_is_still_asked_and_who_was_born_since_is_not(bench: Bench) -> None:
    assert bench.look(p5=1) == [5]
    bench.now = 200
    assert bench.look(p5=1, p6=99, p7=100, p8=150) == [6]


def test_a_pid_that_is_somebody_elses_by_now_was_not_asked(bench: Bench) -> None:
    assert bench.look(p5=1) == [5]
    assert bench.look(p5=2) == [5]


def test_a_first_look_that_finds_nobody_asks_nobody(bench: Bench) -> None:
    assert bench.look() == []
    bench.now = 200
    assert bench.look(p5=150) == [5]
