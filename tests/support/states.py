"""A run state with a bit of everything, and what mlxfn.testing knows about run states."""

from __future__ import annotations

import mlx.core as mx

from mlxfn.state import RunState, TrainState
from mlxfn.testing.arbitrary import json_tables, json_values, run_states
from mlxfn.testing.states import same_state

__all__ = ["json_tables", "json_values", "run_states", "same_state", "small_state"]


def small_state(step: int = 7, *, best: int | None = None, fill: float = 1.0) -> RunState:
    """Return a state with a bit of everything, the same for the same arguments."""
    train = TrainState(
        params={"layers": {"0": {"lora_a": mx.full((2, 3), fill)}, "1": {}}},
        opt=({"m": mx.array([0.5, -2.0], mx.bfloat16)}, {"count": mx.array(step, mx.uint64)}),
        key=mx.array([1, 2], mx.uint32),
        step=mx.array(step, mx.int32),
        skipped=mx.array(0, mx.int32),
    )
    return RunState(
        train,
        epoch=1,
        position=3,
        best_loss=None if best is None else 2.5,
        best_step=best,
        monitors={"early_stopping": {"best": float("inf"), "seen": [1, 2.5]}},
        history=({"event": "eval", "update": step, "loss": float("nan")},),
    )
