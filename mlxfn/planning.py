"""Choose how a run executes: the fastest way that fits its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import attrs
import mlx.core as mx

from mlxfn import memory
from mlxfn.config import Config
from mlxfn.device import device_kind
from mlxfn.errors import MemoryBudgetError
from mlxfn.memory import GB, Shape, Table, Workload
from mlxfn.models.execution import Execution
from mlxfn.models.model import Model, compute_dtype
from mlxfn.models.quantized import is_quantized, sizes, switch_types
from mlxfn.models.targets import resolve_targets
from mlxfn.models.unpack import Route, faster_route
from mlxfn.scheduling import mb_per_buffer
from mlxfn.timing import predict_seconds, rates

LARGE_LOGITS = 2**26
"""Logits of a micro-batch (256 MB in fp32) from which on they are never held all at once."""

CHUNK = 1024
"""Positions whose logits exist at a time where not all do."""

MOMENTS = {"sgd": 0, "lion": 1, "muon": 1, "adafactor": 0}
"""Values an optimizer keeps for each trainable one, where it is not two."""

# Buffers of work that a device has when the CPU waits, and weights that are unpacked by then; fitted
# to peaks on an H200.
_BUFFERS, _DENSE = 9, 9

_PARTS = {
    "q_proj": "attention",
    "k_proj": "attention",
    "v_proj": "attention",
    "qkv_proj": "attention",
    "o_proj": "output",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "gate_up_proj": "mlp",
    "down_proj": "down",
}


@attrs.frozen
class Choice:
    """One way to run an update, and what it takes.

    Args:
        execution: What is kept, computed again and unpacked.
        table: Memory of one update by what it is for.
        predict: Returns the time of one update; the first to ask has the device measured.
        batch_size: Rows in a micro-batch.
        accumulation: Micro-batches in an update.
        bits: Quantization of the base that is not the configuration's; None for that one's.
    """

    execution: Execution
    table: Table
    predict: Callable[[], float] = attrs.field(eq=False)
    batch_size: int
    accumulation: int
    bits: int | None = None

    @property
    def seconds(self) -> float:
        """Time of one update."""
        return self.predict()

    def needs(self) -> int:
        """Return the bytes without which it does not run: running ahead can be throttled."""
        return self.table.total - self.table.run_ahead

    def peak(self, budget: float) -> int:
        """Return the peak to expect, in bytes, under a memory limit of ``budget`` bytes."""
        return int(min(self.table.total, max(self.needs(), budget)))

    def outlook(self) -> dict[str, Any]:
        """Return how it runs and the memory that takes, in GB, as JSON values."""
        parts = {f"{name}_gb": size / GB for name, size in attrs.asdict(self.table).items()}
        return {**parts, "total_gb": self.table.total / GB, **attrs.asdict(self.execution)}

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, memory in GB."""
        return {
            **self.outlook(),
            "seconds": self.seconds,
            "batch_size": self.batch_size,
            "accumulation": self.accumulation,
            "bits": self.bits,
        }


def choose(
    config: Config, model: Model, *, data_tokens: int = 0, decided: Execution | None = None
) -> tuple[Choice, float]:
    """Return the fastest way to run a configuration that fits, and the budget in bytes.

    Settings that are not ``"auto"`` are kept. The device is measured only where the answer
    depends on it.

    Args:
        config: The run's settings.
        model: The base, or its skeleton.
        data_tokens: Tokens of the data set.
        decided: The only way to run that is left, if there is one.

    Raises:
        MemoryBudgetError: Nothing fits a budget that was given. A budget of ``"auto"`` only
            chooses: an estimate is no reason to refuse.
    """
    budget = memory.budget_gb(config.memory.budget_gb) * GB
    found = list(choices(config, model, data_tokens=data_tokens, decided=decided))
    # The first keeps most and computes nothing twice: at any speeds none is faster.
    best = found[0] if found[0].needs() <= budget else fastest(found, budget)
    if best is None and config.memory.budget_gb == "auto":
        best = min(found, key=Choice.needs)
    if best is None:
        least = min(found, key=Choice.needs)
        raise MemoryBudgetError(
            "the run does not fit the memory budget",
            where="memory.budget_gb",
            got=f"about {least.needs() / GB:.2f} GB for one update, "
            f"{least.execution.remat} recomputed",
            expected=f"at most {budget / GB:.2f} GB",
            remedy="mlxfn plan shows what would fit; lower data.batch_size or "
            "data.max_seq_length, or quantize the base with model.quantize_bits = 4",
        )
    return best, budget


