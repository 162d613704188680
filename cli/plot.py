"""Curves in a terminal: braille dots for a line, a mark for each single point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Points = Sequence[tuple[float, float]]
"""(x, y) of a curve; points that are not finite are left out."""
Span = tuple[str, str]
"""A piece of text and what it is: ``"axis"``, ``"line"`` or ``"marks"``."""

# Bits of the 2 x 4 dots of a braille character, from the left column and the top row.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BRAILLE = 0x2800


def plot(
    line: Points, marks: Points = (), *, width: int = 60, height: int = 10, ascii_only: bool = False
) -> list[list[Span]]:
    r"""Draw a curve and single points over it, with the range of both axes.

    Args:
        line: The points of the curve, joined; neighbours are averaged where they are many.
        marks: Points drawn as single marks on top of it.
        width: Columns of the whole drawing.
        height: Rows of the whole drawing.
        ascii_only: Use only characters that every terminal has.

    Returns:
        The lines of the drawing, each in spans; empty where there is nothing to draw.

    Example:
        >>> rows = plot([(0, 2.0), (1, 1.0)], [(1, 1.0)], width=14, height=4, ascii_only=True)
        >>> print("\n".join("".join(text for text, _ in row).rstrip() for row in rows))
        2.00 |...
             |  ....
        1.00 |     ..o
              0      1
    """
    line, marks = _thinned(_finite(line), width), _finite(marks)
    everything = [*line, *marks]
    if not everything or width < 12 or height < 3:
        return []
    box = _Box(everything, width, height)
    dots = _trace(line, box)
    signs = {box.cell(point) for point in marks}
    rows = [
        [(label, "axis"), *_row(dots, signs, box, row, ascii_only=ascii_only)]
        for row, label in enumerate(box.labels(ascii_only=ascii_only))
    ]
    return [*rows, [(box.footer(), "axis")]]


def smoothed(points: Points, keep: float = 0.8) -> Points:
    """Return a curve as its running mean, in which single batches weigh less than the trend.

    Args:
        points: The curve.
        keep: Weight of the past against each new point.

    Example:
        >>> [round(y, 2) for _, y in smoothed([(1, 4.0), (2, 2.0), (3, 2.0)], keep=0.5)]
        [4.0, 2.67, 2.29]
    """
    total = weight = 0.0
    result: list[tuple[float, float]] = []
    for x, y in _finite(points):
        total, weight = keep * total + y, keep * weight + 1
        result.append((x, total / weight))
    return result


LOGARITHMIC_FROM = 10.0
"""Ratio of the highest to the lowest value from which the y axis is logarithmic."""


def is_logarithmic(*curves: Points) -> bool:
    """Return whether curves are drawn on a logarithmic axis: one fall must not hide the rest.

    Example:
        >>> is_logarithmic([(0, 5.0), (1, 0.1)]), is_logarithmic([(0, 5.0)], [(1, 1.0)])
        (True, False)
    """
    ys = [y for curve in curves for _, y in _finite(curve)]
    return bool(ys) and min(ys) > 0 and max(ys) > LOGARITHMIC_FROM * min(ys)


class _Box:
    """The drawing area: from the range of the points to its characters and dots."""

    def __init__(self, points: Points, width: int, height: int) -> None:
        xs, ys = [x for x, _ in points], [y for _, y in points]
        self.left, self.right = min(xs), max(xs)
        self.low, self.high = min(ys), max(ys)
        self.log = is_logarithmic(points)
        self.margin = max(len(_number(self.low)), len(_number(self.high)))
        self.columns = width - self.margin - 2
        self.rows = height - 1

    def dot(self, point: tuple[float, float]) -> tuple[int, int]:
        """Return the dot (column, row from the top) of a point."""
        across = _share(point[0], self.left, self.right)
        down = 1 - _share(self._scale(point[1]), self._scale(self.low), self._scale(self.high))
        return round(across * (2 * self.columns - 1)), round(down * (4 * self.rows - 1))

    def _scale(self, value: float) -> float:
        return math.log(value) if self.log else value

    def cell(self, point: tuple[float, float]) -> tuple[int, int]:
        """Return the character (column, row) of a point."""
        column, row = self.dot(point)
        return column // 2, row // 4

    def labels(self, *, ascii_only: bool) -> list[str]:
        """Return the left margin of each row: three values from the highest down, and the axis."""
        texts = [""] * self.rows
        texts[-1], texts[0] = _number(self.low), _number(self.high)
        if self.rows >= 7 and self.rows % 2:  # an odd number has a row in the middle
            middle = (self._scale(self.low) + self._scale(self.high)) / 2
            texts[self.rows // 2] = _number(math.exp(middle) if self.log else middle)
        axis = "|" if ascii_only else "┤"
        bare = "|" if ascii_only else "│"
        return [f"{text:>{self.margin}} {axis if text else bare}" for text in texts]

    def footer(self) -> str:
        """Return the line below the drawing: the first and the last x."""
        first, last = f"{self.left:g}", f"{self.right:g}"
        gap = max(self.columns - len(first) - len(last), 1)
        return " " * (self.margin + 2) + first + " " * gap + last


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:.0f}"


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _thinned(points: Points, most: int) -> Points:
    """Return at most about this many points, each the mean of its neighbours."""
    size = max(-(-len(points) // most), 1)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in groups
    ]


def _trace(points: Points, box: _Box) -> Mapping[tuple[int, int], int]:
    """Return the braille bits of each character that the joined points touch."""
    bits: dict[tuple[int, int], int] = {}
    corners = [box.dot(point) for point in points]
    for start, end in zip(corners, corners[1:] or corners, strict=False):
        for column, row in _segment(start, end):
            cell = (column // 2, row // 4)
            bits[cell] = bits.get(cell, 0) | _DOTS[column % 2][row % 4]
    return bits


def _segment(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    return [
        (
            round(start[0] + (end[0] - start[0]) * step / steps),
            round(start[1] + (end[1] - start[1]) * step / steps),
        )
        for step in range(steps + 1)
    ]


def _row(
    dots: Mapping[tuple[int, int], int],
    signs: set[tuple[int, int]],
    box: _Box,
    row: int,
    *,
    ascii_only: bool,
) -> list[Span]:
    spans: list[Span] = []
    for column in range(box.columns):
        bits = dots.get((column, row), 0)
        if (column, row) in signs:
            spans.append(("o" if ascii_only else "●", "marks"))
        elif bits:
            spans.append(("." if ascii_only else chr(_BRAILLE + bits), "line"))
        else:
            spans.append((" ", "line"))
    return spans
