"""The loop: an update that was left out is no update, and two interruptions are none."""

import signal
from pathlib import Path

import mlxfn as mf
from tests.run.test_train import StopAt, adapter_bytes, broken_model
from tests.support.runs import Collect, small_config


def test_an_update_that_was_left_out_fires_nothing(tmp_path):
    """0 % n is 0: loops that test the counter alone log, evaluate and save before any update."""
    seen = Collect()
    path = str(broken_model(tmp_path / "model"))
    config = small_config(
        tmp_path / "run",
        model__path=path,
        train__max_consecutive_skips=2,
        eval__eval_steps=1,
        checkpoint__save_steps=1,
    )
    result = mf.train(config, sinks=[seen])
    assert (result.steps, result.skipped) == (0, 3)
    assert seen.of("step") == []
    assert [e["update"] for e in seen.of("eval")] == [0]  # the one before training
    assert len(seen.of("save")) == 1  # the one that a halt leaves


def test_a_run_stopped_twice_goes_on_bit_for_bit(tmp_path):
    """A position that counts from the last resume is right once and wrong from then on."""
    whole = mf.train(small_config(tmp_path / "whole"))
    config = small_config(tmp_path / "run")
    for mode, update in (("new", 2), ("resume", 4), ("resume", 9)):
        stopped = mf.train(config, mode=mode, sinks=[StopAt(update)])
        assert (stopped.steps, stopped.exit_code) == (update, 128 + signal.SIGTERM)
    resumed = mf.train(config, mode="resume")
    assert adapter_bytes(resumed) == adapter_bytes(whole)
    assert resumed.history == whole.history
    assert Path(resumed.final_path).is_dir()


def test_every_nth_is_counted_in_updates_and_not_in_micro_batches(tmp_path):
    """Three micro-batches to an update: a counter of micro-batches would fire at every one."""
    seen = Collect()
    every = {"log__logging_steps": 3, "eval__eval_steps": 3, "checkpoint__save_steps": 3}
    config = small_config(tmp_path, train__gradient_accumulation_steps=3, **every)
    assert mf.train(config, sinks=[seen]).steps == 8
    ends_of_epochs = [4, 8]
    assert [e["update"] for e in seen.of("step")] == [3, 6]
    assert [e["update"] for e in seen.of("eval")] == [0, *sorted([3, 6, *ends_of_epochs])]
    assert [e["update"] for e in seen.of("save")] == sorted([3, 6, *ends_of_epochs])
