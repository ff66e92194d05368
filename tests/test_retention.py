"""Which outcomes are forgotten where there are too many: at the expense of whoever has the most."""

from __future__ import annotations

from random import Random

import pytest

from appserver import retention
from appserver.effects import Phase, Run
from appserver.identity import Service
from appserver.outcome import Exited
from appserver.retention import Ended, to_forget


def ended(number: int, owner: str = "A", *, collected: bool = False, gone: bool = True, words: int = 1) -> Run:
    service = Service("vector", (f"/apps/{number}", *(f"{word:02d}" for word in range(words - 1))))
    return Run(f"r{number}", service, Phase.ENDED, outcome=Exited(0), collected=collected, gone=gone, owner=owner)


def forgotten(*runs: Run) -> list[str]:
    return [run.run_id for run in to_forget(runs)]


@pytest.mark.usefixtures("one_kept")
def test_within_the_bounds_only_what_was_collected_and_succeeded_is_forgotten() -> None:
    first, again = ended(1, collected=True), ended(1, collected=True)
    assert forgotten(first, again, ended(2)) == ["r1"]
    assert to_forget([first, again])[0] is first


def test_nobody_pushes_out_what_another_certificate_has_not_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MAX_KEPT_OUTCOMES", 4)
    quiet = [ended(number, "quiet") for number in range(2)]
    loud = [ended(number, "loud") for number in range(2, 8)]
    assert forgotten(*quiet, *loud) == ["r2", "r3", "r4", "r5"]


def test_among_equals_the_share_of_each_goes_down_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MAX_KEPT_OUTCOMES", 2)
    runs = [ended(number, "AB"[number % 2]) for number in range(6)]
    assert sorted(forgotten(*runs)) == ["r0", "r1", "r2", "r3"]


def test_a_vector_of_many_words_counts_with_the_memory_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MAX_KEPT_BYTES", 100_000)
    small, large = [ended(number) for number in range(5)], ended(9, "B", words=3000)
    assert large.service_bytes > 100_000
    assert forgotten(*small, large) == ["r9"]


def test_what_still_has_somebody_of_its_tree_stays_though_it_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MAX_KEPT_OUTCOMES", 1)
    assert forgotten(ended(1, gone=False), ended(2, gone=False), ended(3)) == ["r3"]


@pytest.mark.parametrize("seed", range(6))
def test_what_is_counted_along_forgets_what_a_look_at_all_runs_would(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(retention, "MAX_KEPT_OUTCOMES", 12)
    monkeypatch.setattr(retention, "KEPT_OF_A_SERVICE", 2)
    monkeypatch.setattr(retention, "MAX_KEPT_BYTES", 2000)
    dice = Random(seed)
    kept, runs, forgotten_once = Ended(), list[Run](), False
    for number in range(200):
        run = ended(dice.randrange(8), dice.choice("AB"), collected=dice.random() < 0.3, words=dice.choice((1, 1, 5)))
        run.run_id, run.gone = f"r{number}", dice.random() < 0.8
        runs.append(run)
        kept.add(run)
        dice.choice(runs).collected = dice.choice(runs).gone = True
        expected = to_forget(runs)
        assert {id(run) for run in kept.to_forget()} == {id(run) for run in expected}
        for run in expected:
            kept.discard(run)
            kept.discard(run)
            runs.remove(run)
            forgotten_once = True
        assert list(kept) == [run.run_id for run in runs]
        for service in {run.service for run in runs}:
            assert list(kept.newest_first(service)) == [run for run in reversed(runs) if run.service == service]
    assert forgotten_once


def test_within_the_bounds_nobody_looks_at_the_runs_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        pytest.fail("the thirtieth end would cost as much as the thirty before it")

    monkeypatch.setattr(retention, "to_forget", fail)
    kept = Ended()
    for number in range(500):
        kept.add(ended(number))
        assert not kept.to_forget()
