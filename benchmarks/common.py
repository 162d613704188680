"""What the benchmarks share: the machine in a line, tables, processes that are measured, models.

Import it before anything of mlx: it imports mlxfn, which has to come first to find the fast BLAS.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import mlxfn  # first
from mlxfn import tree
from mlxfn.losses import causal_lm_loss
from mlxfn.models.lora import lora
from mlxfn.models.model import Model
from mlxfn.state import Batch, TrainState
from mlxfn.step import Step, init_state, make_step
from mlxfn.transforms import adamw

import mlx.core as mx  # isort: skip
import numpy as np  # isort: skip
from mlx.utils import tree_map  # isort: skip

UNIT = 1e6 if sys.platform == "darwin" else 1e3  # of ru_maxrss in a megabyte


class Measured(NamedTuple):
    """What one process took."""

    wall_s: float
    cpu_s: float  # of all threads; says more than the wall clock where other work is going on
    resident_mb: float


def measure(command: Sequence[str], room: Path, **environment: str) -> Measured:
    """Run a command to its end and return what it took.

    Args:
        command: Program and arguments.
        room: Where its output goes (``log``), and its kernels (``tmp``).
        environment: Variables to set.
    """
    log = room / "log"
    (room / "tmp").mkdir(exist_ok=True)
    variables = {
        **os.environ, "TMPDIR": str(room / "tmp"), "HF_HUB_OFFLINE": "1", **environment,
    }  # fmt: skip
    start = time.perf_counter()
    with log.open("wb") as output:
        actions = [(os.POSIX_SPAWN_DUP2, output.fileno(), fd) for fd in (1, 2)]
        process = os.posix_spawn(command[0], command, variables, file_actions=actions)
        _, status, usage = os.wait4(process, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text(encoding='utf-8')[-2000:]}")
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / UNIT)


def answer(room: Path) -> dict[str, Any]:
    """Return what the last measured command printed as its last line, a JSON object."""
    return json.loads((room / "log").read_text(encoding="utf-8").splitlines()[-1])


def machine() -> str:
    """Return a line about the machine, the software and how busy the machine is."""
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    packages = ", ".join(f"{name} {version(name)}" for name in ("mlx", "mlx-lm"))
    day = dt.datetime.now(dt.UTC).date()
    return (
        f"{day}; {_processor()}, {os.cpu_count()} cores, {load}; {platform.system()}, "
        f"Python {platform.python_version()}, {packages}; {device()}; "
        f"BLAS: {mlxfn.blas.info().line()}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def device() -> str:
    """Return the name of the device that MLX computes on."""
    if mx.default_device().type == mx.DeviceType.cpu:
        return "computing on the CPU"
    return f"computing on {mx.device_info().get('device_name', 'the GPU')}"


def quick(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add ``--quick``: the smallest sizes, to see in seconds that the benchmark still runs."""
    parser.add_argument("--quick", action="store_true", help="smallest sizes: proves that it runs")
    return parser


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table.

    Example:
        >>> print(table(["", "s"], [["a", "1.0"]]))
        |  | s |
        |---|---|
        | a | 1.0 |
    """
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        f"|{'|'.join(map(str, line))}|" if line[0] == "---" else f"| {' | '.join(map(str, line))} |"
        for line in lines
    )


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Return the median of some values, and the lowest and highest.

    Example:
        >>> spread([3.0, 1.0, 2.0])
        '2.0 (1.0 to 3.0)'
    """
    ordered = sorted(values)
    middle = statistics.median(ordered)
    return f"{middle:.{digits}f} ({ordered[0]:.{digits}f} to {ordered[-1]:.{digits}f})"


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return b of the fit ``cost = a * size ** b``, by least squares of the logarithms.

    Example:
        >>> round(exponent([1, 2, 4], [3, 6, 12]), 6)
        1.0
    """
    slope, _ = np.polyfit([math.log(x) for x in sizes], [math.log(y) for y in costs], 1)
    return float(slope)


def in_turns(work: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run every contender once in each round, so that whatever else happens hits all alike.

    The first round fills caches and is not counted.
    """
    taken: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, act in work.items():
            figure = act()
            if turn:
                taken[name].append(figure)
    return taken


def seconds(act: Callable[[], object]) -> float:
    """Return how long something takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


# Models


def shape(hidden: int, layers: int, vocab: int, **changes: Any) -> dict[str, Any]:
    """Return the configuration of a Llama of a size."""
    heads = max(hidden // 64, 2)
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": 5 * hidden // 2,
        "num_attention_heads": heads,
        "num_key_value_heads": max(heads // 2, 1),
        "rms_norm_eps": 1e-5,
        "vocab_size": vocab,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    } | changes


def llama(config: dict[str, Any], dtype: mx.Dtype = mx.float32) -> Model:
    """Return a Llama with random weights, made in memory."""
    from mlx_lm.models.llama import Model as Llama
    from mlx_lm.models.llama import ModelArgs

    mx.random.seed(0)  # of mlx.nn's own initial values
    module = Llama(ModelArgs.from_dict(config))
    module.update(tree_map(lambda leaf: leaf.astype(dtype), module.parameters()))
    mx.eval(module.parameters())
    module.freeze()
    return Model(module, config=config, vocab_size=config["vocab_size"])


def batch_of(vocab: int, rows: int, length: int) -> Batch:
    """Return a batch of random ids, each position a target."""
    ids = np.random.default_rng([rows, length]).integers(0, vocab, (rows, length), np.int32)
    batch = Batch(mx.array(ids), mx.array(np.roll(ids, -1, 1)), mx.ones(ids.shape, mx.int32))
    mx.eval(batch)
    return batch


class Trainer:
    """A step with its state, to be timed.

    Args:
        model: The base.
        rank: Of LoRA on q and v.
    """

    def __init__(self, model: Model, *, rank: int = 8) -> None:
        adapter = lora(model, rank=rank, alpha=2.0 * rank)
        tx = adamw(1e-4)
        self.step: Step = make_step(causal_lm_loss(adapter.apply), tx)
        self.state: TrainState = init_state(adapter.params, tx)
        self.loss = math.nan

    def update(self, batch: Batch) -> None:
        """Apply one update and wait for it."""
        self.state, metrics = self.step(self.state, batch)
        mx.eval(tree.lower(self.state), metrics)
        self.loss = float(metrics.loss)

    def peak_mb(self, batch: Batch) -> float:
        """Return what one update takes beyond what lies there before it, in MB."""
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        self.update(batch)
        return (mx.get_peak_memory() - before) / 1e6
