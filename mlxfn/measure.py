"""Run one update of the longest rows, to see what a plan predicted."""

from __future__ import annotations

import time

import attrs
import mlx.core as mx
import numpy as np

from mlxfn.assemble import load_base, make_adapter, make_losses, make_plan, make_transform
from mlxfn.config import Config
from mlxfn.memory import GB
from mlxfn.planning import Choice
from mlxfn.state import Batch
from mlxfn.step import init_state, make_step


def measure_update(config: Config, choice: Choice) -> dict[str, float]:
    """Return the peak memory, in GB, and the seconds of one update of full-length rows.

    The data set is not read: rows of random ids, every one a target, are the worst case.

    Args:
        config: The run's settings.
        choice: How to run.

    Raises:
        ConfigError: The weights are not there.
    """
    config = attrs.evolve(
        config,
        model=attrs.evolve(config.model, quantize_bits=choice.bits or config.model.quantize_bits),
        data=attrs.evolve(config.data, batch_size=choice.batch_size),
        train=attrs.evolve(config.train, gradient_accumulation_steps=choice.accumulation),
    )
    model = load_base(config)
    adapter = make_adapter(config, model, choice.execution)
    tx = make_transform(config, make_plan(config, 1))
    step = make_step(make_losses(config, adapter).train, tx, accumulate=choice.accumulation)
    state = init_state(adapter.params, tx)
    shape = (choice.batch_size, config.data.max_seq_length)
    ids = np.random.default_rng(0).integers(0, model.vocab_size, shape).astype(np.int32)
    batch = Batch(mx.array(ids), mx.array(ids), mx.ones(shape, mx.int32))
    seconds = 0.0
    for _ in range(2):  # the first one compiles
        mx.clear_cache()
        mx.reset_peak_memory()
        start = time.perf_counter()
        state, metrics = step(state, [batch] * choice.accumulation)
        mx.eval(state.params, state.opt, metrics)
        seconds = time.perf_counter() - start
    return {"peak_gb": mx.get_peak_memory() / GB, "seconds": seconds}
