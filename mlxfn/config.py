"""The configuration: every key with its type, default, unit and bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import attrs

Check = tuple[str, Callable[[Any], bool]]
"""What a value has to be, in words, and the test of it."""

POSITIVE: Check = ("a number > 0", lambda x: x > 0)
NOT_NEGATIVE: Check = ("a number >= 0", lambda x: x >= 0)
AT_LEAST_1: Check = ("an integer >= 1", lambda x: x >= 1)
AT_LEAST_2: Check = ("an integer >= 2", lambda x: x >= 2)
SHARE: Check = ("a number from 0 to 1", lambda x: 0 <= x <= 1)
BELOW_1: Check = ("a number >= 0 and < 1", lambda x: 0 <= x < 1)


def key(
    default: Any,
    text: str,
    *,
    check: Check | None = None,
    unit: str = "",
    aliases: tuple[str, ...] = (),
    may_change: bool = False,
) -> Any:
    """Declare one configuration key.

    Args:
        default: Its value when the user gives none.
        text: One sentence for the reference.
        check: What the value has to be.
        unit: Unit of the value, for the reference.
        aliases: Spellings of other tools that are accepted and reported.
        may_change: Whether a resumed run may have another value than it was started with.
    """
    metadata = {
        "text": text,
        "check": check,
        "unit": unit,
        "aliases": aliases,
        "may_change": may_change,
    }
    if isinstance(default, dict | list):
        return attrs.field(factory=lambda: type(default)(default), metadata=metadata)
    return attrs.field(default=default, metadata=metadata)


@attrs.frozen
class ModelConfig:
    """Which base model, and how it is loaded."""

    path: str = key(
        "default", "Folder or hub name of the base model.", aliases=("model_name_or_path",)
    )
    revision: str | None = key(None, "Hub revision.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = key(
        "auto", "Compute dtype; auto is float32 on a CPU and the model's own elsewhere."
    )
    quantize_bits: Literal[2, 3, 4, 5, 6, 8] | None = key(
        None, "Quantize the base on load.", unit="bits"
    )
    quantize_group_size: Literal[32, 64, 128] = key(
        64, "Weights that share one quantization scale."
    )
    quantized_matmul: Literal["auto", "packed", "unpacked"] = key(
        "auto",
        "How quantized layers multiply in training: by packed weights, or by weights unpacked "
        "for each product; auto times both.",
        may_change=True,
    )
    trust_remote_code: bool = key(False, "Run model code that ships with the weights.")


@attrs.frozen
class AdapterConfig:
    """What is trained."""

    kind: Literal["lora", "dora", "full"] = key(
        "lora", "LoRA, weight-decomposed LoRA, or every parameter.", aliases=("fine_tune_type",)
    )
    rank: int = key(16, "Rank of the update.", check=AT_LEAST_1, aliases=("lora_r", "lora_rank"))
    alpha: float = key(
        32.0, "The update is scaled by alpha / rank.", check=POSITIVE, aliases=("lora_alpha",)
    )
    dropout: float = key(
        0.0, "Dropout on the adapter's input.", check=BELOW_1, aliases=("lora_dropout",)
    )
    rslora: bool = key(False, "Scale by alpha / sqrt(rank) instead.", aliases=("use_rslora",))
    target_modules: list[str] | Literal["all-linear"] = key(
        ["q_proj", "v_proj"],
        "Modules to adapt: names, path suffixes, regular expressions, or all-linear.",
        aliases=("lora_target_modules",),
    )
    num_layers: int = key(
        -1,
        "Adapt the last n layers; -1 is all of them.",
        check=("-1 or an integer >= 1", lambda x: x == -1 or x >= 1),
        unit="layers",
        aliases=("lora_layers",),
    )
    init_from: str | None = key(
        None, "Adapter folder (mlx-lm or PEFT) to start from.", aliases=("resume_adapter_file",)
    )


@attrs.frozen
class DataConfig:
    """Which rows, and how they become batches."""

    path: str = key("default", "Folder with train/valid/test JSONL files, or one file.")
    mix: dict[str, float] = key(
        {},
        "Several paths and their shares of an epoch, instead of path, e.g. {'a.jsonl' = 0.7, "
        "'b.jsonl' = 0.3}.",
        check=("a table of numbers > 0", lambda x: all(0 < w < math.inf for w in x.values())),
    )
    format: Literal["auto", "messages", "sharegpt", "completions", "alpaca", "text", "tokens"] = (
        key("auto", "Row format; auto looks at the first row of each file.")
    )
    columns: dict[str, str] = key({}, "Names of the columns, e.g. {prompt = 'question'}.")
    batch_size: int = key(
        2,
        "Rows in a micro-batch.",
        check=AT_LEAST_1,
        aliases=("per_device_train_batch_size", "batch_size"),
    )
    max_seq_length: int = key(
        2048, "Longest row.", check=AT_LEAST_2, unit="tokens", aliases=("max_length",)
    )
    overlong: Literal["truncate", "drop", "error"] = key(
        "truncate", "What happens to a row over max_seq_length."
    )
    loss_on: Literal["completion", "assistant", "all"] = key(
        "completion", "Targets: the last assistant turn, every assistant turn, or every token."
    )
    packing: bool = key(
        False,
        "Several documents in one row, attention within each only. A row of max_seq_length then "
        "stands for two of half the length, or four, ..., as the documents need.",
    )
    shuffle: bool = key(True, "A new order each epoch; otherwise rows in file order.")
    valid_fraction: float = key(
        0.0, "Share of train used for validation where no validation file is.", check=BELOW_1
    )
    streaming: bool = key(
        False, "Read a data set of the hub row by row, without copying its files first."
    )
    workers: int | Literal["auto"] = key(
        "auto",
        "Processes that tokenize rows that are kept; auto is one for each core, for large files.",
        check=("auto or an integer >= 1", lambda x: isinstance(x, str) or x >= 1),
        may_change=True,
    )
    cache: str = key(
        "auto",
        "Folder where tokenized rows are kept; auto is the user's cache, for files over 256 KB; "
        "off keeps nothing.",
        may_change=True,
    )


@attrs.frozen
class OptimizerConfig:
    """The optimizer."""

    name: Literal["adamw", "adam", "sgd", "lion", "adafactor", "muon"] = key(
        "adamw", "Optimizer.", aliases=("optimizer", "optim")
    )
    learning_rate: float = key(2e-4, "Peak learning rate.", check=POSITIVE, aliases=("lr",))
    weight_decay: float = key(0.01, "Decoupled weight decay.", check=NOT_NEGATIVE)
    betas: tuple[float, float] = key(
        (0.9, 0.999),
        "Decay of the moment estimates.",
        check=("two numbers >= 0 and < 1", lambda x: all(0 <= b < 1 for b in x)),
    )
    eps: float = key(1e-8, "Added to the root of the second moment.", check=POSITIVE)


@attrs.frozen
class ScheduleConfig:
    """The learning rate over the run."""

    name: Literal["cosine", "linear", "constant"] = key(
        "cosine", "Shape after the warmup.", aliases=("lr_scheduler_type",)
    )
    warmup_steps: int | None = key(
        None,
        "Length of the linear warmup; 100 where the run is longer than 1000 updates, else 10%.",
        check=NOT_NEGATIVE,
        unit="updates",
        aliases=("warmup",),
    )
    warmup_ratio: float | None = key(None, "The same as a share of the run.", check=SHARE)
    min_lr_ratio: float = key(0.1, "Final learning rate as a share of the peak.", check=SHARE)


@attrs.frozen
class TrainConfig:
    """The loop."""

    num_epochs: int = key(
        3, "Passes over the data.", check=AT_LEAST_1, aliases=("epochs", "num_train_epochs")
    )
    max_steps: int | None = key(
        None, "Stop after this many updates.", check=AT_LEAST_1, unit="updates", aliases=("iters",)
    )
    gradient_accumulation_steps: int = key(
        4, "Micro-batches in one update.", check=AT_LEAST_1, aliases=("grad_accumulation_steps",)
    )
    max_grad_norm: float = key(1.0, "Clip the global gradient norm; 0 is off.", check=NOT_NEGATIVE)
    label_smoothing: float = key(
        0.0, "Label smoothing.", check=BELOW_1, aliases=("label_smoothing_factor",)
    )
    nonfinite: Literal["skip", "halt", "rollback"] = key(
        "skip", "What a NaN or infinite gradient does; rollback skips, and goes back if it repeats."
    )
    max_consecutive_skips: int = key(
        3,
        "More skipped updates in a row than this halt the run, or roll it back.",
        check=NOT_NEGATIVE,
    )
    seed: int = key(
        0, "Seed of order, dropout and adapter.", check=("0 to 2**63 - 1", lambda x: 0 <= x < 2**63)
    )
    remat: Literal["auto", "none", "mlp", "all"] | int = key(
        "auto",
        "Recompute activations in the backward pass: of no layer, of every MLP, of all layers, or "
        "of the first n; auto as the budget asks.",
        check=("auto, none, mlp, all or an integer >= 0", lambda x: isinstance(x, str) or x >= 0),
        aliases=("grad_checkpoint", "gradient_checkpointing"),
    )
    lean: Literal["auto", "none", "mlp", "all"] = key(
        "auto",
        "Keep only the outputs of an MLP's first layers (all: of attention's too) for the "
        "backward pass; the same values.",
    )


@attrs.frozen
class EvalConfig:
    """Validation."""

    eval_steps: int = key(
        50,
        "Evaluate every n updates; 0 only at the end of an epoch.",
        check=NOT_NEGATIVE,
        unit="updates",
        aliases=("steps_per_eval",),
    )
    eval_at_start: bool = key(True, "Evaluate before the first update.")
    batch_size: int | None = key(
        None,
        "Rows in a batch; that of training where not given.",
        check=AT_LEAST_1,
        aliases=("per_device_eval_batch_size",),
        may_change=True,
    )
    sample_prompts: list[str] = key([], "Prompts answered before and after training.")
    sample_tokens: int = key(
        48, "Longest answer to a sample prompt.", check=AT_LEAST_1, unit="tokens", may_change=True
    )


@attrs.frozen
class MonitorConfig:
    """What ends a run early."""

    early_stopping_patience: int = key(
        3, "Evaluations without improvement before stopping; 0 is off.", check=NOT_NEGATIVE
    )
    min_delta: float = key(1e-4, "Smallest fall of the loss that counts.", check=NOT_NEGATIVE)
    divergence_window: int = key(100, "Updates in the long average.", check=AT_LEAST_1)
    divergence_threshold: float = key(
        2.0,
        "Diverged when the mean of the last 10 losses is this many times the long average.",
        check=("a number > 1", lambda x: x > 1),
    )
    on_divergence: Literal["warn", "halt", "rollback"] = key("warn", "What divergence does.")


@attrs.frozen
class CheckpointConfig:
    """Checkpoints."""

    save_steps: int = key(
        50,
        "Save every n updates; 0 only at the end of an epoch.",
        check=NOT_NEGATIVE,
        unit="updates",
        aliases=("save_every",),
        may_change=True,
    )
    keep_last_n: int = key(
        3,
        "Checkpoints kept besides the best.",
        check=AT_LEAST_1,
        aliases=("save_total_limit",),
        may_change=True,
    )


@attrs.frozen
class MemoryConfig:
    """Memory."""

    budget_gb: float | Literal["auto"] = key(
        "auto",
        "Device memory the run may use; auto asks the device.",
        unit="GB",
        may_change=True,
        check=("auto or a number > 0", lambda x: isinstance(x, str) or x > 0),
    )


@attrs.frozen
class LogConfig:
    """What is written about the run, and where."""

    logging_steps: int = key(
        10, "Log every n updates.", check=AT_LEAST_1, unit="updates", aliases=("steps_per_report",)
    )
    sinks: list[Literal["console", "jsonl"]] = key(
        ["console", "jsonl"], "Where events go.", may_change=True
    )


@attrs.frozen
class Config:
    """One fine-tuning run."""

    model: ModelConfig = attrs.field(factory=ModelConfig)
    adapter: AdapterConfig = attrs.field(factory=AdapterConfig)
    data: DataConfig = attrs.field(factory=DataConfig)
    optimizer: OptimizerConfig = attrs.field(factory=OptimizerConfig)
    schedule: ScheduleConfig = attrs.field(factory=ScheduleConfig)
    train: TrainConfig = attrs.field(factory=TrainConfig)
    eval: EvalConfig = attrs.field(factory=EvalConfig)
    monitor: MonitorConfig = attrs.field(factory=MonitorConfig)
    checkpoint: CheckpointConfig = attrs.field(factory=CheckpointConfig)
    memory: MemoryConfig = attrs.field(factory=MemoryConfig)
    log: LogConfig = attrs.field(factory=LogConfig)
    output_dir: str = key("runs/default", "Run directory.")


def sections() -> dict[str, attrs.Attribute[Any]]:
    """Return the schema: every key by its dotted path, in order.

    Example:
        >>> sections()["optimizer.learning_rate"].default
        0.0002
    """
    attrs.resolve_types(Config)
    schema: dict[str, attrs.Attribute[Any]] = {}
    for section in attrs.fields(Config):
        if not (isinstance(section.type, type) and attrs.has(section.type)):
            schema[section.name] = section
            continue
        attrs.resolve_types(section.type)
        for field in attrs.fields(section.type):
            schema[f"{section.name}.{field.name}"] = field
    return schema
