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
    packs = pack(rows, capacity)
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
    assert pack(np.array(rows), capacity) == sorted(tuple(sorted(p)) for p in packs)


def test_packs_are_in_file_order():
    """Without shuffling, the file is read roughly from top to bottom."""
    assert pack([5, 6, 5, 2, 2], 8) == [(0, 4), (1, 3), (2,)]


def test_a_row_over_the_capacity_is_refused():
    """It must be cut on purpose, before."""
    with pytest.raises(DataError, match="longer than a packed row"):
        pack([3, 9], 8)


def test_nothing_packs_into_nothing():
    """The border case of the tree of maxima."""
    assert pack([], 8) == []
    assert pack([8], 8) == [(0,)]
