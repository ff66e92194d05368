"""The benchmark's arithmetic: what it makes of samples, and in which order it takes them."""

from __future__ import annotations

import json
from collections import Counter
from xml.etree import ElementTree as ET

import figures
import pytest

from bench import goals
from bench.cli import PAGE
from bench.goals import FIGURES, JAVA, JAVA_DEFAULT, PAIR, SSH, SUBJECTS, is_held
from bench.plan import GOAL_SIZE, LARGE_SIZES, REST_SECONDS, SMALL_SIZES, steps
from bench.plot import curve
from bench.samples import Ratio, Sample, Samples, percentile
from bench.table import goals_table, growth_table, number

ALL_SIZES = SMALL_SIZES + LARGE_SIZES


def samples_of(values: dict[tuple[str, int], list[float]], figure: str = "cold") -> Samples:
    """Make samples by subject and size, each in a round of its own."""
    return Samples(
        Sample(figure, subject, size, number, value)
        for (subject, size), found in values.items()
        for number, value in enumerate(found)
    )


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([1.0], 0.9, 1.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([float(n) for n in range(1, 11)], 0.9, 9.0),
        ([1.0, 2.0], 1, 2.0),
    ],
)
def test_a_percentile_is_a_value_that_was_measured(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.1)])
def test_a_percentile_of_nothing_is_refused(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, share)


def test_a_ratio_is_of_medians_and_its_spread_of_rounds() -> None:
    samples = samples_of({(PAIR, 1): [2.0, 3.0, 10.0], (SSH, 1): [4.0, 4.0, 5.0]})
    assert samples.ratio("cold", PAIR, SSH, 1) == Ratio(0.75, 0.5, 2.0)


def test_a_ratio_needs_both_sides() -> None:
    samples = samples_of({(PAIR, 1): [2.0], (SSH, 1): [0.0]})
    assert samples.ratio("cold", PAIR, JAVA, 1) is None
    assert samples.ratio("cold", PAIR, SSH, 1) is None


def test_samples_of_different_rounds_have_no_spread() -> None:
    samples = Samples([Sample("cold", PAIR, 1, 0, 1.0), Sample("cold", SSH, 1, 1, 4.0)])
    assert samples.ratio("cold", PAIR, SSH, 1) == Ratio(0.25, 0.25, 0.25)


@pytest.mark.parametrize(("ours", "held"), [([0.4], True), ([0.41], False), ([], None)])
def test_a_goal_is_held_up_to_its_limit(ours: list[float], *, held: bool | None) -> None:
    samples = samples_of({(PAIR, 1): ours, (SSH, 1): [1.0]})
    assert is_held(goals.COLD, samples) is held


@pytest.mark.parametrize(("ours", "held"), [([500.0], True), ([501.0], False), ([], None)])
def test_a_goal_without_anybody_to_compare_with_is_absolute(ours: list[float], *, held: bool | None) -> None:
    assert is_held(goals.LISTENING, samples_of({(PAIR, 30): ours}, "listening")) is held


def test_a_figure_without_a_goal_is_neither_held_nor_missed() -> None:
    assert is_held(goals.HOST_PSS_MAX, samples_of({(PAIR, 30): [1.0]}, "host-pss-max")) is None


def test_the_goals_table_says_medians_goals_and_who_holds_them() -> None:
    columns, rows = goals_table(samples_of({(PAIR, 1): [100.0, 300.0, 120.0], (SSH, 1): [350.0, 330.0, 360.0]}))
    cold = dict(zip(columns, rows[0], strict=True))
    assert cold[SUBJECTS[PAIR]] == "120 (300)"
    assert (cold["goal"], cold["measured (rounds)"], cold["held"]) == (
        "≤ 0.40 of OpenSSH",
        "0.34 (0.29 to 0.91)",
        "yes",
    )
    assert {len(row) for row in rows} == {len(columns)}
    assert dict(zip(columns, rows[1], strict=True))["held"] == "-"


def test_the_growth_table_has_a_row_for_each_size() -> None:
    columns, rows = growth_table(samples_of({(PAIR, 1): [1.0], (PAIR, 300): [2.0], (SSH, 10): [3.0]}))
    where = columns.index(SUBJECTS[PAIR])
    assert [(row[2], row[where]) for row in rows] == [("1", "1.00"), ("10", "-"), ("300", "2.00")]


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (1234.4, "1234"), (99.96, "100.0"), (5.306, "5.31"), (0.0123, "0.012")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_curve_is_a_picture_with_a_line_for_each_subject_that_has_two_points() -> None:
    samples = samples_of({(PAIR, 1): [0.02], (PAIR, 300): [90.0], (SSH, 1): [5.0], (SSH, 10): [0.0]})
    picture = curve(goals.COLD, samples)
    assert picture is not None
    root = ET.fromstring(picture)
    space = "{http://www.w3.org/2000/svg}"
    lines = [line.attrib["points"].split() for line in root.iter(f"{space}polyline")]
    assert [len(points) for points in lines] == [2, 1]  # nothing has no logarithm
    assert curve(goals.COLD, samples) == picture


def test_there_is_no_curve_of_one_size() -> None:
    assert curve(goals.COLD, samples_of({(PAIR, 1): [1.0], (SSH, 1): [2.0]})) is None


def test_samples_can_be_read_back() -> None:
    samples = samples_of({(PAIR, 1): [1.5], (SSH, 10): [2.0]})
    assert [Sample(**entry) for entry in json.loads(samples.to_json())] == list(samples)


def test_every_figure_is_known_by_one_name_and_every_goal_by_a_subject() -> None:
    assert len({figure.key for figure in FIGURES}) == len(FIGURES)
    assert all(figure.goal is None or figure.goal.of in {None, *SUBJECTS} for figure in FIGURES)


def test_everybody_takes_turns_and_nobody_is_always_first() -> None:
    plan = list(steps(4, ALL_SIZES))
    firsts = [next(step.subject for step in plan if step.round == number) for number in range(4)]
    assert len(set(firsts)) == 4
    for size in (1, GOAL_SIZE):
        assert Counter(step.subject for step in plan if step.size == size)[PAIR] == 4
        assert Counter(step.subject for step in plan if step.size == size)[SSH] == 4
    assert {step.subject for step in plan} == set(SUBJECTS)


def test_ssh_goes_on_to_the_size_that_is_asked_for() -> None:
    for most in (100, 300):
        plan = list(steps(1, ALL_SIZES, ssh_most=most))
        assert max(step.size for step in plan if step.subject == SSH) == most
    assert max(step.size for step in plan if step.subject == PAIR) == 300


def test_java_stays_with_sizes_that_fit() -> None:
    plan = list(steps(2, ALL_SIZES))
    assert max(step.size for step in plan if step.subject in {JAVA, JAVA_DEFAULT}) == GOAL_SIZE
    assert not {step.subject for step in steps(2, ALL_SIZES, java=False)} & {JAVA, JAVA_DEFAULT}


def test_the_minute_of_rest_comes_once_and_only_the_pair_rests() -> None:
    resting = [step for step in steps(3, ALL_SIZES) if step.rest_seconds]
    assert {step.subject for step in resting} == {PAIR}
    assert Counter(step.size for step in resting) == dict.fromkeys(ALL_SIZES[1:], 1)
    assert [step.size for step in resting if step.rest_seconds == REST_SECONDS] == [GOAL_SIZE]


def test_the_page_has_a_place_for_both_tables() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for section in ("goals", "growth"):
        assert "new figures" in figures.replace(text, section, "new figures")
