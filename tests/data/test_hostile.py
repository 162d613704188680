"""Files that nobody meant to write: one message with file and line, and memory that stays small."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tracemalloc

import pytest

from mlxfn.data.encode import EncodeOptions
from mlxfn.data.formats import parse_rows
from mlxfn.data.prepare import encode_splits
from mlxfn.data.record import Record
from mlxfn.data.records import LONGEST_LINE, read_records, scan_records
from mlxfn.errors import DataError
from tests.data.helpers import assistant, user, write_jsonl
from tests.support.cli import PROGRAM, environment
from tests.support.models import write_model
from tests.support.tokenizers import wrapped

GOOD = b'{"text": "fine"}\n'
LINES = {
    "invalid UTF-8": (b'{"text": "\xff"}', "UTF-8"),
    "a lone surrogate": (b'{"text": "\\ud800 alone"}', "UTF-8"),
    "NaN": (b'{"text": "a", "score": NaN}', "NaN is no JSON"),
    "Infinity": (b'{"text": "a", "score": -Infinity}', "-Infinity is no JSON"),
    "a duplicate key": (b'{"text": "a", "text": "b"}', "'text' is there twice"),
    "a duplicate key inside": (b'{"text": "a", "meta": {"x": 1, "x": 2}}', "'x' is there twice"),
    "lists 10,000 deep": (b'{"text": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "not valid JSON"),
    "objects 10,000 deep": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "not valid JSON"),
    "lists 900 deep": (b'{"text": ' + b"[" * 900 + b"]" * 900 + b"}", "more than 100 deep"),
    "a number of 10,000 digits": (b'{"text": ' + b"9" * 10_000 + b"}", "not valid JSON"),
    "a NUL": (b'{"text": "a\0b"}', "not valid JSON"),
}


@pytest.mark.parametrize(("line", "said"), LINES.values(), ids=LINES)
def test_a_hostile_line_is_named_with_what_is_wrong(tmp_path, line, said):
    """JSON readers differ on most of these: what one drops silently another trains on."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD)
    with pytest.raises(DataError) as caught:
        list(read_records(path))
    assert caught.value.where == f"{path}:2"
    assert said in str(caught.value)
    assert len(str(caught.value)) < 800


