"""Reading JSON lines: what a file says, and every way in which it can be broken."""

import gzip
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn.data.record import shorten
from mlxfn.data.records import find_splits, read_records
from mlxfn.errors import DataError
from tests.data.helpers import write_jsonl

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(rows=st.lists(st.dictionaries(st.text(), json_values, max_size=3), max_size=5))
def test_what_was_written_is_read(tmp_path_factory, rows):
    """Any text, line separators inside strings included: one row is one line."""
    path = tmp_path_factory.mktemp("rows") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), newline="")
    assert [record.value for record in read_records(path)] == rows


def test_gzip_reads_like_plain(tmp_path):
    """Data sets travel compressed."""
    plain = write_jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    packed = read_records(tmp_path / "b.jsonl.gz")
    assert [r.value for r in packed] == [r.value for r in read_records(plain)]


def test_lines_keep_their_numbers_across_blank_lines_and_windows_line_ends(tmp_path):
    """A message that names the wrong line is worse than none."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert [(r.value, r.line) for r in read_records(path)] == [({"a": 1}, 1), ({"a": 2}, 4)]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"text": "no end', "not valid JSON"),
        (b'{"text": "a"} {"text": "b"}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'["a", "list"]', "not a JSON object"),
        (b"42", "not a JSON object"),
        (b'{"text": "\xff\xfe"}', "not valid UTF-8"),
        (b'{"text": "half a pair: \\ud83d"}', "not valid UTF-8"),
    ],
)
def test_a_broken_line_is_named_and_shown(tmp_path, line, what):
    """The user has to find it among a million others."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=what) as caught:
        list(read_records(path))
    assert caught.value.where == f"{path}:2"
    assert len(str(caught.value.got)) <= 120
    assert str(caught.value.got)[:5] == shorten(line)[:5]


def test_an_escaped_pair_of_surrogates_is_text(tmp_path):
    """json.dumps writes emoji this way."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"text": "\\ud83d\\ude00"}\n')
    assert next(read_records(path)).value == {"text": "😀"}


@pytest.mark.parametrize("damage", ["cut", "not gzip"])
def test_a_damaged_gzip_file_is_a_data_error(tmp_path, damage):
    """A download that broke off must not train on half a data set."""
    whole = gzip.compress(os.urandom(4000).hex().encode())
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"plain text")
    with pytest.raises(DataError, match="cannot be read"):
        list(read_records(path))


def test_a_missing_path_is_a_data_error(tmp_path):
    """The exit code tells a script that the data is missing, not the program broken."""
    for look in (find_splits, lambda path: list(read_records(path))):
        with pytest.raises(DataError, match="does not exist") as caught:
            look(tmp_path / "nowhere")
        assert caught.value.exit_code == 3


@pytest.mark.parametrize("path", ["x" * 5000, "~nobody-of-this-name/data"])
def test_a_path_that_cannot_even_be_asked_for_is_a_data_error(path):
    """A whole sentence given as --data is a mistake, not a traceback."""
    with pytest.raises(DataError, match="cannot be read"):
        find_splits(path)


def test_a_file_in_the_place_of_a_folder_is_a_data_error(tmp_path):
    """The names come from a listing, and a listing can fail."""
    (tmp_path / "train.jsonl").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        list(read_records([tmp_path / "train.jsonl"]))


def test_splits_are_found_by_name_shards_and_folders(tmp_path):
    """mlx-lm's names, Hugging Face's `validation`, and shards."""
    for name in (
        "train-00001.jsonl",
        "train-00000.jsonl.gz",
        "validation.jsonl",
        "test/b.jsonl",
        "trainer.jsonl",
    ):
        write_jsonl(tmp_path / name, [])
    found = {name: [path.name for path in paths] for name, paths in find_splits(tmp_path).items()}
    assert found == {
        "train": ["train-00000.jsonl.gz", "train-00001.jsonl"],
        "valid": ["validation.jsonl"],
        "test": ["b.jsonl"],
    }


def test_a_file_or_a_list_of_files_is_train(tmp_path):
    """The shortest way to start needs no folder."""
    one, two = (write_jsonl(tmp_path / name, [{"text": name}]) for name in ("1.jsonl", "2.jsonl"))
    assert find_splits(one) == {"train": [one]}
    assert find_splits([one, str(two)]) == {"train": [one, two]}
    assert [r.value["text"] for r in read_records([two, one])] == ["2.jsonl", "1.jsonl"]
    assert [r.value["text"] for r in read_records(tmp_path)] == ["1.jsonl", "2.jsonl"]


def test_a_folder_without_splits_lists_what_it_has(tmp_path):
    """Usually the files are there under other names."""
    (tmp_path / "data.parquet").touch()
    with pytest.raises(DataError, match=r"data\.parquet"):
        find_splits(tmp_path)


def test_valid_under_two_names_is_refused(tmp_path):
    """Taking either one silently would be wrong half of the time."""
    write_jsonl(tmp_path / "valid.jsonl", [])
    write_jsonl(tmp_path / "validation.jsonl", [])
    with pytest.raises(DataError, match="two names"):
        find_splits(tmp_path)
