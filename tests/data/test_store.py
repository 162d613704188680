"""The store: the same rows as in memory, built once, whole or not there, and noticed when damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import tracemalloc

import attrs
import numpy as np
import pytest

from mlxfn.data import readers
from mlxfn.data.cursor import Loader
from mlxfn.data.encode import EncodeOptions
from mlxfn.data.keys import content_of, store_key, tokenizer_fingerprint
from mlxfn.data.prepare import WORTH_KEEPING, encode_splits
from mlxfn.data.record import Record
from mlxfn.data.records import read_records
from mlxfn.data.rows import encode_split, outcomes
from mlxfn.data.store import StoredRows, open_or_build, remove_unused
from mlxfn.data.tally import Tally
from mlxfn.errors import DataError
from tests.data.helpers import write_jsonl
from tests.support.tokenizers import CHATML, chatml, shared, wrapped

OPTIONS = EncodeOptions(max_seq_length=40)


def values(count):
    random = np.random.default_rng(0)
    return [
        {"input_ids": random.integers(0, 90, size).tolist()}
        for size in random.integers(1, 50, count).tolist()
    ]


def records(count, paths=("a.jsonl",)):
    each = -(-count // len(paths))
    for number, value in enumerate(values(count)):
        yield Record(value, paths[number // each], number % each + 1)


def builder(source, built=None):
    def build(writer):
        tally = Tally("train")
        writer.write(outcomes(source(), wrapped("plain"), OPTIONS, tally))
        writer.finish(lambda lengths: tally.report(lengths, 40), "key")
        if built is not None:
            built.append(1)

    return build


@pytest.fixture
def store(tmp_path):
    return open_or_build(tmp_path, "key", builder(lambda: records(700, ("a.jsonl", "b.jsonl"))))


@pytest.fixture
def memory():
    return encode_split(records(700, ("a.jsonl", "b.jsonl")), wrapped("plain"), OPTIONS)


def test_stored_rows_are_the_rows_in_memory(store, memory):
    """A run with the store and one without it are the same run: a resume may change between them."""
    rows, report = memory
    assert store.report == report
    assert report.dropped_no_target, "rows of one id are dropped"
    assert (len(store), store.token_count) == (len(rows), rows.token_count)
    assert store.fingerprint() == rows.fingerprint()
    assert store.id_range() == rows.id_range()
    assert np.array_equal(store.lengths, rows.lengths)
    everything = np.arange(len(rows))
    assert np.array_equal(store.by_length().take(everything), rows.by_length())
    assert [part.tolist() for part in store.histogram()] == [p.tolist() for p in rows.histogram()]
    for index in range(len(rows)):
        assert store.where(index) == rows.where(index)
        for ours, theirs in zip(store.row(index), rows.row(index), strict=True):
            assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize(("packing", "limit"), [(False, 40), (True, 40), (True, 512)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_batches_from_a_store_are_those_from_memory(store, memory, packing, limit, shuffle):
    """Every batch of an epoch, its rows and its shape."""
    options = {"shuffle": shuffle, "packing": packing, "vocab_size": 90, "max_seq_length": limit}
    for _ in range(2):  # the second time the packs are read from the store
        ours, theirs = (Loader(rows, 5, **options) for rows in (store, memory[0]))
        assert ours.report() == theirs.report()
        for position in range(theirs.batches_per_epoch):
            assert ours.places(1, position) == theirs.places(1, position)
            pairs = zip(ours.batch(1, position), theirs.batch(1, position), strict=True)
            assert all(np.array_equal(a, b) for a, b in pairs)


def test_packs_that_cannot_be_read_are_found_again(store):
    """What an earlier version wrote under another name, and what a full disk has cut."""
    packs = store.packs(512)
    assert len(set(packs.sizes.tolist())) > 1
    (path,) = store.folder.glob("*512*.npz")
    for name in ("rows", "offsets", "sizes"):
        kept = getattr(store.packs(512), name)
        assert kept.dtype == getattr(packs, name).dtype
        assert np.array_equal(kept, getattr(packs, name))
    older = {"rows": packs.rows, "offsets": packs.offsets, "sizes": packs.sizes + 1}
    np.savez(store.folder / "packs-512.npz", **older)
    assert np.array_equal(store.packs(512).sizes, packs.sizes)
    path.write_bytes(path.read_bytes()[:-30])
    assert np.array_equal(store.packs(512).sizes, packs.sizes)


def test_rows_are_tokenized_once(tmp_path):
    """The second run opens what the first has built."""
    built = []
    for _ in range(3):
        open_or_build(tmp_path, "key", builder(lambda: records(20), built))
    assert len(built) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"loss_on": "all"},
        {"max_seq_length": 30},
        {"overlong": "drop"},
        {"columns": {"text": "body"}},
        {"vocab_size": 319},
        {"part": 0.3},
    ],
    ids=str,
)
def test_another_setting_is_another_store(tmp_path, change):
    """Rows that were tokenized for something else would train quietly."""
    path = write_jsonl(
        tmp_path / "rows.jsonl", [{"text": f"{i}", "body": f"x{i}"} for i in range(30)]
    )
    cache = tmp_path / "cache"
    encode_splits(path, wrapped("plain"), OPTIONS, cache=cache)
    count = len(list((tmp_path / "cache").glob("*/manifest.json")))
    fraction = change.pop("part", 0.0)
    options = attrs.evolve(OPTIONS, **change)
    encode_splits(path, wrapped("plain"), options, valid_fraction=fraction, cache=cache)
    assert len(list((tmp_path / "cache").glob("*/manifest.json"))) > count


def test_another_tokenizer_or_template_is_another_store():
    """Also where only a special token, the template or an end of turn differs."""
    ends = chatml(CHATML)
    ends.eos_token = "<|endoftext|>"  # noqa: S105 - a token of text
    tokenizers = [shared("chatml"), shared("llama"), chatml(CHATML + " "), ends, wrapped("chatml")]
    prints = [tokenizer_fingerprint(tokenizer) for tokenizer in tokenizers]
    assert len(set(prints)) == len(prints)
    used = chatml(CHATML)
    used(["a", "bb cc"], padding=True, truncation=True, max_length=1)
    assert tokenizer_fingerprint(used) == tokenizer_fingerprint(shared("chatml"))


def test_other_content_is_another_store_even_with_the_old_size_and_time(tmp_path):
    """A time can be set back; the rows that are trained on must be those in the file."""
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "one"}])
    old = path.stat().st_mtime_ns - 10**10
    os.utime(path, ns=(old, old))
    before = content_of([path], tmp_path / "notes")
    assert content_of([path], tmp_path / "notes") == before
    path.write_text(path.read_text().replace("one", "two"))
    os.utime(path, ns=(old, old))
    assert content_of([path], tmp_path / "notes") != before


def test_data_that_changes_while_it_is_tokenized_is_no_store(tmp_path, monkeypatch):
    """Its key would promise the old rows."""
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "one"}])

    def changing(paths, meter=None):
        if meter:  # the whole is read, not its first line
            path.write_text(path.read_text() * 2)
        return read_records(paths)

    monkeypatch.setattr(readers, "scan_records", changing)
    with pytest.raises(DataError, match="changed while"):
        encode_splits(path, wrapped("plain"), cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/manifest.json"))


def test_the_same_content_elsewhere_is_the_same_store(tmp_path):
    """A copy of the data set need not be tokenized again."""
    for name in ("a", "b"):
        write_jsonl(tmp_path / name / "train.jsonl", [{"text": "one"}])
        encode_splits(tmp_path / name, wrapped("plain"), cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*/manifest.json"))) == 1
    assert store_key("a", "b", {}) != store_key("ab", "", {})


def read_everything(rows):
    for index in range(len(rows)):
        rows.row(index)
        rows.where(index)
    rows.by_length().take(np.arange(len(rows)))


@pytest.mark.parametrize("name", ["tokens", "labels", "offsets", "by_length", "lines"])
def test_a_flipped_bit_is_noticed_before_it_is_trained_on(store, name):
    """A disk that lies would otherwise teach the model something else."""
    path = store.folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    again = StoredRows.open(store.folder)
    with pytest.raises(DataError, match="damaged") as caught:
        read_everything(again)
    assert str(store.folder) in str(caught.value.remedy)


@pytest.mark.parametrize("name", ["tokens", "checks", "manifest.json"])
@pytest.mark.parametrize("how", ["removed", "cut", "changed"])
def test_a_store_that_is_not_whole_is_built_again(store, tmp_path, name, how):
    """The rows are still there to make it from."""
    path = store.folder / name
    data = path.read_bytes()
    if how == "removed":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[:-1])
    elif name == "tokens":
        path.write_bytes(data + b"0000")
    else:
        path.write_bytes(data[:-9] + b"a" + data[-8:])
    built = []
    again = open_or_build(
        tmp_path, "key", builder(lambda: records(700, ("a.jsonl", "b.jsonl")), built)
    )
    assert built
    assert again.fingerprint() == store.fingerprint()
    read_everything(again)
    assert len(list(tmp_path.glob("key"))) == 1


def test_two_runs_that_need_the_same_rows_build_them_once(tmp_path):
    """Started together, one builds and the other waits; both get the same."""
    built, found, begin = [], [], threading.Barrier(4)

    def run():
        begin.wait()
        found.append(open_or_build(tmp_path, "key", builder(lambda: records(300), built)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert len({rows.fingerprint() for rows in found}) == 1


KILLED = """
import os, signal, sys
from tests.data.test_store import builder, open_or_build, records
from pathlib import Path
def source():
    for number, record in enumerate(records(2000)):
        if number == 1500:
            os.kill(os.getpid(), signal.SIGKILL)
        yield record
