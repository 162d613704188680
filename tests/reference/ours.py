"""mlxfn's side of the comparison: float32, through the public functions, from files on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import attrs
import mlx.core as mx
import numpy as np

import mlxfn as mf
from mlxfn.data.collate import HostBatch
from mlxfn.models.safetensors import write_safetensors
from mlxfn.state import ApplyFn, LossFn
from mlxfn.transforms import Accumulated, Schedule
from mlxfn.transforms.accumulate import add_micro_batch
from mlxfn.tree import flatten, restore
from tests.reference import setting
from tests.reference.trajectory import Trajectory, displacement
from tests.support.tokenizers import chatml


@cache
def model_folder(model: str, **changes: Any) -> Path:
    """Return a Hugging Face folder of a model, written once for a process.

    Args:
        model: A key of ``setting.MODELS``.
        changes: Settings of ``config.json`` that are to be wrong.
    """
    folder = Path(mkdtemp(prefix="mlxfn-reference-"))
    setting.write_config(folder, model, **changes)
    weights = {name: mx.array(value) for name, value in setting.weights(model).items()}
    write_safetensors(folder / "model.safetensors", weights)
    chatml().save_pretrained(folder)
    return folder


@cache
def load(model: str, **changes: Any) -> mf.Model:
    """Return a loaded model, shared by all runs of a process: none of them changes it."""
    return mf.load_model(model_folder(model, **changes))


@cache
def loader(batch_size: int = setting.BATCH) -> mf.Loader:
    """Return the rows in file order, as read from JSON lines."""
    path = Path(mkdtemp(prefix="mlxfn-reference-")) / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in setting.rows()))
    tokenizer = load("llama").tokenizer
    rows = mf.encode_splits(path, tokenizer, mf.EncodeOptions(max_seq_length=setting.LONGEST))[
        "train"
    ].rows
    return mf.Loader(
        rows,
        batch_size,
        shuffle=False,
        vocab_size=setting.VOCAB,
        max_seq_length=setting.LONGEST,
    )


def smoothed(apply: ApplyFn) -> LossFn:
    """Return the loss of the comparison."""
    return mf.causal_lm_loss(apply, label_smoothing=setting.SMOOTHING)


def rate(kind: str) -> Schedule:
    """Return the schedule of the comparison."""
    return mf.warmup_cosine(
        setting.PEAK[kind],
        warmup=setting.WARMUP,
        total=setting.UPDATES,
        min_ratio=setting.MIN_RATIO,
    )


def transform(
    model: str,
    kind: str,
    *,
    schedule: Schedule | None = None,
    clip: mf.Transform | None = None,
    **changes: Any,
) -> mf.Transform:
    """Return clipping and AdamW; the options are for variants that are wrong in one of them."""
    options = {"weight_decay": setting.DECAY, "betas": setting.BETAS, "eps": setting.EPS}
    return mf.chain(
        clip or mf.clip_by_global_norm(setting.LIMIT[model, kind]),
        mf.adamw(schedule or rate(kind), **{**options, **changes}),
    )


def adapt(model: mf.Model, kind: str, **changes: Any) -> mf.Adapter:
    """Return the adapter of one kind."""
    if kind == "full":
        return mf.full(model)
    make = mf.lora if kind == "lora" else mf.dora
    options = {"rank": setting.RANK, "alpha": setting.ALPHA, "target_modules": "all-linear"}
    return make(model, **{**options, **changes})


def as_it_is(value: Any) -> Any:
    """Return the argument."""
    return value


@attrs.frozen(kw_only=True)
class Trainer:
    """What a run is put together from; a wrong variant has one piece replaced."""

    load: Callable[[str], mf.Model] = load
    adapt: Callable[[mf.Model, str], mf.Adapter] = adapt
    batch: Callable[[HostBatch], HostBatch] = as_it_is
    loss: Callable[[ApplyFn], LossFn] = smoothed
    gradients: Callable[[Accumulated, Accumulated], Accumulated] | None = None
    transform: Callable[[str, str], mf.Transform] = transform

    def run(self, model: str, kind: str) -> Trajectory:
        """Train one combination on the CPU and return what happened."""
        with mx.stream(mx.cpu):
            return self._run(model, kind)

    def _run(self, model: str, kind: str) -> Trajectory:
        adapter = self.adapt(self.load(model), kind)
        tx = self.transform(model, kind)
        step, evaluate = self._step(adapter, tx), evaluation(adapter)
        state = mf.init_state(beginning(adapter, model, kind), tx, seed=0)
        losses = [evaluate(state.params)]
        reports: list[tuple[float, float]] = []
        for window in self._windows():
            state, metrics = step(state, window)
            reports.append((metrics.loss.item(), metrics.grad_norm.item()))
        losses.append(evaluate(state.params))
        final = {name: np.array(leaf) for name, leaf in flatten(state.params).items()}
        moved = displacement(model, kind, final)
        return Trajectory(*np.array(reports, np.float64).T, np.array(losses), moved)

    def _step(self, adapter: mf.Adapter, tx: mf.Transform) -> mf.Step:
        loss_fn = self.loss(adapter.apply)
        # Eager: a compiled step has the same bits, and each of its kernels would cost a second.
        step = mf.make_step(loss_fn, tx, accumulate=setting.ACCUMULATE, compiled=False)
        if self.gradients is None:
            return step

        def add(params: Any, so_far: Accumulated, batch: mf.Batch, *_: Any) -> Accumulated:
            alone = add_micro_batch(loss_fn, params, Accumulated.zero(params), batch, None)
            return self.gradients(so_far, alone)

        return attrs.evolve(step, add=add)

    def _windows(self) -> Iterator[list[mf.Batch]]:
        """Yield the micro-batches of every update."""
        data = loader()
        for epoch in range(setting.EPOCHS):
            for at in range(0, data.batches_per_epoch, setting.ACCUMULATE):
                window = data.window(epoch, at, setting.ACCUMULATE)
                yield [mf.to_device(self.batch(batch)) for batch in window]


RIGHT = Trainer()


def evaluation(adapter: mf.Adapter) -> Callable[[Any], float]:
    """Return the function from trainable values to the loss of all rows."""
    evaluate = mf.make_evaluate(smoothed(adapter.apply), compiled=False)
    batches = [mf.to_device(batch) for batch in loader(setting.ROWS).epoch()]
    return lambda params: evaluate(params, batches).loss


def beginning(adapter: mf.Adapter, model: str, kind: str) -> Any:
    """Return the initial values in the adapter's tree; names and shapes have to be its own."""
    flat = {name: mx.array(value) for name, value in setting.start(model, kind).items()}
    return restore(adapter.params, flat)
