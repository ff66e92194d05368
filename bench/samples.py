"""What was measured, sample by sample, and what it comes to: medians, ninetieth percentiles, ratios. Pure."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import final


@final
@dataclass(frozen=True, slots=True)
class Sample:
    """One measured value of one figure.

    `size` is the number of applications that were watched at the time; `round` tells which samples of two subjects
    were taken in the same minutes, and so in the same mood of the machine.
    """

    figure: str
    subject: str
    size: int
    round: int
    value: float


@final
@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of medians, with the least and the greatest ratio that any single round would have given."""

    value: float
    least: float
    greatest: float


@final
class Samples:
    """All samples of a run, in the order of measuring."""

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        self._samples = list(samples)

    def add(self, sample: Sample) -> None:
        """Keep one more."""
        self._samples.append(sample)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._samples)

    def values(self, figure: str, subject: str, size: int) -> list[float]:
        """Give the values of one figure of one subject at one size; none where it was not measured."""
        return [
            sample.value
            for sample in self._samples
            if (sample.figure, sample.subject, sample.size) == (figure, subject, size)
        ]

    def median(self, figure: str, subject: str, size: int) -> float | None:
        """Give the median, or None where nothing was measured."""
        values = self.values(figure, subject, size)
        return statistics.median(values) if values else None

    def sizes(self, figure: str) -> list[int]:
        """Give the sizes at which anybody was measured, smallest first."""
        return sorted({sample.size for sample in self._samples if sample.figure == figure})

    def ratio(self, figure: str, subject: str, other: str, size: int) -> Ratio | None:
        """Compare two subjects; None where one of them was not measured, or the other took nothing.

        A round counts for the spread where both were measured in it; without any such, the spread is the value.
        """
        mine, theirs = self.median(figure, subject, size), self.median(figure, other, size)
        if mine is None or not theirs:
            return None
        value = mine / theirs
        ours, others = self._by_round(figure, subject, size), self._by_round(figure, other, size)
        each = [ours[number] / others[number] for number in ours if others.get(number)]
        return Ratio(value, min(each, default=value), max(each, default=value))

    def _by_round(self, figure: str, subject: str, size: int) -> dict[int, float]:
        found: dict[int, list[float]] = {}
        for sample in self._samples:
            if (sample.figure, sample.subject, sample.size) == (figure, subject, size):
                found.setdefault(sample.round, []).append(sample.value)
        return {number: statistics.median(values) for number, values in found.items()}

    def to_json(self) -> str:
        """Give all samples as JSON, one object for each."""
        return "[\n" + ",\n".join(json.dumps(asdict(sample)) for sample in self._samples) + "\n]\n"


def percentile(values: Sequence[float], share: float) -> float:
    """Give the smallest value that is at least as great as `share` of all (the nearest rank; no value is made up).

    Raises ValueError where there is no value, or no such share.
    """
    if not values or not 0 < share <= 1:
        raise ValueError(f"a percentile needs values and a share over 0 and up to 1, not {share!r} of {len(values)}")
    return sorted(values)[math.ceil(share * len(values)) - 1]
