"""A run that goes back to its last good state, and past the rows that broke it."""

from __future__ import annotations

import signal

import mlx.core as mx
import pytest

import mlxfn as mf
from mlxfn.events import Verdict
from tests.support.models import write_model
from tests.support.runs import Collect, small_config, sums, write_rows


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """A model with NaN in the embedding of one character, which four rows in a row hold."""
    folder = tmp_path_factory.mktemp("poisoned")
    write_model(folder / "model")
    character = mf.load_model(str(folder / "model")).tokenizer.encode("~", add_special_tokens=False)
    weights = mx.load(str(folder / "model/model.safetensors"))
    mx.eval(weights)
    table = weights["model.embed_tokens.weight"]
    bad = mx.any(mx.arange(table.shape[0])[:, None] == mx.array(character), axis=1, keepdims=True)
    weights["model.embed_tokens.weight"] = mx.where(bad, mx.nan, table)
    mx.save_safetensors(str(folder / "model/model.safetensors"), weights)
    rows = sums(24)
    for row in rows[12:20]:
        row["prompt"] = "~" + row["prompt"]
    write_rows(folder / "data/train.jsonl", rows)
    write_rows(folder / "data/valid.jsonl", sums(5, offset=100))
    return folder


def config(folder, output, **changes):
    """Return a run of six updates an epoch, two of which in a row are not finite."""
    settings = {
        "model__path": str(folder / "model"),
        "data__path": str(folder / "data"),
        "data__shuffle": False,
        "train__nonfinite": "rollback",
        "train__max_consecutive_skips": 1,
        "schedule__warmup_steps": 0,
        "monitor__early_stopping_patience": 0,
    }
    return small_config(output, **{**settings, **changes})


def test_repeated_nonfinite_updates_go_back_and_past_the_rows_that_cause_them(poisoned, tmp_path):
    """With half the learning rate, once in each epoch, and every time of it in the history."""
    seen = Collect()
    result = mf.train(config(poisoned, tmp_path), sinks=[seen])
    assert (result.exit_code, result.reason) == (0, "finished")
    back = [e for e in result.history if e["event"] == "rollback"]
    assert [(e["reason"], e["rate_factor"]) for e in back] == [
        ("nonfinite", 0.5),
        ("nonfinite", 0.25),
    ]
    assert [e["update"] for e in back] == [3, 6]  # the best ones so far
    assert result.skipped == 4
    assert all(
        mx.isfinite(leaf).all()
        for leaf in mx.load(result.final_path + "/adapters.safetensors").values()
    )
    kinds = [e["kind"] for e in seen.of("verdict")]
    assert kinds == ["nonfinite", "too_many_nonfinite", "rollback"] * 2


def test_a_run_rolled_back_is_stopped_and_resumed_to_the_same_bytes(poisoned, tmp_path):
    """The rollback is part of the state, and so is how often it happened."""

    class Stop(Collect):
        def write(self, event):
            super().write(event)
            if (
                isinstance(event, Verdict)
                and event.kind == "rollback"
                and len(self.of("verdict")) == 3
            ):
                signal.raise_signal(signal.SIGTERM)

    whole = mf.train(config(poisoned, tmp_path / "whole"))
    again = config(poisoned, tmp_path / "again")
    assert mf.train(again, sinks=[Stop()]).exit_code == 143
    assert mf.train(again, mode="resume").history == whole.history


def test_a_run_that_goes_back_too_often_halts(poisoned, tmp_path):
    """Three times is help; a fourth time would be a loop."""
    result = mf.train(config(poisoned, tmp_path, train__num_epochs=6))
    assert (result.exit_code, result.reason) == (5, "nonfinite")
    assert "rolled back too often" in result.message
    assert sum(e["event"] == "rollback" for e in result.history) == 3


def test_without_a_checkpoint_there_is_nowhere_to_go_back_to(poisoned, tmp_path):
    """The run halts and says so."""
    changed = config(poisoned, tmp_path, checkpoint__save_steps=0, eval__eval_steps=0)
    result = mf.train(changed)
    assert (result.exit_code, result.reason) == (5, "nonfinite")
    assert "no checkpoint to go back to" in result.message
