"""The commands that look at a finished run, through the real command line."""

from __future__ import annotations

import json
import math
import shutil
from html.parser import HTMLParser

import pytest
from mlx_lm import load as mlx_lm_load
from safetensors.numpy import load_file

from tests.support.cli import mlxfn
from tests.support.runs import SMALL, data_folder, model_folder, sums, write_rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 3 updates that gets worse after the second, on data that has a test split."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(data_folder(), folder / "data")
    write_rows(folder / "data" / "test.jsonl", sums(5, offset=200))
    settings = {**SMALL, "train.max_steps": 3, "eval.eval_steps": 2, "checkpoint.save_steps": 1}
    settings["eval.sample_prompts"] = ["3 plus 9?"]
    settings["optimizer.learning_rate"] = 0.2
    settings["schedule.name"] = "constant"
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    (folder / "c.toml").write_text("\n".join(lines))
    words = ("--model", model_folder(), "--data", "data", "--output", "run", "--quiet")
    done = mlxfn("train", "c.toml", *words, cwd=folder)
    assert done.code == 0, done.err
    return folder


def read_json(*words, cwd):
    """Return what a command writes with --json."""
    done = mlxfn(*words, "--json", cwd=cwd)
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_eval_measures_what_the_run_reported(finished):
    """The same model on the same rows in another process: the same loss, to the last bit."""
    report = json.loads((finished / "run" / "report.json").read_text())
    found = read_json("eval", "run", cwd=finished)
    assert found["loss"] == report["best_loss"]
    assert found["update"] == report["best_step"]
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["rows"] == 7


def test_eval_takes_another_split_and_other_rows(finished, tmp_path):
    """The test split is for the end, and a new data set needs no new run."""
    assert read_json("eval", "run", "--split", "test", cwd=finished)["rows"] == 5
    rows = write_rows(tmp_path / "valid.jsonl", sums(3)).parent
    found = read_json("eval", "run", "--data", rows, "--checkpoint", "last", cwd=finished)
    assert (found["rows"], found["update"]) == (3, 3)


def test_eval_of_a_split_that_is_not_there_says_so(finished):
    """It must not measure another one instead."""
    done = mlxfn("eval", "run", "--split", "test", "--data", data_folder(), cwd=finished)
    assert done.code == 3
    assert "no test split" in done.err


def test_generate_shows_base_and_tuned_side_by_side(finished):
    """What the tuning changed is the question."""
    words = ("generate", "run", "--prompt", "3 plus 9?", "--max-tokens", "4", "--compare")
    texts = read_json(*words, cwd=finished)
    assert set(texts) == {"prompt", "base", "tuned"}
    done = mlxfn(*words, cwd=finished)
    assert done.out == f"base:\n{texts['base']}\n\ntuned:\n{texts['tuned']}\n\n"


def test_generate_alone_prints_the_answer_alone(finished):
    """So that it can be piped."""
    words = ("generate", "run", "--prompt", "3 plus 9?", "--max-tokens", "4")
    assert mlxfn(*words, cwd=finished).out == read_json(*words, cwd=finished)["tuned"] + "\n"


@pytest.mark.parametrize("layout", ["mlx-lm", "peft", "fused"])
def test_export_writes_each_layout(finished, tmp_path, layout):
    """A run is worth what other programs can load of it."""
    folder = tmp_path / "out"
    done = mlxfn("export", "run", "--to", layout, "--output", folder, cwd=finished)
    assert done.code == 0, done.err
    assert f"written: {folder}" in done.out
    if layout == "peft":
        assert any("lora_A" in name for name in load_file(folder / "adapter_model.safetensors"))
    else:
        model = folder if layout == "fused" else model_folder()
        adapters = {} if layout == "fused" else {"adapter_path": str(folder)}
        mlx_lm_load(str(model), **adapters)


