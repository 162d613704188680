"""The doctor: every planted problem is named, and healthy data is left alone."""

from __future__ import annotations

import json
import re
import tracemalloc
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from mlxfn.data.copies import Copies
from mlxfn.data.cursor import Loader
from mlxfn.data.doctor import examine
from mlxfn.data.encode import EncodeOptions
from mlxfn.data.page import page
from mlxfn.data.prepare import encode_splits
from mlxfn.data.problems import KINDS
from tests.data.helpers import write_jsonl
from tests.support.cli import mlxfn, on_terminal, plain
from tests.support.models import write_model
from tests.support.planted import END, EXPECTED, GOOD, planted
from tests.support.tokenizers import shared, write_tokenizer

ROOT = Path(__file__).parent.parent.parent


def test_every_planted_problem_is_named_and_nothing_else(tmp_path):
    """Fifteen kinds of trouble in one data set, each counted and placed."""
    options = EncodeOptions(max_seq_length=64, vocab_size=400)
    diagnosis = examine(planted(tmp_path), shared("llama"), options, batch_size=2)
    found = {(p.kind, p.detail, p.count) for p in diagnosis.problems}
    assert found == EXPECTED
    assert diagnosis.senseless
    places = {p.kind: p.places for p in diagnosis.problems}
    assert places["duplicates"] == (f"{tmp_path}/train.jsonl:13",)
    assert places["overlap"] == (f"{tmp_path}/valid.jsonl:1",)
    assert places["no_end"] == (f"{tmp_path}/train-ids.jsonl:2",)
    assert all(p.remedy and p.what for p in diagnosis.problems)


def test_the_page_names_every_problem_and_shows_what_is_learned(tmp_path):
    """The page is what is sent to the person who made the data."""
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "<b>&", "completion": "<script>"}])
    options = EncodeOptions(max_seq_length=64)
    text = page(examine(tmp_path, shared("llama"), options, batch_size=2), title="<t>")
    assert "<b>" not in text
    assert "<script>" not in text
    assert "<title>&lt;t&gt;" in text
    assert "class=learned>" in text


def test_the_command_names_ten_planted_problems_everywhere(tmp_path):
    """In a pipe, as JSON and on the page; exit code 3, because training would be refused."""
    model = write_model(tmp_path / "model")
    write_tokenizer(model, "llama")
    data = planted(tmp_path / "data")
    words = ["data", "--model", model, "--data", data, "--set", "data.max_seq_length=64"]
    piped = mlxfn(*words, "--html", "page.html", cwd=tmp_path)
    assert (piped.code, piped.err) == (3, ""), piped
    html = (tmp_path / "page.html").read_text()
    asked = mlxfn(*words, "--json", cwd=tmp_path)
    assert asked.code == 3
    said = json.loads(asked.out)
    assert said["senseless"] is True
    assert {(p["kind"], p["detail"], p["count"]) for p in said["problems"]} == EXPECTED
    for kind, detail, _ in EXPECTED:
        what = KINDS[kind].what.format(detail=detail)
        assert what in piped.out
        assert what.replace("'", "&#x27;").replace("<", "&lt;").replace(">", "&gt;") in html
    assert f"{END}]]" in piped.out, "what is learned is marked"


@pytest.mark.parametrize("name", ["doctor.svg", "doctor.html"])
def test_the_documents_show_every_planted_problem(name):
    """The picture and the page that the documents show; python docs/doctor.py makes them anew."""
    shown = (ROOT / "docs" / "explanation" / name).read_text(encoding="utf-8")
    shown = unescape(re.sub(r"<[^>]+>", "", shown)).replace("\N{NO-BREAK SPACE}", " ")
    assert len(EXPECTED) >= 10
    for kind, detail, _ in EXPECTED:
        assert KINDS[kind].what.format(detail=detail) in shown


def test_a_healthy_data_set_has_no_problems(tmp_path):
    """A doctor that always finds something is not listened to; on a terminal it shows colours."""
    model = write_model(tmp_path / "model")
    write_jsonl(tmp_path / "data" / "train.jsonl", GOOD)
    words = ["data", "--model", model, "--data", tmp_path / "data"]
    shown = on_terminal(*words, cwd=tmp_path)
    assert shown.code == 0, shown
    assert "no problems" in plain(shown.out)
    assert "\x1b[" in shown.out


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([{"prompt": "a " * 90, "completion": "b"}] * 3, "empty_split"),
        ([{"prompt": "a " * 90, "completion": "b"}] * 3 + GOOD[:2], "mostly_dropped"),
        ([{"input_ids": list(range(60)), "labels": [-100] * 59 + [3]}] * 200, None),
    ],
)
def test_conclusions_need_all_rows(tmp_path, rows, kind):
    """One dropped row is a note; a split that loses most of them is no data set."""
    write_jsonl(tmp_path / "train.jsonl", rows)
    options = EncodeOptions(max_seq_length=64)
    diagnosis = examine(tmp_path, shared("chatml"), options, batch_size=2)
    errors = {p.kind for p in diagnosis.problems if p.severity == "error"}
    assert errors == ({kind} if kind else set())


def test_a_drop_in_targets_is_noticed(tmp_path):
    """Less than one learned token in a hundred: a run that mostly computes prompts."""
    row = {"input_ids": list(range(200)), "labels": [-100] * 199 + [3]}
    write_jsonl(tmp_path / "train.jsonl", [row])
    diagnosis = examine(tmp_path, shared("chatml"), EncodeOptions(), batch_size=2)
    assert "few_targets" in {p.kind for p in diagnosis.problems}


