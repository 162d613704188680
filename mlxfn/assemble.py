"""From a configuration to the pieces of a run: the only place that reads the settings."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import attrs

from mlxfn import blas, memory, monitors
from mlxfn.config import Config
from mlxfn.data.cursor import Loader
from mlxfn.data.encode import EncodeOptions
from mlxfn.data.prepare import Split, encode_splits
from mlxfn.data.report import DataReport
from mlxfn.data.rows import Rows
from mlxfn.errors import DataError
from mlxfn.evaluate import Evaluate, make_evaluate
from mlxfn.losses import causal_lm_loss, chunked_causal_lm_loss
from mlxfn.models.adapter import Adapter
from mlxfn.models.execution import PLAIN, Execution
from mlxfn.models.head import read_by_head, split_head
from mlxfn.models.load import load_model
from mlxfn.models.lora import dora, full, lora
from mlxfn.models.model import Model
from mlxfn.monitors import Monitor
from mlxfn.planning import CHUNK, LARGE_LOGITS, choose
from mlxfn.state import LossFn, RunState
from mlxfn.step import Step, init_state, make_step
from mlxfn.transforms import (
    SCHEDULES,
    Schedule,
    Transform,
    adjustable_rate,
    chain,
    clip_by_global_norm,
)
from mlxfn.transforms.optimizers import build_optimizer

EMBEDDED = "default"
"""The path that stands for the model and the data that ship with mlxfn."""


@attrs.frozen
class Plan:
    """How long the run is, in updates."""

    batches_per_epoch: int
    updates_per_epoch: int
    updates: int
    epochs: int
    warmup: int


@attrs.frozen(eq=False)
class Job:
    """Everything a run is made of, before its first update."""

    config: Config
    model: Model
    adapter: Adapter
    train: Loader
    valid: Loader | None
    reports: dict[str, DataReport]
    plan: Plan
    step: Step
    evaluate: Evaluate
    monitors: dict[str, Monitor]
    state: RunState
    fingerprints: dict[str, str]
    memory: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """Describe the run as JSON values, for a dry run and for the start of the log."""
        return {
            "model": self.model.describe(),
            "adapter": self.adapter.describe(),
            "data": {name: report.to_dict() for name, report in self.reports.items()},
            "plan": {
                **attrs.asdict(self.plan),
                "batch_size": self.config.data.batch_size,
                "accumulation": self.config.train.gradient_accumulation_steps,
                "shapes": self.train.report().to_dict(),
            },
            "memory": self.memory,
            "blas": blas.info().line(),
            "output_dir": self.config.output_dir,
        }


def assemble(config: Config, decided: Execution | None = None) -> Job:
    """Load the model and the data and build every piece of the run; nothing is written.

    Args:
        config: The run's settings.
        decided: How a run that goes on executes; a new one chooses.

    Raises:
        ConfigError: The model, the adapter or a target module is not there or does not fit.
        DataError: The data cannot be trained on as it is.
        MemoryBudgetError: The run does not fit the budget.
    """
    model = load_base(config)
    splits = read_data(config, model, "train", "valid")
    train = make_loader(config, model, splits["train"].rows, training=True)
    valid = make_loader(config, model, splits["valid"].rows) if "valid" in splits else None
    plan = make_plan(config, train.batches_per_epoch)
    tokens = splits["train"].rows.token_count
    choice, budget = choose(config, model, data_tokens=tokens, decided=decided)
    adapter = make_adapter(config, model, choice.execution)
    losses = make_losses(config, adapter)
    tx = make_transform(config, plan)
    fingerprints = {"model": model.fingerprint} | {
        f"data.{name}": split.rows.fingerprint() for name, split in splits.items()
    }
    watching = make_monitors(config)
    return Job(
        config=config,
        model=model,
        adapter=adapter,
        train=train,
        valid=valid,
        reports={name: split.report for name, split in splits.items()},
        plan=plan,
        step=make_step(losses.train, tx, accumulate=config.train.gradient_accumulation_steps),
        evaluate=make_evaluate(losses.valid),
        monitors=watching,
        state=RunState(
            train=init_state(adapter.params, tx, seed=config.train.seed),
            monitors={name: monitor.init() for name, monitor in watching.items()}
            | {"rollback": {"count": 0}},
        ),
        fingerprints=fingerprints,
        memory={**choice.outlook(), "budget_gb": budget / memory.GB},
    )


def load_base(config: Config) -> Model:
    """Load the base model that the configuration names."""
    settings = config.model
    model = load_model(
        locate(settings.path, "model"),
        revision=settings.revision,
        dtype=settings.dtype,
        quantize_bits=settings.quantize_bits,
        quantize_group_size=settings.quantize_group_size,
        trust_remote_code=settings.trust_remote_code,
    )
    blas.suit_threads(memory.shape_of(model.config, model.vocab_size).hidden)
    return model


def locate(path: str, kind: str) -> str:
    """Return a path or hub name, with ``default`` replaced by what ships with mlxfn.

    Args:
        path: As the configuration has it.
        kind: ``"model"`` or ``"data"``.
    """
    if path != EMBEDDED:
        return path
    import mlxfn_configs

    return str(Path(mlxfn_configs.__file__).parent / "default" / kind)


def read_data(config: Config, model: Model, *names: str) -> dict[str, Split]:
    """Read and encode the splits of these names that are there; ``train`` has to be if asked for.

    Raises:
        DataError: There is no training data, or a row is wrong.
    """
    data = config.data
    splits = encode_splits(
        source_of(config),
        model.tokenizer,
        encode_options(config, model.vocab_size),
        valid_fraction=data.valid_fraction,
        splits=names,
        cache=data.cache,
        streaming=data.streaming,
        workers=data.workers,
    )
    if "train" in names and "train" not in splits:
        where = ", ".join(paths_of(config))
        raise DataError(
            "there is no training data", where=where, expected="train.jsonl, or one file"
        )
    return splits


def source_of(config: Config) -> str | dict[str, float]:
    """Return where the rows are: one path or name, or several with their weights."""
    data = config.data
    if data.mix:
        return {locate(path, "data"): weight for path, weight in data.mix.items()}
    return locate(data.path, "data")


def paths_of(config: Config) -> list[str]:
    """Return the path or name of each source of the rows."""
    return [locate(path, "data") for path in config.data.mix or [config.data.path]]


def encode_options(config: Config, vocab_size: int) -> EncodeOptions:
    """Return how the rows of a run become tokens."""
    data = config.data
    return EncodeOptions(
        fmt=data.format,
        columns=data.columns,
        loss_on=data.loss_on,
        max_seq_length=data.max_seq_length,
        overlong=data.overlong,
        vocab_size=vocab_size,
    )


def make_loader(config: Config, model: Model, rows: Rows, *, training: bool = False) -> Loader:
    """Return the loader of a split, with the batch size of training or of evaluation."""
    data = config.data
    batch_size = data.batch_size if training else (config.eval.batch_size or data.batch_size)
    return Loader(
        rows,
        batch_size=batch_size,
        seed=config.train.seed,
        # Validation always takes its first epoch: one fixed order, with rows of a length together.
        shuffle=data.shuffle or not training,
        vocab_size=model.vocab_size,
        max_seq_length=data.max_seq_length,
        packing=data.packing,
    )


def make_plan(config: Config, batches_per_epoch: int) -> Plan:
    """Return how many updates and epochs the run has; ``max_steps`` wins over ``num_epochs``."""
    per_epoch = -(-batches_per_epoch // config.train.gradient_accumulation_steps)
    updates = config.train.max_steps or config.train.num_epochs * per_epoch
    return Plan(
        batches_per_epoch=batches_per_epoch,
        updates_per_epoch=per_epoch,
        updates=updates,
        epochs=math.ceil(updates / per_epoch),
        warmup=warmup_updates(config, updates),
    )


def warmup_updates(config: Config, updates: int) -> int:
    """Return the length of the warmup; unless it is given, 100 or a tenth of a short run."""
    schedule = config.schedule
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    if schedule.warmup_ratio is not None:
        return round(schedule.warmup_ratio * updates)
    return min(100, updates // 10)


def make_schedule(config: Config, plan: Plan) -> Schedule:
    """Return the learning-rate schedule over the planned updates."""
    return SCHEDULES[config.schedule.name](
        config.optimizer.learning_rate,
        warmup=plan.warmup,
        total=plan.updates,
        min_ratio=config.schedule.min_lr_ratio,
    )


def make_transform(config: Config, plan: Plan) -> Transform:
    """Return clipping and the optimizer as one transform."""
    optimizer = build_optimizer(
        config.optimizer.name,
        make_schedule(config, plan),
        weight_decay=config.optimizer.weight_decay,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
        decay_mask=decays if config.adapter.kind == "full" else None,
    )
    clip = clip_by_global_norm(config.train.max_grad_norm)
    if "rollback" in {config.monitor.on_divergence, config.train.nonfinite}:
        return chain(clip, optimizer, adjustable_rate())
    return chain(clip, optimizer)


def decays(path: str) -> bool:
    """Return whether a parameter of a full model decays: biases and norms do not."""
    return not path.endswith(".bias") and "norm" not in path


def make_adapter(config: Config, model: Model, execution: Execution = PLAIN) -> Adapter:
    """Return what is trained, as the configuration says."""
    settings = config.adapter
    common: dict[str, Any] = {
        "num_layers": settings.num_layers,
        "init_from": settings.init_from,
        "packed": config.data.packing,
        "remat": execution.remat,
        "lean": execution.lean,
    }
    if settings.kind == "full":
        return full(model, **common)
    return {"lora": lora, "dora": dora}[settings.kind](
        model,
        rank=settings.rank,
        alpha=settings.alpha,
        dropout=settings.dropout,
        rslora=settings.rslora,
        target_modules=settings.target_modules,
        seed=config.train.seed,
        quantized=execution.quantized,
        **common,
    )


class Losses(NamedTuple):
    """The losses of a run."""

    train: LossFn  # with label smoothing
    valid: LossFn  # the plain cross-entropy, without a gradient: a smoothed one has no perplexity


def make_losses(config: Config, adapter: Adapter) -> Losses:
    """Return the losses: from full logits where they are small, from hidden states otherwise.

    Args:
        config: The run's settings.
        adapter: What is trained.
    """
    data, smoothing = config.data, config.train.label_smoothing
    logits = data.batch_size * data.max_seq_length * adapter.model.vocab_size
    split = split_head(adapter) if logits >= LARGE_LOGITS else None
    if split is None:
        whole = partial(causal_lm_loss, adapter.apply)
        return Losses(whole(label_smoothing=smoothing), whole())
    chunked = partial(
        chunked_causal_lm_loss,
        split.hidden_apply,
        split.head,
        trained=read_by_head(split, adapter),
        chunk_size=CHUNK,
    )
    return Losses(chunked(label_smoothing=smoothing), chunked(gradient=False))


def make_monitors(config: Config) -> dict[str, Monitor]:
    """Return the monitors of the run by name."""
    settings = config.monitor
    return {
        "early_stopping": monitors.early_stopping(
            patience=settings.early_stopping_patience, min_delta=settings.min_delta
        ),
        "divergence": monitors.divergence(
            window=settings.divergence_window, threshold=settings.divergence_threshold
        ),
        "nonfinite": monitors.nonfinite(
            policy=config.train.nonfinite, max_in_a_row=config.train.max_consecutive_skips
        ),
    }
