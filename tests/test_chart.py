"""Curves as SVG: whole documents, and every point inside the drawing."""

from __future__ import annotations

import re
import xml.dom.minidom

from hypothesis import given
from hypothesis import strategies as st

from mlxfn.chart import HEIGHT, MOST_POINTS, WIDTH, Series, chart, ticks

NUMBERS = st.floats(-1e12, 1e12)


@given(NUMBERS, NUMBERS)
def test_ticks_enclose_the_values_in_equal_steps(low, high):
    """A point outside the first and last tick would be drawn over the labels."""
    low, high = min(low, high), max(low, high)
    found = ticks(low, high)
    slack = 1e-6 * max(abs(low), abs(high), 1.0)
    assert found[0] <= low + slack
    assert found[-1] >= high - slack
    assert 2 <= len(found) <= 12
    assert found == sorted(set(found))


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(allow_nan=True)), max_size=30))
def test_a_chart_is_a_whole_document_with_every_point_inside(points):
    """One broken element hides the page after it in a browser."""
    drawn = chart("loss <&>", [Series('a "name"', points), Series("b", points, "marks")])
    if not drawn:
        return
    xml.dom.minidom.parseString(drawn.encode())  # noqa: S318 - our own text
    for x, y in re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', drawn):
        assert 0 <= float(x) <= WIDTH
        assert 0 <= float(y) <= HEIGHT


def test_a_long_curve_is_thinned():
    """A run of a million updates must not make a page of 20 MB."""
    drawn = chart("loss", [Series("train", [(i, 1.0 + i % 7) for i in range(100_000)])])
    places = re.search(r'points="([^"]*)"', drawn)[1].split()
    assert len(places) <= MOST_POINTS
