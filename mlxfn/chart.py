"""Curves as SVG text: axes with round numbers, lines and marks; no script, no library."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Literal

import attrs

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 30, 28  # margins in the units of the drawing
MOST_POINTS = 1000  # of one line; more are averaged, the eye cannot tell


@attrs.frozen
class Series:
    """One curve.

    Args:
        name: Its name in the legend.
        points: (x, y) in order; those that are not finite are left out.
        kind: Joined by a line, or each a mark.
    """

    name: str
    points: Sequence[tuple[float, float]]
    kind: Literal["line", "marks"] = "line"


def chart(title: str, series: Iterable[Series]) -> str:
    """Draw curves in one pair of axes.

    Args:
        title: What the y axis shows.
        series: The curves; the first is drawn first.

    Returns:
        An ``<svg>`` element, or nothing where no curve has a point. Colours come from the CSS
        classes ``s0``, ``s1``, ... of the page around it.

    Example:
        >>> chart("loss", [Series("train", [(1, 2.0), (2, 1.0)])]).startswith("<svg")
        True
        >>> chart("loss", [Series("train", [(1, float("nan"))])])
        ''
    """
    curves = [attrs.evolve(curve, points=_drawable(curve.points)) for curve in series]
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return ""
    scale = _Scale([point for curve in curves for point in curve.points])
    parts = [f'<text class="title" x="{LEFT}" y="16">{escape(title)}</text>', *_axes(scale)]
    for index, curve in enumerate(curves):
        draw = _line if curve.kind == "line" else _marks
        parts.append(f'<g class="s{index}">{draw(curve, scale)}{_legend(curve, index)}</g>')
    label = escape(f"{title}: {', '.join(curve.name for curve in curves)}")
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return "\n".join([head, *parts, "</svg>"])


class _Scale:
    """From values to places in the drawing."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        self.x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points))
        self.y_ticks = ticks(min(y for _, y in points), max(y for _, y in points))

    def x(self, value: float) -> float:
        """Return the horizontal place of a value."""
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Return the vertical place of a value."""
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about ``count`` round numbers that reach from at most low to at least high.

    Example:
        >>> ticks(0, 150), ticks(1.9, 4.6)
        ([0.0, 50.0, 100.0, 150.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    """
    if high <= low:
        margin = abs(low) / 4 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / (count - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    size = next(power * step for step in (1, 2, 5, 10) if power * step >= raw * 0.75)
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    return [float(f"{index * size:.12g}") for index in range(first, last + 1)]


def _drawable(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    size = -(-len(finite) // MOST_POINTS) or 1
    groups = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def _axes(scale: _Scale) -> list[str]:
    parts: list[str] = []
    for value in scale.y_ticks:
        y = scale.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y + 4}">{value:g}</text>')
    for value in scale.x_ticks:
        x, y = scale.x(value), HEIGHT - BOTTOM + 18
        parts.append(f'<text class="tick middle" x="{x}" y="{y}">{value:g}</text>')
    return parts


def _line(curve: Series, scale: _Scale) -> str:
    if len(curve.points) == 1:
        return _marks(curve, scale)
    places = " ".join(f"{scale.x(x)},{scale.y(y)}" for x, y in curve.points)
    return f'<polyline class="line" points="{places}"/>'


def _marks(curve: Series, scale: _Scale) -> str:
    return "".join(
        f'<circle class="mark" cx="{scale.x(x)}" cy="{scale.y(y)}" r="3">'
        f"<title>{escape(curve.name)} at {x:g}: {y:.6g}</title></circle>"
        for x, y in curve.points
    )


def _legend(curve: Series, index: int) -> str:
    x = WIDTH - RIGHT - 110 * (index + 1)
    return (
        f'<circle class="mark" cx="{x}" cy="12" r="4"/>'
        f'<text class="tick" x="{x + 8}" y="16">{escape(curve.name)}</text>'
    )