def fastest(found: Sequence[Choice], budget: float) -> Choice | None:
    """Return the fastest choice that needs at most ``budget`` bytes, if there is one."""
    fitting = [choice for choice in found if choice.needs() <= budget]
    return min(fitting, key=lambda choice: choice.seconds, default=None)


def choices(
    config: Config,
    model: Model,
    *,
    data_tokens: int = 0,
    batch_size: int | None = None,
    bits: int | None = None,
    decided: Execution | None = None,
) -> Iterator[Choice]:
    """Yield every execution that the settings leave open, with its memory and time.

    The first is the one that keeps most and computes least.

    Args:
        config: The run's settings.
        model: The base, or its skeleton.
        data_tokens: Tokens of the data set.
        batch_size: Rows in a micro-batch instead of the configured ones; the rows of an update
            stay the same.
        bits: Quantization that the skeleton has and the configuration does not.
        decided: The only execution to yield; the settings are not asked then.
    """
    size = batch_size or config.data.batch_size
    rows = config.data.batch_size * config.train.gradient_accumulation_steps
    shape = memory.shape_of(model.config, model.vocab_size)
    route = decided.quantized if decided else route_of(config, model)
    work = workload(
        config, model, shape, route, batch_size=size, rows=rows, data_tokens=data_tokens
    )
    dtype = compute_dtype(model.module)
    packed = [layer for layer in model.module.modules() if is_quantized(layer)]
    unpacked = packed[0].bits if packed and route == "unpacked" else None
    frozen = config.adapter.kind != "full"

    def predict(how: Execution) -> float:
        speeds = rates(dtype, unpacked)
        return predict_seconds(shape, work, speeds, remat=how.remat, lean=how.lean, frozen=frozen)

    for how in [decided] if decided else executions(config, shape, route):
        table = memory.estimate(shape, work, remat=how.remat, lean=how.lean)
        yield Choice(how, table, partial(predict, how), size, work.accumulation, bits)


def executions(config: Config, shape: Shape, route: Route) -> list[Execution]:
    """Return the executions that the settings leave open, those that compute least first."""
    return [
        Execution(remat, lean, route) for lean in leans(config) for remat in remats(config, shape)
    ]


def leans(config: Config) -> list[Any]:
    """Return what ``train.lean`` leaves open: an MLP's activation is never worth keeping."""
    return ["mlp", "all"] if config.train.lean == "auto" else [config.train.lean]


def remats(config: Config, shape: Shape) -> list[str | int]:
    """Return what ``train.remat`` leaves open."""
    if config.train.remat != "auto":
        return [config.train.remat]
    return ["none", "mlp", *range(1, shape.layers), "all"]


def route_of(config: Config, model: Model) -> Route:
    """Return how quantized layers multiply; where it is open, both ways are timed.

    A skeleton has no weights to time: it takes what is faster wherever it was measured.
    """
    if config.model.quantized_matmul != "auto":
        return config.model.quantized_matmul
    if model.folder is None:
        return "unpacked"
    dtype: mx.Dtype = getattr(mx, compute_dtype(model.module))
    tokens = config.data.batch_size * config.data.max_seq_length
    return faster_route(model.module, tokens=tokens, dtype=dtype) or "packed"