open_or_build(Path(sys.argv[1]), "key", builder(source))
"""


def test_a_build_that_is_killed_leaves_nothing_that_is_taken_for_a_store(tmp_path):
    """And nothing for ever: the next build removes what is left, and is not locked out."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".key.*.tmp/tokens"))
    assert not (tmp_path / "key").exists()
    rows = open_or_build(tmp_path, "key", builder(lambda: records(2000)))
    assert len(rows) == rows.report.kept > 1500
    assert not list(tmp_path.glob(".key.*.tmp"))


def test_an_error_in_a_row_leaves_no_half_store(tmp_path):
    """The row is corrected, and the next start builds from the beginning."""

    def source():
        yield from records(600)
        yield Record({"input_ids": "x"}, "a.jsonl", 601)

    with pytest.raises(DataError, match="wrong form"):
        open_or_build(tmp_path, "key", builder(source))
    assert [path.name for path in tmp_path.iterdir()] == [".key.lock"]


def test_a_store_is_built_in_memory_that_does_not_grow_with_it(tmp_path):
    """Ten million rows have to pass through here."""
    peaks = []
    for count in (3000, 12_000):
        made = (
            Record({"input_ids": list(range(60))}, "a.jsonl", line) for line in range(1, count + 1)
        )
        tracemalloc.start()
        open_or_build(tmp_path, f"key{count}", builder(lambda made=made: made))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    per_row = (peaks[1] - peaks[0]) / 9_000
    assert per_row < 60, "bytes for each further row: its length and its place in the order"