def test_export_takes_the_checkpoint_that_is_asked_for(finished, tmp_path):
    """Best and last differ, and so must what is written."""
    report = json.loads((finished / "run" / "report.json").read_text())
    assert report["best_step"] == 2
    folder = tmp_path / "last"
    words = ("--to", "mlx-lm", "--output", folder, "--checkpoint", "last")
    assert read_json("export", "run", *words, cwd=finished)["checkpoint"] == report["steps"]
    ours = load_file(folder / "adapters.safetensors")
    theirs = load_file(finished / "run" / "adapters" / "adapters.safetensors")
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)


def test_checkpoints_lists_updates_losses_and_the_best(finished):
    """What can be gone back to, and why one would."""
    report = json.loads((finished / "run" / "report.json").read_text())
    rows = read_json("checkpoints", "run", cwd=finished)
    assert [row["update"] for row in rows] == [1, 2, 3]
    assert [row["update"] for row in rows if row["best"]] == [report["best_step"]]
    assert rows[1]["validation_loss"] is not None
    head = mlxfn("checkpoints", "run", cwd=finished).out.splitlines()[0]
    assert head.split("\t") == ["update", "size", "valid loss", "best", "file"]


def test_a_damaged_checkpoint_is_named_and_passed_over(finished, tmp_path):
    """One flipped byte: verify exits with 4, a resume takes the one before it and says so."""
    run = shutil.copytree(finished / "run", tmp_path / "run")
    (run / "run.lock").unlink()
    newest = run / "checkpoints" / "step-00000003.npz"
    data = bytearray(newest.read_bytes())
    data[-1000] ^= 1
    newest.write_bytes(data)
    done = mlxfn("checkpoints", run, "--verify", cwd=tmp_path)
    assert done.code == 4
    checked = {line.split("\t")[0]: line.split("\t")[-1] for line in done.out.splitlines()}
    assert checked["2"] == "ok"
    assert checked["3"] not in {"ok", ""}
    words = ("--output", run, "--data", finished / "data", "--resume")
    done = mlxfn("train", run / "config.toml", *words, cwd=tmp_path)
    assert done.code == 4  # the data is now at another path: a setting that may not change
    done = mlxfn("train", run / "config.toml", "--output", run, "--resume", cwd=finished)
    assert done.code == 0, done.err
    assert "step-00000003.npz is damaged and was passed over" in done.out


def test_a_run_whose_checkpoints_are_all_damaged_cannot_be_opened(finished, tmp_path):
    """Answers of an untrained adapter would look like a failed training."""
    run = shutil.copytree(finished / "run", tmp_path / "run")
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-7])
    done = mlxfn("generate", run, "--prompt", "x", cwd=finished)
    assert done.code == 4
    assert "no checkpoint that can be read" in done.err


@pytest.mark.parametrize(
    "words",
    [
        ("eval",),
        ("generate", "--prompt", "x"),
        ("export", "--to", "peft", "--output", "out"),
        ("checkpoints",),
        ("report",),
    ],
)
def test_a_folder_that_is_no_run_is_refused(tmp_path, words):
    """A mistyped path exits with 4 and makes nothing there."""
    name, *rest = words
    done = mlxfn(name, "runs/none", *rest, cwd=tmp_path)
    assert done.code == 4
    assert "runs/none" in done.err
    assert list(tmp_path.iterdir()) == []


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        """Note a tag."""
        self.tags.append(tag)
        if tag not in {"meta", "circle", "line", "polyline"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        """Check that tags close in order."""
        if tag not in {"circle", "line", "polyline"}:
            assert self.open.pop() == tag


def test_report_makes_the_same_report_again(finished, tmp_path):
    """Everything in it comes from the log, so a lost report is no loss."""
    run = shutil.copytree(finished / "run", tmp_path / "run")
    before = (run / "report.json").read_text()
    (run / "report.json").unlink()
    (run / "report.html").unlink()
    assert mlxfn("report", "run", cwd=tmp_path).code == 0
    assert json.loads((run / "report.json").read_text()) == json.loads(before)
    html = (run / "report.html").read_text()
    page = Page()
    page.feed(html)
    assert page.open == []
    assert page.tags.count("svg") == 3
    assert "script" not in page.tags
    assert "http" not in html