def workload(
    config: Config,
    model: Model,
    shape: Shape,
    route: Route,
    *,
    batch_size: int,
    rows: int,
    data_tokens: int,
) -> Workload:
    """Return one update of a configuration, as far as memory and time depend on it."""
    trainable, inputs = trained(config, model)
    tokens = batch_size * config.data.max_seq_length
    value = 4 if compute_dtype(model.module) == "float32" else 2
    kind = device_kind()
    unpacked = route == "unpacked" and any(map(is_quantized, model.module.modules()))
    dense = shape.hidden * shape.intermediate * value if unpacked else 0
    return Workload(
        base_bytes=model.nbytes(),
        trainable=trainable,
        batch_size=batch_size,
        length=config.data.max_seq_length,
        dtype_bytes=value,
        inputs=inputs,
        moments=MOMENTS.get(config.optimizer.name, 2),
        accumulation=-(-rows // batch_size),
        chunk=CHUNK if tokens * shape.vocab >= LARGE_LOGITS else 0,
        # cuDNN has one; on Metal and on a CPU the gradient goes through all probabilities.
        fused_attention=kind == "cuda" and value == 2,
        unpacked=unpacked,
        run_ahead=0 if kind == "cpu" else run_ahead_bytes(dense),
        data_tokens=data_tokens,
        low_rank=0 if config.adapter.kind == "full" else trainable // config.adapter.rank,
    )


def run_ahead_bytes(dense: int) -> int:
    """Return what the CPU makes before the device is done with what was there.

    Args:
        dense: Bytes of the largest weight that is unpacked for its products; 0 where none is.
    """
    return _BUFFERS * (mb_per_buffer() << 20) + _DENSE * dense


def trained(config: Config, model: Model) -> tuple[int, frozenset[str]]:
    """Return the number of trainable values, and the layers whose inputs they need."""
    settings = config.adapter
    everything = frozenset(_PARTS.values())
    if settings.kind == "full":
        return model.parameter_count(), everything
    sites = resolve_targets(model.module, settings.target_modules, settings.num_layers)
    count = 0
    for site in sites:
        inputs, outputs = sizes(site.module)
        experts = site.module["weight"].shape[0] if isinstance(site.module, switch_types()) else 1
        count += settings.rank * (inputs + outputs) * experts
        count += outputs if settings.kind == "dora" else 0
    names = {site.path.rsplit(".", 1)[-1] for site in sites}
    known = {_PARTS[name] for name in names if name in _PARTS}
    # A layer of a name that is not known could be any: all inputs are counted then.
    return count, frozenset(known) if names <= _PARTS.keys() else everything


@attrs.frozen
class Survey:
    """What was found for a configuration.

    Args:
        budget: In bytes.
        best: The fastest that fits; the configuration's own batch and quantization come first.
        others: The fastest of every micro-batch and quantization, where one fits; else the
            smallest of each.
    """

    budget: float
    best: Choice | None
    others: list[Choice]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values, memory in GB."""
        best = self.best and {
            **self.best.to_dict(),
            "peak_gb": self.best.peak(self.budget) / GB,
        }
        return {
            "budget_gb": self.budget / GB,
            "best": best,
            "others": [{**c.to_dict(), "needs_gb": c.needs() / GB} for c in self.others],
        }


def survey(config: Config, base: Callable[[int | None], Model]) -> Survey:
    """Look for the fastest way to run a configuration, also with smaller micro-batches and bits.

    The rows of an update stay what they are: half the micro-batch means twice as many. Fewer
    bits are looked at where the base is neither quantized nor trained itself, and only taken
    where nothing fits without.

    Args:
        config: The run's settings.
        base: Returns the base's skeleton, quantized to so many bits unless it is already.
    """
    budget = memory.budget_gb(config.memory.budget_gb) * GB
    plain = base(None)
    quantized = any(map(is_quantized, plain.module.modules()))
    open_bits = [] if quantized or config.adapter.kind == "full" else [8, 4]
    best, others = None, list[Choice]()
    for bits in [None, *open_bits]:
        model = base(bits) if bits else plain
        fitting: list[Choice] = []
        for size in batch_sizes(config):
            found = list(choices(config, model, batch_size=size, bits=bits))
            one = fastest(found, budget)
            others.append(one or min(found, key=Choice.needs))
            fitting += [one] if one else []
        best = best or min(fitting, key=lambda choice: choice.seconds, default=None)
    return Survey(budget, best, others)


def batch_sizes(config: Config) -> list[int]:
    """Return the micro-batches that make up the configured update, the largest first.

    Example:
        >>> batch_sizes(Config())
        [8, 4, 2, 1]
    """
    rows = config.data.batch_size * config.train.gradient_accumulation_steps
    return [size for size in range(rows, 0, -1) if rows % size == 0]