def test_a_cache_that_cannot_be_written_is_one_message(tmp_path):
    """The remedy says how to go on without it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written") as caught:
        open_or_build(tmp_path / "file" / "cache", "key", builder(lambda: records(3)))
    assert "off" in str(caught.value.remedy)


def test_stores_that_nobody_opens_are_removed_after_a_month(tmp_path, store):
    """The user's cache must not grow for ever; a store in use is not touched."""
    old = (store.folder / "manifest.json").stat().st_mtime - 31 * 86_400
    os.utime(store.folder / "manifest.json", (old, old))
    open_or_build(tmp_path, "key", builder(lambda: records(3)))  # opened: used again
    remove_unused(tmp_path)
    assert store.folder.exists()
    os.utime(store.folder / "manifest.json", (old, old))
    remove_unused(tmp_path, keep=["key"])
    assert store.folder.exists()
    remove_unused(tmp_path)
    assert not store.folder.exists()
    assert store.row(5).tokens.tolist(), "whoever has it open can still read it"


def test_small_data_is_not_kept_by_auto(tmp_path, monkeypatch):
    """Tokenizing a few rows is quicker than a file that is put on the medium."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = write_jsonl(tmp_path / "small.jsonl", [{"text": "a b"}])
    large = tmp_path / "large.jsonl"
    large.write_text(json.dumps({"text": "a"}) + "\n" + " " * WORTH_KEEPING)
    for path, kept in ((small, False), (large, True)):
        rows = encode_splits(path, wrapped("plain"), cache="auto")["train"].rows
        assert isinstance(rows, StoredRows) == kept
