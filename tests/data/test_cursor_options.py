"""What a loader is given reaches its order and its lengths."""

import numpy as np
import pytest

from mlxfn.data.cursor import Loader
from tests.data.helpers import VOCAB, rows_of


def order_of(seed, epoch=0):
    loader = Loader(rows_of([3] * 30), 2, seed=seed, vocab_size=VOCAB, max_seq_length=8)
    return [loader.row_indices(epoch, at) for at in range(loader.batches_per_epoch)]


def test_the_order_is_that_of_the_seed_and_of_nothing_else():
    """Two seeds that see the same order are one run counted twice."""
    assert order_of(1) == order_of(1)
    assert len({str(order_of(seed)) for seed in range(5)}) == 5


def test_a_long_epoch_pays_for_more_lengths():
    """Each length costs a compiled trace, which 40 batches earn back."""
    sizes = [length for length in range(8, 129, 8) for _ in range(40)]
    few = Loader(rows_of(sizes), 16, vocab_size=VOCAB, max_seq_length=128)
    many = Loader(rows_of(sizes), 1, vocab_size=VOCAB, max_seq_length=128)
    assert len(few.lengths) <= 8 < len(many.lengths) <= 16


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_are_padded_as_the_report_says(packing, shuffle):
    """The report is arithmetic over lengths: rows sorted by anything else would belie it."""
    sizes = (np.random.default_rng(0).lognormal(3, 0.8, 200).astype(int) % 200 + 1).tolist()
    options = {"packing": packing, "shuffle": shuffle, "max_seq_length": 256}
    loader = Loader(rows_of(sizes), 4, vocab_size=VOCAB, **options)
    positions = sum(batch.tokens.size for batch in loader.epoch(0))
    assert loader.report().padding == pytest.approx(1 - sum(sizes) / positions)
    if shuffle and not packing:
        assert loader.report().padding < 0.25


def test_the_windows_of_an_epoch_are_its_batches_in_order():
    """A stream that repeats its first batches is consistent with itself, from every cursor."""
    loader = Loader(rows_of([3, 9, 5] * 7), 2, vocab_size=VOCAB, max_seq_length=16)
    with loader.windows(1, 0, 3, last_epoch=2) as stream:
        found = [part.tolist() for window in stream for b in window.batches for part in b]
    assert found == [part.tolist() for batch in loader.epoch(1) for part in batch]
