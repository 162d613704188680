"""Sources mixed by weight: exact shares, whole passes, and any batch from its number alone."""

from __future__ import annotations

import shutil
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlxfn as mf
from mlxfn.configfile import build
from mlxfn.data.cursor import Loader
from mlxfn.data.encode import EncodeOptions
from mlxfn.data.mix import exact_weights, first_of, largest_remainder
from mlxfn.data.mixed_rows import MixedRows
from mlxfn.data.prepare import encode_splits
from mlxfn.errors import CheckpointError, ConfigError, DataError
from tests.data.helpers import VOCAB, rows_of, seeds, write_jsonl
from tests.support.runs import small_config, sums, write_rows
from tests.support.tokenizers import wrapped

OPTIONS = {"vocab_size": VOCAB, "max_seq_length": 64}
sources = st.lists(
    st.tuples(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 9)),
    min_size=1,
    max_size=4,
)


def mixed(parts):
    """Return rows of sources, each given by its lengths and its weight."""
    total = sum(weight for _, weight in parts)
    rows = {f"source {number}": rows_of(sizes) for number, (sizes, _) in enumerate(parts)}
    return MixedRows.of(rows, [Fraction(weight, total) for _, weight in parts])


def drawn(loader, epoch):
    """Return how often an epoch takes each row, by source."""
    seen = Counter(
        row for at in range(loader.batches_per_epoch) for row in loader.row_indices(epoch, at)
    )
    starts = loader.rows.starts.tolist()
    return [[seen[row] for row in range(start, end)] for start, end in pairwise(starts)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_takes_from_each_source_its_weight_in_rows(shuffle):
    """As many rows as all sources have together, shared out to the row."""
    rows = mixed([([8] * 10, 7), ([16] * 190, 3)])
    loader = Loader(rows, 4, shuffle=shuffle, **OPTIONS)
    assert loader.batches_per_epoch == 50
    for epoch in range(4):
        assert [sum(counts) for counts in drawn(loader, epoch)] == [140, 60]
    assert [use.drawn for use in rows.uses()] == [140, 60]


@settings(max_examples=60, deadline=None)
@given(parts=sources, batch_size=st.integers(1, 7), seed=seeds, shuffle=st.booleans())
def test_no_row_is_left_out_of_a_pass_and_none_comes_twice(parts, batch_size, seed, shuffle):
    """After any epoch the rows of a source differ by at most one in how often they came."""
    try:
        loader = Loader(mixed(parts), batch_size, seed=seed, shuffle=shuffle, **OPTIONS)
    except DataError:  # a source that is too small a part
        return
    uses = loader.rows.uses()
    totals = [np.zeros(use.rows, np.int64) for use in uses]
    for epoch in range(3):
        of_epoch = drawn(loader, epoch)
        assert [sum(counts) for counts in of_epoch] == [use.drawn for use in uses]
        totals = [total + counts for total, counts in zip(totals, of_epoch, strict=True)]
        for total, use in zip(totals, uses, strict=True):
            passes, rest = divmod((epoch + 1) * use.drawn, use.rows)
            assert set(total.tolist()) <= {passes, passes + 1}
            assert (total == passes + 1).sum() == rest


@settings(max_examples=30, deadline=None)
@given(parts=sources, seed=seeds, shuffle=st.booleans(), packing=st.booleans())
def test_any_batch_is_found_from_its_number_alone(parts, seed, shuffle, packing):
    """A loader that has seen nothing gives the same batch in the middle of a later epoch."""
    made = {"seed": seed, "shuffle": shuffle, "packing": packing, **OPTIONS}
    made |= {"max_seq_length": 256} if packing else {}  # lines of 64, 128 and 256
    try:
        whole = Loader(mixed(parts), 3, **made)
    except DataError:
        return
    for epoch in (0, 2):
        for position, batch in enumerate(whole.epoch(epoch)):
            again = Loader(mixed(parts), 3, **made).batch(epoch, position)
            assert all(np.array_equal(a, b) for a, b in zip(batch, again, strict=True))


def test_each_pass_and_each_seed_is_another_order():
    """A source that is repeated in the same order would be learned as one long document."""
    rows = mixed([([8] * 20, 1), ([8] * 20, 1)])
    orders = [
        str([Loader(rows, 4, seed=seed, **OPTIONS).row_indices(epoch, at) for at in range(10)])
        for seed in range(2)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 6


@pytest.mark.parametrize("capacity", [64, 256])
@pytest.mark.parametrize("shuffle", [True, False])
def test_packs_hold_rows_of_one_source_and_every_row_of_a_pass(capacity, shuffle):
    """With packing a source's rows are packed among themselves; its weight is that of its rows."""
    rows = mixed([([20, 60, 31] * 10, 1), ([7, 50, 13] * 30, 3)])
    made = {**OPTIONS, "max_seq_length": capacity, "shuffle": shuffle}
    loader = Loader(rows, 2, packing=True, **made)
    assert loader.packs is not None
    for pack in loader.packs:
        assert len({int(row >= 30) for row in pack}) == 1
    assert len(loader.lengths) > 1
    first, second = drawn(loader, 0)
    assert set(first) == set(second) == {1}
    segments = [batch.segments for batch in loader.epoch(0)]
    assert sum(int((part > 0).sum()) for part in segments) == rows.token_count


def test_file_order_spreads_the_sources_over_the_epoch():
    """One source after the other would be a curriculum that nobody asked for."""
    rows = mixed([([8] * 5, 1), ([8] * 15, 3)])
    loader = Loader(rows, 4, shuffle=False, **OPTIONS)
    batches = [loader.row_indices(0, at) for at in range(5)]
    assert [sum(row < 5 for row in batch) for batch in batches] == [1] * 5
    assert [row for batch in batches for row in batch if row >= 5] == list(range(5, 20))


@settings(max_examples=60, deadline=None)
@given(parts=sources, seed=seeds, shuffle=st.booleans())
def test_no_pack_of_a_pass_is_left_out_and_none_comes_twice(parts, seed, shuffle):
    """A source's packs, in lines of several lengths, differ by at most one in how often they came."""
    made = {**OPTIONS, "max_seq_length": 256, "seed": seed, "shuffle": shuffle}
    try:
        loader = Loader(mixed(parts), 2, packing=True, **made)
    except DataError:  # a source that is too small a part
        return
    assert loader.packs is not None
    totals = [np.zeros(len(sizes), np.int64) for sizes, _ in parts]
    for epoch in range(3):
        totals = [
            total + counts for total, counts in zip(totals, drawn(loader, epoch), strict=True)
        ]
        assert all(set(total.tolist()) <= {total.min(), total.min() + 1} for total in totals)
    firsts = np.array([pack[0] for pack in loader.packs])
    assert (np.diff(firsts) > 0).all(), "packs are in file order"


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_parts_of_a_sequence_only_grow(sizes):
    """A count that fell again would draw a row twice, and another one never."""
    counts = np.array([first_of(count, sizes) for count in range(sum(sizes) + 1)])
    assert counts.sum(axis=1).tolist() == list(range(sum(sizes) + 1))
    assert (np.diff(counts, axis=0) >= 0).all()
    assert counts[-1].tolist() == sizes


def test_shares_are_exact_and_rounded_to_the_whole():
    """0.1 + 0.2 is not 0.3 in binary: the shares are those that were written."""
    assert exact_weights({"a": 0.1, "b": 0.2}) == [Fraction(1, 3), Fraction(2, 3)]
    assert sum(largest_remainder([Fraction(100, 3)] * 3)) == 100


def sources_in(folder, **counts):
    for name, count in counts.items():
        write_jsonl(folder / f"{name}.jsonl", [{"text": f"{name} {i}"} for i in range(count)])
    return {str(folder / f"{name}.jsonl"): weight for name, weight in (("a", 3.0), ("b", 1.0))}


def test_sources_are_read_reported_and_kept_each_by_itself(tmp_path):
    """Another weight must not tokenize anything again, and is another run."""
    source, cache = sources_in(tmp_path, a=30, b=10), tmp_path / "cache"
    split = encode_splits(source, wrapped("plain"), cache=cache)["train"]
    assert (split.report.rows, len(split.rows)) == (40, 40)
    assert [(use.rows, use.drawn) for use in split.report.sources] == [(30, 30), (10, 10)]
    assert "source 2" in dict(split.report.lines())
    assert split.rows.where(30).endswith("b.jsonl:1")
    assert len(list(cache.glob("*/manifest.json"))) == 2
    other = dict.fromkeys(source, 1.0)
    again = encode_splits(other, wrapped("plain"), cache=cache)["train"]
    assert len(list(cache.glob("*/manifest.json"))) == 2
    assert again.rows.fingerprint() != split.rows.fingerprint()
    memory = encode_splits(source, wrapped("plain"))["train"]
    assert memory.rows.fingerprint() == split.rows.fingerprint()
    loaders = [Loader(s.rows, 4, vocab_size=320, max_seq_length=64) for s in (split, memory)]
    for position in range(loaders[0].batches_per_epoch):
        ours, theirs = (loader.batch(1, position) for loader in loaders)
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_validation_takes_every_row_of_every_source_once(tmp_path):
    """A loss by weight would be another measure after another weight."""
    source = sources_in(tmp_path, a=50, b=50)
    splits = encode_splits(source, wrapped("plain"), EncodeOptions(), valid_fraction=0.2)
    valid = splits["valid"].rows
    loader = Loader(valid, 3, vocab_size=320, max_seq_length=64)
    seen = [row for at in range(loader.batches_per_epoch) for row in loader.row_indices(0, at)]
    assert sorted(seen) == list(range(len(valid)))
    assert len(valid) + len(splits["train"].rows) == 100


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"no-such-file.jsonl": 1.0}, "does not exist"),
        ({"b": 0.0}, "a number > 0"),
        ({"b": float("nan")}, "a number > 0"),
        ({"b": 1e-6}, "gets no row"),
    ],
)
def test_a_mix_that_cannot_be_is_one_message(tmp_path, change, said):
    """A missing source, a weight that is none, one that never gives a row."""
    source = sources_in(tmp_path, a=30, b=10)
    source |= {str(tmp_path / f"{name}.jsonl") if name == "b" else name: weight
               for name, weight in change.items()}  # fmt: skip

    def load():
        rows = encode_splits(source, wrapped("plain"))["train"].rows
        return Loader(rows, 2, vocab_size=320, max_seq_length=64)

    with pytest.raises(DataError, match=said):
        load()


