"""The loop in this process: what fires when, what is the same with and without being watched."""

import json
import math
import signal
from pathlib import Path
from unittest.mock import patch

import mlx.core as mx
import pytest

import mlxfn as mf
from mlxfn.assemble import assemble
from mlxfn.data.cursor import to_device
from mlxfn.errors import CheckpointError, RunDirError
from mlxfn.events import Step
from mlxfn.models.head import split_head
from mlxfn.sinks.jsonl import read_events
from mlxfn.state import Batch
from mlxfn.timing import rates
from tests.support.models import write_model
from tests.support.runs import Collect, small_config, sums, write_rows


def adapter_bytes(result):
    return (Path(result.final_path) / "adapters.safetensors").read_bytes()


class StopAt:
    """A sink that raises a real signal when an update is logged."""

    def __init__(self, update, number=signal.SIGTERM):
        self.update, self.number = update, number

    def write(self, event):
        if isinstance(event, Step) and event.update == self.update:
            signal.raise_signal(self.number)

    def close(self):
        pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One run that nothing interrupts, and its events."""
    seen = Collect()
    folder = tmp_path_factory.mktemp("whole") / "run"
    return mf.train(small_config(folder), sinks=[seen]), seen, folder


def test_validation_loss_falls(whole):
    result, _, _ = whole
    assert result.reason == "finished"
    assert result.best_loss < 0.8 * result.first_valid_loss


def test_every_update_is_logged_evaluated_and_saved_at_its_own_number_once(whole):
    """Testing the number of micro-batches fires k times per update, and at update 0."""
    _, seen, _ = whole
    assert [e["update"] for e in seen.of("step")] == list(range(1, 13))
    # every third update, and the ends of the epochs at 6 and 12, once although both are due
    assert [e["update"] for e in seen.of("eval")] == [0, 3, 6, 9, 12]
    saves = [e["update"] for e in seen.of("save")]
    assert set(range(2, 13, 2)) <= set(saves)
    assert len(saves) == len(set(saves))


def test_an_epoch_ends_with_a_short_window_that_is_applied(whole):
    """21 rows in 11 batches: five windows of two, one of one; nothing leaks into the next epoch."""
    result, seen, _ = whole
    rows = [e["rows"] for e in seen.of("step")]
    assert sum(rows[:6]) == sum(rows[6:]) == 21
    assert rows[5] <= 2
    assert (result.steps, result.epochs, result.samples) == (12, 2, 42)


def test_the_log_holds_every_event_that_was_told(whole):
    _, seen, folder = whole
    told = json.loads(json.dumps(seen.events))
    assert list(read_events(folder / "events.jsonl")) == told


def test_the_best_checkpoint_is_there_with_the_newest(whole):
    """A best checkpoint that retention removed points at nothing."""
    result, _, folder = whole
    names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert f"step-{result.best_step:08d}.npz" in names
    assert "step-00000012.npz" in names
    assert len(names) <= 4


def test_training_is_bit_identical_with_and_without_evaluations_logs_and_saves(whole, tmp_path):
    """mlx-lm's evaluation draws from the training stream."""
    quiet = {"eval__eval_steps": 0, "eval__eval_at_start": False, "log__logging_steps": 100}
    changed = mf.train(small_config(tmp_path, checkpoint__save_steps=0, **quiet))
    assert adapter_bytes(changed) == adapter_bytes(whole[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_run_stopped_by_a_signal_goes_on_bit_for_bit(whole, tmp_path, number):
    """In the middle of the first epoch: dropout, order, moments and monitors all continue."""
    config = small_config(tmp_path / "run")
    stopped = mf.train(config, sinks=[StopAt(5, number)])
    assert (stopped.exit_code, stopped.steps) == (128 + number, 5)
    resumed = mf.train(config, mode="resume")
    assert adapter_bytes(resumed) == adapter_bytes(whole[0])
    assert resumed.history == whole[0].history
    updates = [
        e["update"] for e in read_events(tmp_path / "run/events.jsonl") if e["event"] == "step"
    ]
    assert updates == list(range(1, 13))


def test_a_resumed_run_measures_nothing(tmp_path, monkeypatch):
    """How it runs is in plan.json: a timing can only cost time, or decide otherwise."""

    def measured(*_):
        raise AssertionError("measured")

    config = small_config(tmp_path, model__quantize_bits=4, train__max_steps=2)
    mf.train(config)
    monkeypatch.setattr("mlxfn.models.unpack._seconds", measured)
    monkeypatch.setattr("mlxfn.timing.seconds_of", measured)
    rates.cache_clear()
    assert mf.train(config, mode="resume").steps == 2
    with pytest.raises(AssertionError, match="measured"):
        mf.train(config, mode="fresh")


def test_the_head_is_verified_once_for_both_losses(tmp_path, monkeypatch):
    """It takes two forward passes; and only what is learned from may be smoothed."""
    config = small_config(tmp_path, train__label_smoothing=0.1)
    plain = assemble(config)
    monkeypatch.setattr("mlxfn.assemble.LARGE_LOGITS", 0)
    with patch("mlxfn.assemble.split_head", wraps=split_head) as split:
        chunked = assemble(config)
    assert split.call_count == 1
    batch = to_device(next(iter(plain.valid.epoch())))
    same = [job.evaluate(job.state.train.params, [batch]).loss for job in (plain, chunked)]
    assert same[0] == pytest.approx(same[1], rel=1e-6)
    for job in (plain, chunked):
        _, metrics = job.step(job.state.train, [batch])
        assert float(metrics.loss) != pytest.approx(same[0], rel=1e-4)


def test_resuming_a_finished_run_changes_nothing(whole):
    result, _, folder = whole
    before = adapter_bytes(result)
    again = mf.train(small_config(folder), mode="resume")
    assert (again.steps, adapter_bytes(again), again.history) == (12, before, result.history)


def test_a_resume_with_other_settings_is_refused_with_the_difference(whole):
    _, _, folder = whole
    with pytest.raises(CheckpointError, match=r"optimizer.learning_rate: 0.01 -> 0.5"):
        mf.train(small_config(folder, optimizer__learning_rate=0.5), mode="resume")


def test_a_resume_on_other_data_is_refused(whole, tmp_path):
    """A cursor into other rows means nothing."""
    _, _, folder = whole
    write_rows(tmp_path / "train.jsonl", sums(21, offset=1))
    write_rows(tmp_path / "valid.jsonl", sums(7, offset=100))
    moved = small_config(folder, data__path=str(tmp_path))
    with pytest.raises(CheckpointError, match=r"data\.train: another fingerprint"):
        mf.train(moved, mode="resume")


def test_a_run_whose_every_checkpoint_is_damaged_is_not_started_over_silently(tmp_path):
    """Hours of training would be written over; with one good checkpoint left, that one is used."""
    config = small_config(tmp_path, train__max_steps=4)
    mf.train(config)
    paths = sorted((tmp_path / "checkpoints").iterdir())
    for path in paths[:0:-1]:
        path.write_bytes(path.read_bytes()[:-1])
    seen = Collect()
    assert mf.train(config, mode="resume", sinks=[seen]).steps == 4
    assert paths[-1].name in seen.of("verdict")[0]["message"]
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="every checkpoint of the run is damaged"):
        mf.train(config, mode="resume")


def test_a_second_run_in_the_same_directory_is_refused(whole):
    _, _, folder = whole
    with pytest.raises(RunDirError, match="--resume"):
        mf.train(small_config(folder))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_evaluation_does_not_depend_on_the_batch_size(whole, tmp_path, batch_size):
    """A mean of batch means does; so does a tail that is dropped."""
    config = small_config(tmp_path, eval__batch_size=batch_size, train__max_steps=1)
    loss = mf.train(config).first_valid_loss
    assert loss == pytest.approx(whole[0].first_valid_loss, rel=1e-6)


def test_training_without_validation_rows_works(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", sums(5))
    result = mf.train(small_config(tmp_path / "run", data__path=str(path)))
    assert (result.best_loss, result.best_path, result.reason) == (None, None, "finished")
    assert math.isfinite(result.history[-2]["loss"])


def test_early_stopping_ends_the_run_with_exit_code_0(tmp_path):
    """And a resume of it ends at once instead of training on."""
    config = small_config(
        tmp_path, monitor__early_stopping_patience=2, monitor__min_delta=100.0, eval__eval_steps=1
    )
    result = mf.train(config)
    assert (result.reason, result.exit_code, result.steps) == ("early_stopping", 0, 3)
    assert mf.train(config, mode="resume").steps == 3


def broken_model(folder):
    """A model with one NaN in the weights of its last layer."""
    write_model(folder)
    weights = mx.load(str(folder / "model.safetensors"))
    mx.eval(weights)
    name = "model.layers.2.mlp.down_proj.weight"
    weights[name] = mx.where(mx.arange(weights[name].shape[0])[:, None] == 3, mx.nan, weights[name])
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


def test_a_model_with_nan_weights_halts_and_names_leaves_and_rows(tmp_path):
    """Other trainers print nan, save NaN adapters and exit 0."""
    seen = Collect()
    path = str(broken_model(tmp_path / "model"))
    config = small_config(tmp_path / "run", model__path=path, train__max_consecutive_skips=2)
    result = mf.train(config, sinks=[seen])
    assert (result.exit_code, result.reason, result.steps, result.skipped) == (5, "nonfinite", 0, 3)
    text = seen.of("verdict")[0]["message"]
    assert "lora_" in text
    assert "train.jsonl:" in text
    assert not (tmp_path / "run/adapters").exists()


# The rate rises over the whole run until the loss, which falls at first, comes back up.
EXPLODING = {
    "optimizer__learning_rate": 0.3,
    "schedule__warmup_steps": 60,
    "train__num_epochs": 10,
    "train__max_grad_norm": 0.0,
    "monitor__divergence_window": 20,
    "monitor__divergence_threshold": 1.1,
    "monitor__early_stopping_patience": 0,
}


def test_divergence_halts_with_exit_code_5_where_that_is_asked_for(tmp_path):
    """The state of that moment is saved, and no adapter is exported as if all were well."""
    result = mf.train(small_config(tmp_path, monitor__on_divergence="halt", **EXPLODING))
    assert (result.exit_code, result.reason) == (5, "diverged")
    assert (tmp_path / f"checkpoints/step-{result.steps:08d}.npz").exists()
    assert not (tmp_path / "adapters").exists()


def test_divergence_only_warns_by_default(tmp_path):
    """One verdict in the log, and the run goes on to its end."""
    seen = Collect()
    result = mf.train(small_config(tmp_path, **EXPLODING), sinks=[seen])
    assert (result.exit_code, result.steps) == (0, 60)
    assert "diverged" in [e["kind"] for e in seen.of("verdict")]


def test_divergence_rolls_back_to_the_best_checkpoint_with_half_the_rate(tmp_path):
    """The run goes on from there with the next rows, and stays resumable bit for bit."""
    seen = Collect()
    config = small_config(tmp_path / "run", monitor__on_divergence="rollback", **EXPLODING)
    result = mf.train(config, sinks=[seen])
    at = next(i for i, e in enumerate(seen.events) if e.get("kind") == "rollback")
    steps = [e for e in seen.events[:at] if e["event"] == "step"]
    after = next(e for e in seen.events[at:] if e["event"] == "step")
    best = [e for e in seen.events[:at] if e["event"] == "eval" and e["best"]][-1]
    assert after["update"] == best["update"] + 1
    first = next(e for e in steps if e["update"] == after["update"])
    assert after["lr"] == pytest.approx(0.5 * first["lr"], rel=1e-6)
    assert [e["rate_factor"] for e in result.history if "rate_factor" in e][:1] == [0.5]
    stop = StopAt(after["update"] + 2)
    again = small_config(tmp_path / "again", monitor__on_divergence="rollback", **EXPLODING)
    assert mf.train(again, sinks=[stop]).exit_code == 128 + signal.SIGTERM
    assert mf.train(again, mode="resume").history == result.history


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_mlx_lm_loads_the_export_and_gives_the_same_logits(tmp_path, kind):
    """The adapters are of use outside of mlxfn, on the model as mlx-lm itself loads it."""
    from mlx_lm import load

    folder = write_model(tmp_path / "model", kind)
    result = mf.train(small_config(tmp_path / "run", model__path=str(folder)))
    assert result.best_loss < result.first_valid_loss
    theirs, _ = load(str(folder), adapter_path=result.final_path)
    adapter = mf.lora(
        mf.load_model(str(folder)),
        rank=4,
        alpha=8.0,
        target_modules="all-linear",
        init_from=result.final_path,
    )
    tokens = mx.arange(24).reshape(2, 12)
    ours = adapter.apply(adapter.params, Batch(tokens, tokens, mx.ones_like(tokens)), None)
    base = load(str(folder))[0](tokens)
    assert mx.max(mx.abs(ours - theirs(tokens))).item() < 1e-5
    assert mx.max(mx.abs(ours - base)).item() > 1e-2


def test_a_data_set_smaller_than_a_batch_is_trained_on(tmp_path):
    """mlx-lm refuses it."""
    path = write_rows(tmp_path / "rows.jsonl", sums(1))
    config = small_config(tmp_path / "run", data__path=str(path), data__batch_size=8)
    assert mf.train(config).samples == 2
