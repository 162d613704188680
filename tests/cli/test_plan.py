"""``mlxfn plan`` through the real command line."""

from __future__ import annotations

import json

from tests.support.cli import mlxfn
from tests.support.runs import model_folder, sums, write_rows


def test_plan_tells_memory_time_and_the_settings_that_reach_them(tmp_path):
    """What it prints can be pasted behind ``mlxfn train``."""
    done = mlxfn("plan", "--model", model_folder(), cwd=tmp_path)
    assert done.code == 0, done.err
    for word in ("activations", "optimizer", "peak", "update", "--set train.remat="):
        assert word in done.out


def test_plan_needs_no_weights_and_no_data(tmp_path):
    """One plans before one downloads."""
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((model_folder() / "config.json").read_bytes())
    done = mlxfn("plan", "--model", bare, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert json.loads(done.out)["best"]["base_gb"] > 0


def test_plan_says_what_is_smallest_when_nothing_fits(tmp_path):
    """Exit code 6, as a run that does not fit."""
    done = mlxfn("plan", "--model", model_folder(), "--budget", "1e-5", cwd=tmp_path)
    assert done.code == 6
    assert "nothing fits" in done.out


def test_a_measured_plan_tells_both(tmp_path):
    """The prediction is corrected by one real update."""
    words = ("--set", "data.max_seq_length=64", "--measure", "--json")
    done = mlxfn("plan", "--model", model_folder(), *words, cwd=tmp_path)
    assert done.code == 0, done.err
    assert json.loads(done.out)["measured"]["peak_gb"] > 0


def test_a_resumed_run_executes_as_it_was_started(tmp_path):
    """Another budget on another day must not change a rounding in the middle of a run."""
    write_rows(tmp_path / "rows.jsonl", sums(12))
    words = ("--model", model_folder(), "--data", "rows.jsonl", "--output", "run", "--quiet")
    start = ("--set", "train.max_steps=2", "--set", "train.lean=all", "--set", "train.remat=1")
    done = mlxfn("train", *words, *start, cwd=tmp_path)
    assert done.code == 0, done.err
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan == {"remat": 1, "lean": "all", "quantized": "packed"}