def test_the_split_that_a_fraction_takes_is_looked_at_as_in_training(tmp_path):
    """Copies of a row stay on one side, so they are no overlap; another split is another size."""
    rows = [{"prompt": f"{i}?", "completion": f"{i}"} for i in range(60)]
    path = write_jsonl(tmp_path / "train.jsonl", [*rows, rows[5], rows[6]])
    options = EncodeOptions(max_seq_length=64)
    diagnosis = examine(path, shared("chatml"), options, batch_size=2, valid_fraction=0.3)
    splits = encode_splits(path, shared("chatml"), options, valid_fraction=0.3)
    assert list(diagnosis.splits) == ["train", "valid"]
    for name, split in splits.items():
        assert diagnosis.splits[name].report.kept == split.report.kept
    assert {p.kind for p in diagnosis.problems} == {"duplicates"}
    assert sum(p.count for p in diagnosis.problems) == 2


@pytest.mark.parametrize("packing", [False, True])
def test_the_padding_that_is_told_is_that_of_training(tmp_path, packing):
    """Rows of batches, their lengths and what of them is padding, as a run has them."""
    sizes = np.random.default_rng(0).lognormal(np.log(40), 0.7, 500).astype(int).clip(2, 250)
    rows = [{"input_ids": [i % 50] * size} for i, size in enumerate(sizes.tolist())]
    path, options = write_jsonl(tmp_path / "train.jsonl", rows), EncodeOptions(max_seq_length=256)
    health = examine(path, shared("chatml"), options, batch_size=4).splits["train"]
    told = health.packed if packing else health.bucketed
    data = encode_splits(path, shared("chatml"), options)["train"].rows
    loader = Loader(data, 4, vocab_size=50, max_seq_length=256, packing=packing)
    batches = list(loader.epoch())
    assert told is not None
    assert told.share == pytest.approx(loader.report().padding)
    assert told.shapes == len({batch.tokens.shape for batch in batches}) > 1
    if packing:
        assert told.rows == sum(len(batch.tokens) for batch in batches)


def test_the_sources_of_a_mix_are_looked_at_each_by_itself(tmp_path):
    """Rows that two sources share, a source repeated ten times, and what an epoch takes."""
    small = write_jsonl(tmp_path / "small.jsonl", GOOD[:3])
    large = write_jsonl(tmp_path / "large.jsonl", [*GOOD[2:], *GOOD[4:10]])
    mix = {str(small): 9.0, str(large): 1.0}
    diagnosis = examine(mix, shared("chatml"), EncodeOptions(), batch_size=2)
    assert list(diagnosis.splits) == [f"train of {small}", f"train of {large}"]
    found = {(p.kind, p.split, p.count) for p in diagnosis.problems}
    assert found == {
        ("duplicates", f"train of {large}", 7),
        ("repeated", f"train of {small}", 3),
    }
    assert not diagnosis.senseless
    use = diagnosis.splits[f"train of {small}"].report.sources[0]
    assert (use.rows, use.drawn) == (3, 17)
    assert "90.0% of an epoch" in page(diagnosis, title="mix")


def test_a_mix_is_shown_by_the_command(tmp_path):
    """The share of each source, and what it means in rows."""
    model = write_model(tmp_path / "model")
    paths = [write_jsonl(tmp_path / f"{n}.jsonl", GOOD[i::2]) for i, n in enumerate("ab")]
    mix = f"{{ '{paths[0]}' = 0.75, '{paths[1]}' = 0.25 }}"
    shown = mlxfn("data", "--model", model, "--set", f"data.mix={mix}", cwd=tmp_path)
    assert shown.code == 0, shown
    assert f"75.0% of an epoch from {paths[0]}: 9 rows, 1.5 times its 6" in shown.out


def test_answers_without_the_reasoning_that_the_template_asks_for_are_named(tmp_path):
    """The model would be trained without the tag that it is always given."""
    rows = [
        {"prompt": "2?", "completion": "4"},
        {"prompt": "3?", "completion": "<think>\na\n</think>9"},
    ]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    for style, count in (("forced_thinking", 1), ("chatml", 0)):
        diagnosis = examine(path, shared(style), EncodeOptions(), batch_size=2)
        assert [p.count for p in diagnosis.problems] == [1] * count


def test_copies_are_found_in_a_few_bytes_a_row():
    """Ten million rows: sets of hashes as Python objects would take a gigabyte."""
    tracemalloc.start()
    rows = Copies()
    for number in range(100_000):
        rows.add(b"%d" % (number % 99_000), f"file {number // 60_000}", number % 60_000 + 1)
    rows.close()
    count, places = rows.repeated()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 1000
    assert places[0] == "file 1:39001"
    assert peak < 50 * 100_000
    other = Copies()
    other.add(b"7", "other", 3)
    other.add(b"-1", "other", 4)
    other.close()
    assert other.shared_with(rows) == (1, ["other:3"])


def test_a_renamed_column_is_understood(tmp_path):
    """The doctor reads with the settings of the run."""
    write_jsonl(tmp_path / "train.jsonl", [{"q": "1?", "a": "2"}])
    options = EncodeOptions(columns={"prompt": "q", "completion": "a"}, overlong="drop")
    assert not examine(tmp_path, shared("chatml"), options, batch_size=2).problems


def test_overlong_rows_that_are_dropped_are_called_so(tmp_path):
    """Cut and dropped are different losses."""
    write_jsonl(tmp_path / "train.jsonl", [*GOOD, {"prompt": "a", "completion": "b " * 90}])
    options = EncodeOptions(max_seq_length=64, overlong="drop")
    diagnosis = examine(tmp_path, shared("chatml"), options, batch_size=2)
    assert [p.kind for p in diagnosis.problems] == ["overlong"]
