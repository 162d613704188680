"""The order of rows as a law: nothing lost, nothing repeated, everything from (seed, epoch)."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlxfn.data.order import Order, batch_count
from mlxfn.data.shuffle import round_keys, shuffled
from tests.data.helpers import lengths, seeds

sizes = st.integers(1, 9)
epochs = st.integers(0, 1000)


def plan_of(rows, size, *, epoch, **options):
    order = Order.of(np.array(rows), size, **options)
    return [order.batch(epoch, position).tolist() for position in range(order.batches)]


@given(rows=lengths, size=sizes, seed=seeds, epoch=epochs, shuffle=st.booleans())
def test_every_row_stands_in_exactly_one_batch(rows, size, seed, epoch, shuffle):
    """No row is lost at the tail, none is drawn twice."""
    plan = plan_of(rows, size, seed=seed, epoch=epoch, shuffle=shuffle)
    assert sorted(row for batch in plan for row in batch) == list(range(len(rows)))


@given(rows=lengths, size=sizes, seed=seeds, epoch=epochs, shuffle=st.booleans())
def test_every_epoch_has_the_same_number_of_batches(rows, size, seed, epoch, shuffle):
    """A schedule is planned from it; at most one batch is short."""
    plan = plan_of(rows, size, seed=seed, epoch=epoch, shuffle=shuffle)
    assert len(plan) == batch_count(len(rows), size) == -(-len(rows) // size)
    assert sorted(map(len, plan))[1:] == [size] * (len(plan) - 1)


@given(rows=lengths, size=sizes, seed=seeds, epoch=epochs)
def test_the_order_is_a_function_of_seed_and_epoch(rows, size, seed, epoch):
    """A resumed run asks for the same epoch again, after other epochs or in a new process."""
    first = plan_of(rows, size, seed=seed, epoch=epoch)
    np.random.seed(epoch)  # noqa: NPY002 - the global stream must not matter
    plan_of(rows, size, seed=seed, epoch=epoch + 1)
    assert plan_of(rows, size, seed=seed, epoch=epoch) == first


def test_epochs_and_seeds_have_orders_of_their_own():
    """The same order every epoch is no shuffle; a seed that is ignored is no seed."""
    rows = [8] * 50
    plans = [plan_of(rows, 4, seed=s, epoch=e) for s in (0, 1, 2**40) for e in range(3)]
    assert len({str(plan) for plan in plans}) == len(plans)


def test_the_order_does_not_change_between_versions():
    """A run that was started with another version would resume in another order."""
    assert plan_of([8, 16, 8, 16, 8], 2, seed=3, epoch=1) == [[4, 2], [0, 3], [1]]


@given(rows=lengths, size=sizes)
def test_without_shuffle_rows_come_in_file_order(rows, size):
    """Consecutive rows per batch, in every epoch."""
    plan = plan_of(rows, size, seed=0, epoch=5, shuffle=False)
    assert [row for batch in plan for row in batch] == list(range(len(rows)))


@given(rows=lengths, size=sizes, seed=seeds)
def test_rows_of_like_length_share_a_batch(rows, size, seed):
    """Sorted by length, not by anything else: the spans of lengths of batches do not overlap."""
    assume(len(rows) > size)
    plan = plan_of(rows, size, seed=seed, epoch=0)
    spans = sorted((min(rows[i] for i in batch), max(rows[i] for i in batch)) for batch in plan)
    assert all(top <= low for (_, top), (low, _) in pairwise(spans))


def test_rows_of_one_length_meet_others_each_epoch():
    """Fixed companions would make a data set of batches, not of rows."""
    together = {
        tuple(sorted(batch))
        for epoch in range(20)
        for batch in plan_of([8] * 12, 3, seed=0, epoch=epoch)
    }
    assert len(together) > 60


@given(count=st.integers(1, 3000), seed=seeds, epoch=epochs)
def test_the_computed_shuffle_is_a_permutation(count, seed, epoch):
    """Two places with one item would repeat a row, and lose another."""
    keys = round_keys(seed, epoch)
    whole = shuffled(np.arange(count), count, keys)
    assert sorted(whole.tolist()) == list(range(count))
    assert shuffled(np.array([count // 2]), count, keys)[0] == whole[count // 2]


def test_the_computed_shuffle_favours_no_place():
    """Each item stands at each place about as often: 2000 draws of 5, 400 expected, within 5 sigma."""
    draws = np.stack([shuffled(np.arange(5), 5, round_keys(7, epoch)) for epoch in range(2000)])
    counts = np.stack([np.bincount(draws[:, place], minlength=5) for place in range(5)])
    assert (abs(counts - 400) < 5 * np.sqrt(2000 * 0.2 * 0.8)).all()
    assert len({tuple(draw) for draw in draws}) == 120  # every permutation


def test_a_large_shuffle_looks_like_one():
    """No item near its place, no neighbours that stay together."""
    whole = shuffled(np.arange(100_000), 100_000, round_keys(1))
    assert abs(np.corrcoef(whole, np.arange(100_000))[0, 1]) < 0.02
    assert (abs(np.diff(whole)) == 1).mean() < 1e-4


@given(rows=lengths, size=sizes, seed=seeds, shuffle=st.booleans())
def test_the_batches_of_each_bucket_are_counted_without_looking_at_them(rows, size, seed, shuffle):
    """The report of ten million rows must not cost an epoch."""
    order = Order.of(np.array(rows), size, seed=seed, shuffle=shuffle)
    tops, buckets = np.unique(rows, return_inverse=True)
    longest = [max(buckets[order.batch(1, at)]) for at in range(order.batches)]
    expected = np.bincount(longest, minlength=len(tops))
    assert order.batch_buckets(buckets).tolist() == expected.tolist()


def test_file_order_needs_the_lengths_in_their_order():
    """Its batches are as long as their longest row happens to be."""
    with pytest.raises(ValueError, match="depend on"):
        Order.of(np.array([1, 2]), 1, shuffle=False).batch_buckets()
