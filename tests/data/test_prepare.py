"""From a path to splits, with a validation split taken from train."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn.data.encode import EncodeOptions
from mlxfn.data.prepare import encode_splits
from mlxfn.data.readers import share
from mlxfn.errors import DataError
from tests.data.helpers import write_jsonl
from tests.support.tokenizers import wrapped

ROWS = [{"text": f"row {number}"} for number in range(200)]


def texts(split):
    tokenizer = wrapped("plain")
    return [tokenizer.decode(split.rows.row(i).tokens) for i in range(len(split.rows))]


def test_every_split_that_is_there_is_encoded(tmp_path):
    """Train, validation and test go through the same options."""
    for name in ("train", "valid", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"body": f"{name} {i}"} for i in range(3)])
    splits = encode_splits(
        tmp_path, wrapped("plain"), EncodeOptions(columns={"text": "body"}, max_seq_length=8)
    )
    assert list(splits) == ["train", "valid", "test"]
    assert texts(splits["test"]) == ["test 0", "test 1", "test 2"]
    assert splits["valid"].report.name == "valid"
    assert list(
        encode_splits(
            tmp_path, wrapped("plain"), EncodeOptions(columns={"text": "body"}), splits=["test"]
        )
    ) == ["test"]


def test_a_split_off_validation_set_is_stable_when_rows_are_added(tmp_path):
    """A row that moves from validation to training after more data came in was never unseen."""
    path = write_jsonl(tmp_path / "train.jsonl", ROWS[:100])
    before = encode_splits(path, wrapped("plain"), valid_fraction=0.2)
    write_jsonl(path, [*ROWS[150:], *ROWS[:100][::-1], *ROWS[100:150]])
    after = encode_splits(path, wrapped("plain"), valid_fraction=0.2)
    for name in ("train", "valid"):
        assert set(texts(before[name])) <= set(texts(after[name]))
    assert not set(texts(after["train"])) & set(texts(after["valid"]))
    assert len(after["train"].rows) + len(after["valid"].rows) == 200
    assert 20 <= len(after["valid"].rows) <= 60


@given(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=3))
def test_the_share_of_a_row_depends_on_its_content_alone(row):
    """Key order and place are no content; equal rows never stand on both sides."""
    assert 0 <= share(row) < 1
    assert share(dict(reversed(row.items()))) == share(row)
    assert share({**row, "x" * 4: 1}) != share(row)


def test_a_fraction_that_leaves_a_side_empty_says_which_would_not(tmp_path):
    """On few rows a small share is often none."""
    path = write_jsonl(tmp_path / "train.jsonl", ROWS[:5])
    shares = sorted(share(row) for row in ROWS[:5])
    for fraction, what in ((shares[0] / 2, "no row of train"), (0.9999999, "no row for training")):
        with pytest.raises(DataError, match=what):
            encode_splits(path, wrapped("plain"), valid_fraction=fraction)
    split = encode_splits(path, wrapped("plain"), valid_fraction=shares[0] + 1e-9)
    assert (len(split["valid"].rows), len(split["train"].rows)) == (1, 4)


def test_a_fraction_beside_a_validation_file_is_refused(tmp_path):
    """One of the two would be ignored silently."""
    for name in ("train", "valid"):
        write_jsonl(tmp_path / f"{name}.jsonl", ROWS[:5])
    with pytest.raises(DataError, match="there is a validation file"):
        encode_splits(tmp_path, wrapped("plain"), valid_fraction=0.5)


def test_a_wrong_row_of_any_split_is_named_with_its_file(tmp_path):
    """Validation data is checked before the first update, not at the first evaluation."""
    write_jsonl(tmp_path / "train.jsonl", ROWS[:5])
    path = write_jsonl(tmp_path / "valid.jsonl", [*ROWS[:2], {"txt": "a"}])
    with pytest.raises(DataError) as caught:
        encode_splits(tmp_path, wrapped("plain"))
    assert caught.value.where == f"{path}:3"


def test_an_empty_file_is_a_data_error(tmp_path):
    """Exit code 3, with the split's name."""
    path = write_jsonl(tmp_path / "train.jsonl", [])
    with pytest.raises(DataError, match="empty"):
        encode_splits(path, wrapped("plain"))