def test_the_rows_around_a_broken_line_can_still_be_scanned(tmp_path):
    """A doctor names every problem of a file at once, not the first one."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(GOOD + b"{\n" + GOOD + b"[]\n")
    found = list(scan_records(path))
    assert [isinstance(item, DataError) for item in found] == [False, True, False, True]


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_of_a_gigabyte_is_refused_in_little_memory(tmp_path, packed):
    """A file without line ends would otherwise be read whole, several times over."""
    path = tmp_path / ("train.jsonl.gz" if packed else "train.jsonl")
    if packed:
        with gzip.open(path, "wb", compresslevel=1) as file:
            for _ in range(3):
                file.write(b" " * (LONGEST_LINE // 2))
    else:
        with path.open("wb") as file:
            file.truncate(1 << 30)  # a hole: no bytes on the disk
    tracemalloc.start()
    with pytest.raises(DataError, match="too long for one row") as caught:
        list(read_records(path))
    assert caught.value.where == f"{path}:1"
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


def test_a_file_without_line_ends_is_refused_before_it_is_hashed(tmp_path, monkeypatch):
    """A gigabyte takes seconds to hash, for the name of a store that is never made."""
    path = tmp_path / "train.jsonl"
    with path.open("wb") as file:
        file.truncate(LONGEST_LINE + 1)
    monkeypatch.setattr("mlxfn.data.readers.content_of", pytest.fail)
    with pytest.raises(DataError, match="too long for one row"):
        encode_splits(path, wrapped("plain"), cache=tmp_path / "cache")


def test_a_file_that_loses_its_end_while_it_is_read_is_refused(tmp_path):
    """Half a data set would train without a word."""
    path = write_jsonl(tmp_path / "train.jsonl", [{"text": "row" * 9}] * 100_000)
    records = read_records(path)
    next(records)
    path.write_bytes(GOOD * 12)
    with pytest.raises(DataError, match="became shorter"):
        list(records)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": []}, "at least one"),
        ({"conversations": []}, "at least one"),
        ({"messages": [{"role": "asistant", "content": "a"}]}, "did you mean 'assistant'?"),
        ({"messages": [{"role": "narrator", "content": "a"}]}, "role is one of"),
        ({"conversations": [{"from": "narrator", "value": "a"}]}, "from is one of"),
        ({"conversations": [{"from": "human", "value": None}]}, "value is a string"),
        ({"conversations": [{"from": 3, "value": "a"}]}, "from is one of"),
        ({"conversations": ["a"]}, '"from"'),
        ({"conversations": [{"from": "function_call", "value": "f(1)"}]}, "a call as JSON"),
        ({"instruction": "a", "output": 3}, "a string"),
        ({"instruction": "a", "input": ["b"], "output": "c"}, "a string"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"arguments": "{"}]}]},
            "object of arguments",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": "f"}]}, "a list of calls"),
    ],
)
def test_a_row_that_is_no_conversation_says_what_one_is(row, said):
    """File and line, and what is expected there."""
    with pytest.raises(DataError) as caught:
        list(parse_rows([Record(row, "train.jsonl", 7)]))
    assert caught.value.where == "train.jsonl:7"
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([{"input_ids": [1, 2]}, {"input_ids": [1, 999]}], 2),
        ([{"text": "a b"}, {"messages": [user("a"), assistant("b")]}], 2),
        ([{"text": ""}, {"text": ""}], 1),
    ],
    ids=["an id over the vocabulary", "two formats in one file", "empty strings alone"],
)
def test_rows_that_cannot_be_trained_on_are_data_errors(tmp_path, rows, line):
    """Exit code 3 and the line, before a model sees anything."""
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError) as caught:
        encode_splits(path, wrapped("plain"), EncodeOptions(vocab_size=320))
    assert f"{path}:{line}" in str(caught.value)
    assert caught.value.exit_code == 3


def test_an_empty_string_among_others_is_dropped_and_named(tmp_path):
    """Wikitext is full of them; they teach nothing, and nothing is hidden."""
    path = write_jsonl(tmp_path / "train.jsonl", [{"text": "a b"}, {"text": ""}])
    report = encode_splits(path, wrapped("plain"))["train"].report
    assert (report.kept, report.dropped_no_target, report.dropped_at) == (1, 1, (f"{path}:2",))


def test_hostile_rows_take_little_memory(tmp_path):
    """A row that is refused must not take the machine with it."""
    row = json.dumps({"messages": [{"role": "x", "content": "a"}] * 200_000}).encode()
    assert len(row) < LONGEST_LINE
    path = tmp_path / "train.jsonl"
    path.write_bytes(row)
    tracemalloc.start()
    with pytest.raises(DataError):
        encode_splits(path, wrapped("plain"))
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()


FILES = {
    "invalid UTF-8": b'{"text": "\xff"}',
    "a line of a gigabyte": None,
    "nesting 10,000 deep": b'{"text": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "NaN": b'{"text": "a", "score": NaN}',
    "Infinity": b'{"text": "a", "score": Infinity}',
    "duplicate keys": b'{"text": "a", "text": "b"}',
    "a lone surrogate": b'{"text": "\\ud800"}',
    "a row of another format": b'{"prompt": "a", "completion": "b"}',
    "an empty conversation": b'{"messages": []}',
    "an unknown role": b'{"messages": [{"role": "narrator", "content": "a"}]}',
    "an id out of the vocabulary": b'{"input_ids": [1, 99999]}',
    "a row of 15 MB that is no row": b'{"text": ["' + b"a" * (15 << 20) + b'"]}',
}
FIRST = {
    "an empty conversation": b'{"messages": [{"role": "user", "content": "a"}, '
    b'{"role": "assistant", "content": "b"}]}\n',
    "an id out of the vocabulary": b'{"input_ids": [1, 2]}\n',
}
FIRST["an unknown role"] = FIRST["an empty conversation"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("hostile") / "model")


def trained(model, path, room):
    """Start the command as a person does, and return its code, its message and its memory in MB."""
    words = ["train", "--model", model, "--data", path, "--dry-run"]
    with (room / "said").open("wb") as said:
        process = subprocess.Popen(
            [*PROGRAM, *map(str, words)], stdout=subprocess.DEVNULL, stderr=said,
            cwd=room, env=environment(),
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return process.returncode, (room / "said").read_text(), usage.ru_maxrss / unit


@pytest.fixture(scope="module")
def baseline(model, tmp_path_factory):
    """The memory of the same command on a good file."""
    room = tmp_path_factory.mktemp("baseline")
    (room / "train.jsonl").write_bytes(GOOD * 20)
    code, said, memory = trained(model, room / "train.jsonl", room)
    assert (code, said) == (0, "")
    return memory


@pytest.mark.parametrize("name", FILES)
def test_the_command_refuses_bad_input_with_its_place_and_in_little_memory(
    tmp_path, model, baseline, name
):
    """Exit code 3, file and line, what is expected, and no more than 200 MB over a good file."""
    path, line = tmp_path / "train.jsonl", FILES[name]
    if line is None:
        with path.open("wb") as file:
            file.write(GOOD)
            file.truncate(1 << 30)
    else:
        path.write_bytes(FIRST.get(name, GOOD) + line + b"\n")
    code, said, memory = trained(model, path, tmp_path)
    assert code == 3, said
    assert f"{path}:2" in said
    assert "expected:" in said
    assert "Traceback" not in said
    assert len(said) < 1500
    assert memory - baseline < 200
