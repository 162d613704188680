"""Few lengths, little padding."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn.data.buckets import bucket_for, choose_buckets
from mlxfn.errors import DataError
from tests.data.helpers import lengths


@given(rows=lengths, count=st.integers(1, 6), limit=st.integers(40, 60))
def test_every_row_fits_the_smallest_bucket_that_holds_it(rows, count, limit):
    """A row over its bucket would be cut."""
    buckets = choose_buckets(np.array(rows), limit, count)
    assert len(buckets) <= count
    assert (np.diff(buckets) > 0).all()
    assert max(rows) <= buckets[-1] <= limit
    held = bucket_for(np.array(rows), buckets)
    assert (held >= rows).all()
    assert all((buckets[buckets < top] < row).all() for row, top in zip(rows, held, strict=True))


@given(rows=st.lists(st.integers(1, 80), min_size=1, max_size=30), count=st.integers(1, 4))
def test_no_other_buckets_would_pad_much_less(rows, count):
    """Against all choices there are: within the half percent that a further bucket has to save."""
    rows = np.array(rows)
    tops = np.unique(-(-rows // 8) * 8)
    choices = [
        np.array([*inner, tops[-1]])
        for size in range(min(count, len(tops)))
        for inner in combinations(tops[:-1], size)
    ]
    least = min(bucket_for(rows, choice).sum() for choice in choices)
    assert bucket_for(rows, choose_buckets(rows, 1000, count)).sum() <= 1.005 * least


def test_lengths_alike_need_one_bucket():
    """Each bucket costs a compiled trace."""
    assert choose_buckets(np.array([97, 99, 101, 104] * 9), 2048).tolist() == [104]


def test_long_rows_are_rounded_more_coarsely():
    """The search stays small for a context of 128k."""
    rows = np.random.default_rng(0).integers(1, 131_072, 5000)
    buckets = choose_buckets(rows, 131_072)
    assert buckets[-1] >= rows.max()
    assert bucket_for(rows, buckets).sum() < 1.2 * rows.sum()


def test_a_row_over_the_limit_is_refused():
    """The loader was given other rows than were encoded for it."""
    with pytest.raises(DataError, match="longer than max_seq_length"):
        choose_buckets(np.array([4, 70]), 64)