def test_a_mix_is_written_in_the_configuration():
    """With names of files as keys; beside a path it would be a contradiction."""
    mix = {"a.jsonl": 0.7, "folder/b": 1}
    assert build({"data.mix": mix}).config.data.mix == mix
    assert build({"data.mix": mix, "data.path": "default"}).config.data.mix == mix
    for wrong in ({"data.mix": {"a": -1}}, {"data.mix": mix, "data.path": "c"}):
        with pytest.raises(ConfigError):
            build(wrong)


@pytest.mark.parametrize("packing", [False, True])
def test_a_run_on_a_mix_that_is_resumed_ends_with_the_same_bytes(tmp_path, packing):
    """From the store, in the middle of the second epoch, where one source is in its third pass."""
    write_rows(tmp_path / "a.jsonl", sums(7))
    write_rows(tmp_path / "b.jsonl", sums(14, offset=50))
    settings = {
        "data__mix": {str(tmp_path / "a.jsonl"): 0.6, str(tmp_path / "b.jsonl"): 0.4},
        "data__path": "default",
        "data__cache": str(tmp_path / "cache"),
        "data__valid_fraction": 0.2,
        "data__packing": packing,
        "checkpoint__save_steps": 1,
    }
    whole = mf.train(small_config(tmp_path / "whole", **settings))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    paths = sorted((tmp_path / "cut" / "checkpoints").iterdir())
    paths[-1].unlink()
    cut = mf.train(small_config(tmp_path / "cut", **settings), mode="resume")
    adapters = [
        (tmp_path / run / "adapters" / "adapters.safetensors").read_bytes()
        for run in ("whole", "cut")
    ]
    assert adapters[0] == adapters[1]
    assert cut.history == whole.history
    other = {**settings, "data__mix": dict.fromkeys(settings["data__mix"], 0.5)}
    with pytest.raises(CheckpointError, match=r"data\.mix"):
        mf.train(small_config(tmp_path / "cut", **other), mode="resume")
