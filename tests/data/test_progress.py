"""How far reading is, and how long the rest takes: where it can be known, and nowhere else."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn.data import progress
from mlxfn.data.prepare import encode_splits
from mlxfn.data.progress import Meter, Progress, counted, listening
from mlxfn.data.records import scan_records
from mlxfn.errors import ConfigError, DataError
from tests.data.helpers import write_jsonl
from tests.support.tokenizers import wrapped

TEXTS = [{"text": "word " * (i % 7 + 1)} for i in range(50)]


@pytest.fixture
def said(monkeypatch):
    """Hear of every row."""
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    heard: list[Progress] = []
    with listening(heard.append):
        yield heard


def test_the_share_is_that_of_the_bytes_of_all_files(tmp_path, said):
    """Rows differ in length, and nobody knows their number before the end."""
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", TEXTS) for name in "ab"]
    lines = [len(line) for path in paths for line in path.read_bytes().splitlines(keepends=True)]
    meter = Meter()
    assert len(list(counted("train", scan_records(paths, meter), meter.share))) == len(lines)
    ends = [sum(lines[: i + 1]) / sum(lines) for i in range(len(lines))]
    assert [p.share for p in said] == pytest.approx([*ends, 1.0])


def test_a_compressed_file_is_measured_as_it_lies_on_the_disk(tmp_path, said):
    """Its size before compression is not known until it has been read."""
    path = tmp_path / "rows.jsonl.gz"
    rows = [{"text": format(i * 7919 % 10007, "x") * 40} for i in range(20_000)]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    meter = Meter()
    assert len(list(counted("train", scan_records(path, meter), meter.share))) == 20_000
    shares = [p.share for p in said]
    assert shares == sorted(shares)
    assert shares[0] < 0.5 < shares[-2] <= shares[-1] == 1.0


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("valid_fraction", [0.0, 0.5])
def test_every_reading_of_a_file_starts_over(tmp_path, said, kept, valid_fraction):
    """The rows of train, and those of valid that are taken from it, are two passes over it."""
    rows = [{"text": f"row {i}"} for i in range(4000)]  # they are encoded 512 at a time
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    cache = tmp_path / "cache" if kept else "off"
    encode_splits(path, wrapped("plain"), cache=cache, valid_fraction=valid_fraction)
    for name in {p.name for p in said}:
        shares = [p.share for p in said if p.name == name]
        assert shares == sorted(shares)
        assert shares[0] < 0.5
        assert shares[-1] == 1.0


def test_no_time_is_told_where_the_end_is_not_known(tmp_path, said):
    """A guess would be worse than nothing."""
    list(counted("train", range(3)))
    assert {(p.share, p.left) for p in said} == {(None, None)}
    meter = Meter()
    meter.begin(8)
    (tmp_path / "rows.parquet").write_bytes(b"12345678")
    with pytest.raises((ConfigError, DataError)):  # without the hub extra, or as no parquet file
        list(scan_records(tmp_path / "rows.parquet", meter))
    assert meter.share() is None


@given(st.floats(0.01, 1e6), st.floats(1e-6, 1.0))
def test_the_time_left_is_what_the_rest_takes_at_the_same_speed(seconds, share):
    """A quarter in ten seconds leaves thirty; at the end nothing is left."""
    left = Progress("train", 1, seconds, ended=False, share=share).left
    assert left + seconds == pytest.approx(seconds / share)
    assert left >= 0


def test_before_anything_is_read_no_time_is_told():
    """A share of nothing says nothing about the speed."""
    assert Progress("train", 0, 5.0, ended=False, share=0.0).left is None
