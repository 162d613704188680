"""The order of rows as a law: nothing lost, nothing repeated, everything from (seed, epoch)."""

from itertools import pairwise

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from mlxfn.data.order import batch_count, epoch_batches
from tests.data.helpers import lengths, seeds

sizes = st.integers(1, 9)
epochs = st.integers(0, 1000)


def plan_of(rows, size, **options):
    return [batch.tolist() for batch in epoch_batches(np.array(rows), size, **options)]


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
    assert plan_of([8, 16, 8, 16, 8], 2, seed=3, epoch=1) == [[4, 0], [2, 3], [1]]


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
