"""The tables of the page: the goals in one, how each figure grows in another. Pure."""

from __future__ import annotations

from bench.goals import FIGURES, PAIR, SUBJECTS, Figure, is_held
from bench.samples import Samples, percentile

P90 = 0.9
NOTHING = "-"

Table = tuple[list[str], list[list[str]]]


def goals_table(samples: Samples) -> Table:
    """Give columns and rows of the figures at the sizes of their goals: medians, with the 90th percentile behind."""
    columns = ["figure", "unit", *SUBJECTS.values(), "goal", "measured (rounds)", "held"]
    rows = [
        [
            _title(figure),
            figure.unit,
            *(_cell(figure, subject, samples) for subject in SUBJECTS),
            _goal(figure),
            _measured(figure, samples),
            {True: "yes", False: "**no**", None: NOTHING}[is_held(figure, samples)],
        ]
        for figure in FIGURES
        if not figure.in_growth_only
    ]
    return columns, rows


def growth_table(samples: Samples) -> Table:
    """Give columns and rows of the medians at each number of applications."""
    columns = ["figure", "unit", "applications", *SUBJECTS.values()]
    rows = [
        [figure.title, figure.unit, str(size), *(_median(figure, subject, size, samples) for subject in SUBJECTS)]
        for figure in FIGURES
        for size in samples.sizes(figure.key)
    ]
    return columns, rows


def number(value: float) -> str:
    """Give three significant digits, without an exponent."""
    if value == 0:
        return "0"
    magnitude = abs(value)
    digits = 0 if magnitude >= 100 else 1 if magnitude >= 10 else 2 if magnitude >= 1 else 3
    return f"{value:.{digits}f}"


def _title(figure: Figure) -> str:
    return figure.title if figure.size == 1 else f"{figure.title}, {figure.size} applications"


def _median(figure: Figure, subject: str, size: int, samples: Samples) -> str:
    value = samples.median(figure.key, subject, size)
    return NOTHING if value is None else number(value)


def _cell(figure: Figure, subject: str, samples: Samples) -> str:
    values = samples.values(figure.key, subject, figure.size)
    if not values:
        return NOTHING
    return f"{_median(figure, subject, figure.size, samples)} ({number(percentile(values, P90))})"


def _goal(figure: Figure) -> str:
    if figure.goal is None:
        return NOTHING
    if figure.goal.of is None:
        return f"≤ {figure.goal.limit:g} {figure.unit}"
    return f"≤ {figure.goal.limit:.2f} of {SUBJECTS[figure.goal.of]}"


def _measured(figure: Figure, samples: Samples) -> str:
    if figure.goal is None:
        return NOTHING
    if figure.goal.of is None:
        value = samples.median(figure.key, PAIR, figure.size)
        return NOTHING if value is None else f"{number(value)} {figure.unit}"
    ratio = samples.ratio(figure.key, PAIR, figure.goal.of, figure.size)
    return NOTHING if ratio is None else f"{ratio.value:.2f} ({ratio.least:.2f} to {ratio.greatest:.2f})"
