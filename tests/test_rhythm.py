"""When managers poll: together with the others of their host, and still at their interval."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from test_manager import OPTIONS, OWN, running

from appmgr.manager import Manager, Send
from appmgr.rhythm import BEAT_SECONDS, MARGIN_SECONDS, next_poll_at
from appserver.messages import Poll, Status

INTERVALS = (0.05, 0.4, 1.0, 1.5, 2.5, 10 / 3, 5.0, 59.7, 86400.0)


@pytest.mark.parametrize("interval_seconds", INTERVALS)
def test_those_with_the_same_interval_meet_at_its_beats(interval_seconds: float) -> None:
    chance = random.Random(7)
    beats = max(1, int(interval_seconds / BEAT_SECONDS))
    for _ in range(200):
        contact, offset = chance.uniform(0, 1e5), chance.uniform(-1e6, 1e6)
        on_host_clock = next_poll_at(contact, interval_seconds, offset) + offset
        phase = on_host_clock / interval_seconds * beats
        assert phase == pytest.approx(round(phase), abs=1e-4)


@pytest.mark.parametrize("interval_seconds", INTERVALS)
def test_a_poll_follows_the_one_before_after_the_interval_however_late_that_was_made(interval_seconds: float) -> None:
    chance = random.Random(8)
    offset = chance.uniform(-1e6, 1e6)
    due = next_poll_at(chance.uniform(0, 1e5), interval_seconds, offset)
    for lateness in (0.0, 1e-9, -1e-9, MARGIN_SECONDS / 2, min(interval_seconds, BEAT_SECONDS) * 0.9):
        following = next_poll_at(due + lateness, interval_seconds, offset)
        assert following - due == pytest.approx(interval_seconds, abs=1e-6)
        due = following


@pytest.mark.parametrize("interval_seconds", INTERVALS)
def test_the_first_poll_comes_within_the_interval_and_less_than_a_beat_before_its_end(interval_seconds: float) -> None:
    chance = random.Random(9)
    beat_seconds = interval_seconds / max(1, int(interval_seconds / BEAT_SECONDS))
    for _ in range(200):
        contact = chance.uniform(0, 1e5)
        wait = next_poll_at(contact, interval_seconds, chance.uniform(-1e6, 1e6)) - contact
        assert interval_seconds - beat_seconds - 1e-6 <= wait <= interval_seconds + MARGIN_SECONDS + 1e-6


def make_contact(manager: Manager, now: float) -> None:
    manager.connected(now)
    manager.received(running(), now)


def polls(manager: Manager, first: float, count: int) -> list[float]:
    """Answer each poll a moment after it; give the times at which they were made."""
    made: list[float] = []
    now = first
    while len(made) < count:
        now = max(now, manager.deadline())
        for action in manager.tick(now):
            if isinstance(action, Send) and isinstance(action.message, Poll):
                made.append(now)
                manager.received(Status(action.message.seq, OWN, "running", 1, 1.0, None, None), now + 0.01)
    return made


def test_managers_with_clocks_and_contacts_of_their_own_poll_at_the_same_moments() -> None:
    host_times = []
    for contact, offset in ((0.3, 1000.2), (77.0, 923.9), (1000.85, 0.0)):
        manager = Manager(replace(OPTIONS, poll_seconds=5.0), OWN, contact, clock_offset_seconds=offset)
        make_contact(manager, contact)
        host_times.append([time + offset for time in polls(manager, contact, 4)])
    for times in host_times:
        assert times == pytest.approx([1005.0, 1010.0, 1015.0, 1020.0])


def test_the_patience_with_an_answer_counts_from_the_poll_and_not_from_its_beat() -> None:
    manager = Manager(replace(OPTIONS, timeout_seconds=6.0, poll_seconds=2.0), OWN, 0.0, clock_offset_seconds=0.0)
    make_contact(manager, 0.0)
    late = manager.deadline() + 0.7
    assert any(isinstance(action, Send) for action in manager.tick(late))
    assert manager.deadline() == pytest.approx(late + 3.0)
    assert manager.tick(late + 2.9) == []
