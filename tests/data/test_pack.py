"""Packing: every row once, nothing over capacity, first fit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn.data.pack import pack
from mlxfn.errors import DataError
from tests.data.helpers import lengths

capacities = st.integers(40, 120)


@given(rows=lengths, capacity=capacities)
def test_every_row_is_in_exactly_one_pack_that_holds_it(rows, capacity):
    """Lost rows are lost data; an overfull pack would cut one."""
    packs = list(pack(rows, capacity))
    assert sorted(row for members in packs for row in members) == list(range(len(rows)))
    assert all(sum(rows[row] for row in members) <= capacity for members in packs)


@given(rows=lengths, capacity=capacities)
def test_it_is_first_fit_by_falling_length(rows, capacity):
    """Against the obvious program, which looks at every pack."""
    packs: list[list[int]] = []
    for row in sorted(range(len(rows)), key=lambda row: (-rows[row], row)):
        fits = (p for p in packs if sum(rows[r] for r in p) + rows[row] <= capacity)
        members = next(fits, None)
        if members is None:
            packs.append(members := [])
        members.append(row)
    assert list(pack(np.array(rows), capacity)) == sorted(tuple(sorted(p)) for p in packs)


def test_packs_are_in_file_order():
    """Without shuffling, the file is read roughly from top to bottom."""
    assert list(pack([5, 6, 5, 2, 2], 8)) == [(0, 4), (1, 3), (2,)]


def test_a_row_over_the_capacity_is_refused():
    """It must be cut on purpose, before."""
    with pytest.raises(DataError, match="longer than a packed row"):
        pack([3, 9], 8)


def test_nothing_packs_into_nothing():
    """The border case of the tree of maxima."""
    assert list(pack([], 8)) == []
    assert list(pack([8], 8)) == [(0,)]


@given(rows=lengths, capacity=capacities, window=st.integers(1, 20))
def test_what_comes_later_does_not_change_what_was_packed(rows, capacity, window):
    """A window is packed alone, so that ten million rows are packed as they stream by."""
    whole = list(pack(rows, capacity, window=window))
    parts = [
        tuple(start + row for row in members)
        for start in range(0, len(rows), window)
        for members in pack(rows[start : start + window], capacity)
    ]
    assert whole == parts


def test_packs_know_what_they_use():
    """Their lengths decide which bucket they fill."""
    packs = pack([5, 6, 5, 2, 2], 8)
    assert packs.sizes.tolist() == [7, 8, 5]
    with pytest.raises(IndexError):
        packs[3]


def test_lognormal_rows_leave_less_than_a_twentieth_empty():
    """Median 60, at most 512: the rows that padding costs most."""
    rows = np.random.default_rng(0).lognormal(np.log(60), 0.8, 5000).astype(int).clip(2, 512)
    assert 1 - rows.sum() / (len(pack(rows, 512)) * 512) < 0.05
