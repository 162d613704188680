"""The stream of batches: any cursor gives exactly the rest of the stream."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxfn.data.cursor import Loader, to_device
from mlxfn.data.mixed_rows import MixedRows
from mlxfn.data.rows import EncodedRows
from mlxfn.errors import DataError
from tests.data.helpers import VOCAB, lengths, rows_of, seeds


def loader_of(sizes, batch_size=3, **options):
    options = {"vocab_size": VOCAB, "max_seq_length": 64, **options}
    return Loader(rows_of(sizes), batch_size, **options)


def content(window):
    return (
        window.epoch,
        window.position,
        window.row_ids,
        [part.tobytes() for b in window.batches for part in b],
    )


def stream(loader, epoch, position, k, last):
    with loader.windows(epoch, position, k, last_epoch=last) as windows:
        return [content(window) for window in windows]


settings_of = st.fixed_dictionaries(
    {
        "seed": seeds,
        "shuffle": st.booleans(),
        "packing": st.booleans(),
        "batch_size": st.integers(1, 8),
        "max_seq_length": st.sampled_from([64, 256, 512]),  # packs of up to four line lengths
    }
)


def shapes_of(loader, epochs=1):
    return {batch.tokens.shape for epoch in range(epochs) for batch in loader.epoch(epoch)}


@given(sizes=lengths, options=settings_of, epoch=st.integers(0, 3))
def test_an_epoch_holds_every_row_once(sizes, options, epoch):
    """Packed or not, shuffled or not, and also when there are fewer rows than a batch holds."""
    loader = loader_of(sizes, **options)
    seen = [row for at in range(loader.batches_per_epoch) for row in loader.row_indices(epoch, at)]
    assert sorted(seen) == list(range(len(sizes)))
    batches = list(loader.epoch(epoch))
    assert sum((batch.segments > 0).sum() for batch in batches) == sum(sizes)
    targets = sum((batch.labels != -100).sum() for batch in batches)
    assert targets == (loader.rows.labels != -100).sum()


@settings(max_examples=30)
@given(sizes=lengths, options=settings_of, k=st.integers(1, 4))
def test_the_stream_continues_alike_from_every_cursor(sizes, options, k):
    """The whole remainder from each cursor, by a new loader that has seen nothing before."""
    whole = stream(loader_of(sizes, **options), 0, 0, k, last=2)
    cursors = [(0, 0), *((epoch, position) for epoch, position, *_ in whole)]
    for done, (epoch, position) in enumerate(cursors):
        assert stream(loader_of(sizes, **options), epoch, position, k, last=2) == whole[done:]


@given(sizes=lengths, options=settings_of, k=st.integers(1, 5))
def test_an_update_never_crosses_an_epoch(sizes, options, k):
    """Micro-batches left over from one epoch must not leak into the next one's first update."""
    loader = loader_of(sizes, **options)
    count = loader.batches_per_epoch
    with loader.windows(0, 0, k, last_epoch=2) as windows:
        made = [len(window.batches) for window in windows]
    per_epoch = [k] * (count // k) + ([count % k] if count % k else [])
    assert made == per_epoch * 2


def test_the_cursor_after_the_last_update_of_an_epoch_is_the_start_of_the_next():
    """The loop knows by it that an epoch has ended, and a checkpoint holds it."""
    with loader_of([3] * 5, 2).windows(0, 0, 2, last_epoch=2) as windows:
        assert [window[:2] for window in windows] == [(0, 2), (1, 0), (1, 2), (2, 0)]


def test_a_cursor_at_the_end_of_an_epoch_begins_the_next():
    """(0, last) and (1, 0) are one place."""
    loader = loader_of([3] * 7, 2)
    count = loader.batches_per_epoch
    assert stream(loader, 0, count, 2, last=2) == stream(loader, 1, 0, 2, last=2)
    assert loader.window(0, count, 2) == []


def test_each_epoch_is_drawn_anew_and_resumed_with_its_own_order():
    """Resuming in epoch 1 with the order of epoch 0 would repeat some rows and miss others."""
    loader = loader_of([3] * 30, 2)
    orders = [[loader.row_indices(epoch, at) for at in range(15)] for epoch in range(3)]
    assert len({str(order) for order in orders}) == 3
    fresh = loader_of([3] * 30, 2)
    assert [fresh.row_indices(1, at) for at in range(7, 15)] == orders[1][7:]


@given(sizes=lengths, options=settings_of)
def test_batches_have_few_shapes(sizes, options):
    """Every shape is a compiled trace."""
    loader = loader_of(sizes, **options)
    capacity = loader.packs.capacity if loader.packs else 1
    lines = {length: max(capacity // length, 1) for length in loader.lengths}
    shapes = {(options["batch_size"] * lines[length], length) for length in loader.lengths}
    assert shapes_of(loader, epochs=2) <= shapes
    assert len(loader.lengths) <= 8


@given(sizes=lengths, options=settings_of, count=st.integers(1, 3))
def test_a_packed_batch_has_the_same_positions_in_every_shape(sizes, options, count):
    """What was planned for full rows holds for all; also where fewer lengths are wanted."""
    options = {**options, "packing": True}
    loader = loader_of(sizes, **options, bucket_count=count)
    positions = options["batch_size"] * min(options["max_seq_length"], sum(sizes) + 7)
    assert all(rows * length <= positions for rows, length in shapes_of(loader))
    assert len(shapes_of(loader)) <= count


def test_packs_of_lines_of_several_lengths_share_an_epoch():
    """Attention of short rows costs what short lines cost; each shape is told with its batches."""
    sizes = np.random.default_rng(0).lognormal(np.log(40), 0.7, 800).astype(int).clip(1, 256)
    for shuffle in (True, False):
        loader = loader_of(sizes.tolist(), 2, packing=True, max_seq_length=256, shuffle=shuffle)
        shapes = Counter(batch.tokens.shape for batch in loader.epoch())
        assert set(shapes) == {(8, 64), (4, 128), (2, 256)}
        report = loader.report()
        assert {use[:2]: use.batches for use in report.buckets} == shapes
        assert report.padding == 1 - sizes.sum() / (512 * report.batches)
        assert report.padding < 0.02


def test_a_data_set_smaller_than_a_pack_is_not_padded_to_it():
    """300 positions in a row of 2,048 would be 85% padding."""
    loader = loader_of([30] * 10, 1, packing=True, max_seq_length=2048)
    (batch,) = loader.epoch()
    assert batch.tokens.size == 304
    (batch,) = loader_of([5, 6], 1, packing=True, max_seq_length=2048).epoch()
    assert batch.tokens.shape == (1, 16)


@given(sizes=lengths, options=settings_of)
def test_packed_segments_count_up_from_one(sizes, options):
    """1..k without a gap, each contiguous, padding at the end alone."""
    loader = loader_of(sizes, **{**options, "packing": True})
    for batch in loader.epoch(0):
        assert batch.tokens.shape[1] <= options["max_seq_length"]
        for segments in batch.segments:
            real = segments[segments > 0]
            assert (segments[: len(real)] > 0).all()
            assert set(np.diff(real).tolist()) <= {0, 1}
            assert len(real) == 0 or real[0] == 1


def test_a_data_set_smaller_than_a_batch_is_one_padded_batch():
    """Refusing it, as others do, loses the small experiment everyone starts with."""
    loader = loader_of([4, 6], 8)
    assert loader.batches_per_epoch == 1
    batch = loader.batch(0, 0)
    assert batch.tokens.shape == (8, 8)
    assert (batch.segments.any(axis=1)).sum() == 2


def test_grouping_by_length_saves_most_padding():
    """A sort by anything but the length (the number of keys in a row, say) would pad nearly double."""
    sizes = (np.random.default_rng(0).lognormal(3, 0.8, 400).astype(int) % 200 + 1).tolist()
    padding = {}
    for shuffle in (True, False):
        loader = Loader(rows_of(sizes), 4, shuffle=shuffle, vocab_size=VOCAB, max_seq_length=256)
        positions = sum(batch.tokens.size for batch in loader.epoch())
        padding[shuffle] = 1 - sum(sizes) / positions
        assert loader.report().padding == pytest.approx(padding[shuffle], abs=1e-12)
    assert padding[True] < 0.25
    assert padding[False] > 0.45


def test_the_report_counts_what_an_epoch_delivers():
    """Padding that is reported is padding that is computed."""
    loader = loader_of([3, 9, 17, 30, 31, 5, 8], 2, packing=True)
    report = loader.report()
    batches = list(loader.epoch(0))
    assert report.batches == len(batches) == sum(use.batches for use in report.buckets)
    positions = sum(batch.tokens.size for batch in batches)
    assert report.padding == 1 - sum(int((b.segments > 0).sum()) for b in batches) / positions
    assert (report.rows, report.packs) == (7, len(loader.packs or []))


def test_a_bad_id_is_found_before_the_first_update_with_its_row():
    """In the middle of a run it would cost the run."""
    for tokens, labels in (([VOCAB], [1]), ([1], [VOCAB]), ([-1], [1]), ([1], [-1])):
        rows = EncodedRows.of([([1], [2]), (tokens, labels)], ["a:1", "a:2"])
        with pytest.raises(DataError, match="outside the model's vocabulary") as caught:
            Loader(rows, 1, vocab_size=VOCAB, max_seq_length=8)
        assert caught.value.where == "a:2"


def test_ids_are_checked_again_when_a_batch_is_made():
    """Rows may be a file on disk that changes."""
    loader = loader_of([4], 1)
    loader.rows.tokens[2] = VOCAB
    with pytest.raises(DataError, match="batch 0 of epoch 5"):
        loader.batch(5, 0)


def test_there_is_no_batch_outside_an_epoch():
    """A negative index would quietly be one from the end."""
    loader = loader_of([3] * 5, 2)
    for position in (-1, 3):
        with pytest.raises(IndexError):
            loader.batch(0, position)


def test_no_rows_are_no_loader():
    """An epoch of nothing would never end."""
    with pytest.raises(DataError, match="empty"):
        Loader(EncodedRows.of([]), 1, vocab_size=1, max_seq_length=8)


def test_rows_of_a_batch_are_named_for_messages():
    """A non-finite loss is traced back to the lines that made it."""
    loader = loader_of([3] * 5, 2, shuffle=False)
    with loader.windows(0, 0, 2) as windows:
        window = next(windows)
    assert window.row_ids == [f"train.jsonl:{line}" for line in range(1, 5)]
    assert window.rows == 4


def test_a_host_batch_becomes_device_arrays_unchanged():
    """The one place where numpy turns into MLX."""
    host = loader_of([3, 5], 2).batch(0, 0)
    device = to_device(host)
    for before, after in zip(host, device, strict=True):
        assert np.array_equal(np.array(after), before)
        assert str(after.dtype) == "mlx.core.int32"


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "in file order"])
@pytest.mark.parametrize("packing", [False, True], ids=["bucketed", "packed"])
@pytest.mark.parametrize("mixed", [False, True], ids=["one source", "a mix"])
def test_500_rows_restored_at_every_position_give_the_same_remainder(shuffle, packing, mixed):
    """Element by element, and through the thread that prepares batches ahead.

    A new loader for each position: what an old one remembers must not matter.
    """
    sizes = np.random.default_rng(5).lognormal(np.log(12), 0.6, 500).astype(int).clip(1, 64)
    if mixed:
        halves = {"a": rows_of(sizes[:150].tolist()), "b": rows_of(sizes[150:].tolist())}
        rows = MixedRows.of(halves, [Fraction(2, 3), Fraction(1, 3)])
    else:
        rows = rows_of(sizes.tolist())

    def remainder(position):
        made = {"seed": 3, "shuffle": shuffle, "packing": packing, "vocab_size": VOCAB}
        # Packed, of 256 positions: lines of 64, 128 and 256.
        size = (
            {"batch_size": 1, "max_seq_length": 256}
            if packing
            else {"batch_size": 4, "max_seq_length": 64}
        )
        loader = Loader(rows, **size, **made)
        with loader.windows(1, position, 1, last_epoch=2) as windows:
            return [
                (window.position, window.row_ids, [part.copy() for part in window.batches[0]])
                for window in windows
            ]

    whole = remainder(0)
    assert len(whole) > (20 if packing else 120)
    assert not packing or len({batch[0].shape for *_, batch in whole}) > 1
    for position in range(1, len(whole)):
        rest = remainder(position)
        assert len(rest) == len(whole) - position
        for ours, theirs in zip(rest, whole[position:], strict=True):
            assert ours[:2] == theirs[:2]
            assert all(np.array_equal(a, b) for a, b in zip(ours[2], theirs[2], strict=True))


@given(count=st.integers(1, 400), options=settings_of)
def test_no_row_is_lost_or_repeated_over_three_epochs(count, options):
    """Any number of rows, any batch size: each epoch has each row, and each target, exactly once."""
    sizes = (np.arange(count) * 7919 % 40 + 1).tolist()  # 64, 128 and 256 from 60 rows on
    loader = loader_of(sizes, **options)
    for epoch in range(3):
        seen = [
            row for at in range(loader.batches_per_epoch) for row in loader.row_indices(epoch, at)
        ]
        assert sorted(seen) == list(range(count))
        tokens = np.concatenate([b.tokens[b.segments > 0] for b in loader.epoch(epoch)])
        assert np.array_equal(np.sort(tokens), np.sort(loader.rows.tokens))
