"""Flat arrays of rows, and what is told about a split."""

import numpy as np
import pytest
from hypothesis import given

from mlxfn.data.encode import EncodeOptions
from mlxfn.data.record import Record
from mlxfn.data.rows import EncodedRows, encode_split
from mlxfn.errors import DataError
from tests.data.helpers import lengths, rows_of
from tests.support.tokenizers import wrapped


def records(*values):
    return [Record(value, "train.jsonl", line) for line, value in enumerate(values, start=1)]


@given(lengths)
def test_rows_come_back_as_they_were_put_in(sizes):
    """Offsets that are off by one would join neighbours."""
    rows = rows_of(sizes)
    assert len(rows) == len(sizes)
    assert rows.lengths.tolist() == sizes
    for index, size in enumerate(sizes):
        row = rows.row(index)
        assert (len(row.tokens), len(row.labels), row.tokens[0]) == (size, size, index)


def test_tokens_and_labels_of_unequal_length_are_refused():
    """They would shift every later row."""
    with pytest.raises(ValueError, match="labels"):
        EncodedRows.of([([1, 2], [2])])


@pytest.mark.parametrize(
    "other",
    [[([1, 2], [2, 4])], [([1, 2], [2, -100])], [([1], [2]), ([2], [3])], [([2, 1], [2, 3])]],
)
def test_the_fingerprint_sees_every_token_label_and_border(other):
    """A resumed run must not continue on other data."""
    assert EncodedRows.of(other).fingerprint() != EncodedRows.of([([1, 2], [2, 3])]).fingerprint()


def test_the_fingerprint_is_the_same_on_every_machine():
    """It is stored in checkpoints, so it may not depend on integer sizes or byte order."""
    rows = EncodedRows.of([([1, 2], [2, -100]), ([3], [4])])
    assert rows.fingerprint().startswith("23865ec13b773a53")
    wide = EncodedRows(
        *(part.astype(np.int64) for part in (rows.tokens, rows.labels, rows.offsets))
    )
    assert wide.fingerprint() == rows.fingerprint()


def test_every_row_is_accounted_for():
    """Read = kept + dropped, each with its reason and its place."""
    rows, report = encode_split(
        records(
            {"prompt": "2?", "completion": "4"},
            {"prompt": "two " * 80, "completion": "4"},
            {"prompt": "2?", "completion": "4 " * 80},
        ),
        wrapped("chatml"),
        EncodeOptions(max_seq_length=40),
    )
    assert (report.rows, report.kept, report.truncated) == (3, 2, 1)
    assert (report.dropped_no_target, report.dropped_overlong, report.dropped) == (1, 0, 1)
    assert report.dropped_at == ("train.jsonl:2",)
    assert report.tokens == len(rows.tokens) == rows.lengths.sum()
    assert report.label_tokens == (rows.labels != -100).sum()
    assert (report.lengths[0], report.lengths[-1]) == (rows.lengths.min(), 39)
    assert [rows.where(i) for i in range(2)] == ["train.jsonl:1", "train.jsonl:3"]


def test_overlong_rows_can_be_dropped_and_are_counted():
    """A cut answer may be worse than none."""
    options = EncodeOptions(max_seq_length=40, overlong="drop")
    values = [{"prompt": "2?", "completion": text} for text in ("4", "4 " * 80)]
    _, report = encode_split(records(*values), wrapped("chatml"), options)
    assert (report.kept, report.truncated, report.dropped_overlong) == (1, 0, 1)


def test_an_empty_split_is_a_data_error():
    """Elsewhere this ends in an IndexError."""
    with pytest.raises(DataError, match="empty") as caught:
        encode_split([], wrapped("chatml"), name="valid")
    assert caught.value.where == "split valid"


def test_a_split_that_loses_every_row_says_why():
    """A run on nothing would train nothing and report success."""
    values = [{"prompt": "two " * 80, "completion": "4"}] * 3
    with pytest.raises(DataError, match="no row of the data set can be trained on") as caught:
        encode_split(records(*values), wrapped("chatml"), EncodeOptions(max_seq_length=40))
    assert "3 without a target" in str(caught.value.got)
    assert "train.jsonl:1" in str(caught.value.where)


def test_more_rows_than_a_chunk_keep_their_order():
    """Rows are tokenized in chunks of 512."""
    values = [{"input_ids": [number % 90, 1]} for number in range(1200)]
    rows, _ = encode_split(records(*values), wrapped("chatml"))
    assert rows.tokens.tolist() == [number % 90 for number in range(1200)]
    assert rows.where(1199) == "train.jsonl:1200"
