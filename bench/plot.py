"""A curve of one figure over the number of applications, one line for each subject, as a small SVG. Pure.

Drawn by hand: both axes logarithmic, fixed colours and sizes, two decimals at most, so that the same samples give the
same bytes and another run a small difference.
"""

from __future__ import annotations

import math
from typing import final
from xml.sax.saxutils import escape

from bench.goals import SUBJECTS, Figure
from bench.samples import Samples
from bench.table import number

WIDTH, HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 452, 36, 312

COLOURS = dict(
    zip(SUBJECTS, ("#c0392b", "#1f77b4", "#6baed6", "#2ca02c", "#98df8a", "#555555", "#aaaaaa"), strict=True)
)


@final
class _Axis:
    """A logarithmic axis from one place of the picture to another."""

    def __init__(self, least: float, greatest: float, start: int, end: int) -> None:
        self._least, self._span = math.log10(least), math.log10(greatest / least) or 1.0
        self._start, self._length = start, end - start

    def place(self, value: float) -> float:
        return self._start + self._length * (math.log10(value) - self._least) / self._span


def curve(figure: Figure, samples: Samples) -> str | None:
    """Draw the medians; None where nobody was measured at two sizes or more."""
    lines = {subject: points for subject in SUBJECTS if (points := _points(figure, subject, samples))}
    sizes = sorted({size for points in lines.values() for size, _ in points})
    if len(sizes) < 2:
        return None
    values = [value for points in lines.values() for _, value in points]
    low, high = 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)))
    across = _Axis(sizes[0], sizes[-1], _LEFT, _RIGHT)
    up = _Axis(low, high if high > low else 10 * low, _BOTTOM, _TOP)
    parts = [_text(_LEFT, 20, f"{figure.title} ({figure.unit}, median)", size=13), *_grid(across, up, sizes, low, high)]
    for place, (subject, points) in enumerate(lines.items()):
        parts += _line(subject, [(across.place(size), up.place(value)) for size, value in points])
        parts.append(
            f'<rect x="{_RIGHT + 16}" y="{_TOP + 20 * place}" width="12" height="4" fill="{COLOURS[subject]}"/>'
        )
        parts.append(_text(_RIGHT + 34, _TOP + 6 + 20 * place, SUBJECTS[subject]))
    parts.append(_text(_LEFT, HEIGHT - 12, "applications"))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', *parts, "</svg>\n"])


def _points(figure: Figure, subject: str, samples: Samples) -> list[tuple[int, float]]:
    # What is nothing has no logarithm: neither a server without applications, nor a figure of zero.
    found = ((size, samples.median(figure.key, subject, size)) for size in samples.sizes(figure.key) if size)
    return [(size, value) for size, value in found if value]


def _grid(across: _Axis, up: _Axis, sizes: list[int], low: float, high: float) -> list[str]:
    parts = []
    value = low
    while value <= high * 1.001:
        y = up.place(value)
        parts.append(f'<line x1="{_LEFT}" y1="{_short(y)}" x2="{_RIGHT}" y2="{_short(y)}" stroke="#dddddd"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{value:g}" if value >= 0.001 else number(value), anchor="end"))
        value *= 10
    for size in sizes:
        x = across.place(size)
        parts.append(f'<line x1="{_short(x)}" y1="{_TOP}" x2="{_short(x)}" y2="{_BOTTOM}" stroke="#eeeeee"/>')
        parts.append(_text(x, _BOTTOM + 16, str(size), anchor="middle"))
    return parts


def _line(subject: str, points: list[tuple[float, float]]) -> list[str]:
    colour = COLOURS[subject]
    path = " ".join(f"{_short(x)},{_short(y)}" for x, y in points)
    dots = [f'<circle cx="{_short(x)}" cy="{_short(y)}" r="3" fill="{colour}"/>' for x, y in points]
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>', *dots]


def _text(x: float, y: float, text: str, *, size: int = 11, anchor: str = "start") -> str:
    return f'<text x="{_short(x)}" y="{_short(y)}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'


def _short(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
