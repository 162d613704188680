"""Strategies for arrays, trees and run states of every kind, for what has to keep every bit."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from hypothesis import strategies as st

from mlxfn.state import RunState, TrainState

_DTYPES = {
    mx.bool_: "?",
    mx.uint8: "u1",
    mx.int8: "i1",
    mx.uint16: "<u2",
    mx.int16: "<i2",
    mx.uint32: "<u4",
    mx.int32: "<i4",
    mx.uint64: "<u8",
    mx.int64: "<i8",
    mx.float16: "<f2",
    mx.bfloat16: "<u2",
    mx.float32: "<f4",
    mx.float64: "<f8",
    mx.complex64: "<c8",
}
names = st.text("abcxyz_019éЖ層 -", min_size=1, max_size=6)
counts = st.integers(0, 2**63)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
json_tables = st.dictionaries(st.text(max_size=5), json_values, max_size=4)


@st.composite
def arrays(draw: st.DrawFn) -> mx.array:
    """Arrays of every dtype with any bits at all (NaN payloads too), 0-d and empty ones as well."""
    dtype = draw(st.sampled_from(list(_DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    size = int(np.prod(shape)) * dtype.size
    raw = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8)
    data = (raw % 2 if dtype == mx.bool_ else raw).view(_DTYPES[dtype]).reshape(shape)
    if dtype == mx.bfloat16:
        return mx.array(data).view(mx.bfloat16)
    return mx.array(data, dtype=dtype)


def trees() -> st.SearchStrategy[Any]:
    """Nested dicts, lists and tuples of arrays; empty ones too."""
    return st.recursive(
        arrays(),
        lambda inner: (
            st.dictionaries(names, inner, max_size=3)
            | st.lists(inner, max_size=2)
            | st.lists(inner, max_size=2).map(tuple)
        ),
        max_leaves=6,
    )


@st.composite
def run_states(draw: st.DrawFn) -> RunState:
    """Any run state: any trees, any counters, any monitors, losses that are no numbers."""
    train = TrainState(
        params=draw(st.dictionaries(names, trees(), max_size=3)),
        opt=draw(trees()),
        key=mx.array(draw(st.tuples(*[st.integers(0, 2**32 - 1)] * 2)), mx.uint32),
        step=mx.array(draw(st.integers(0, 2**31 - 1)), mx.int32),
        skipped=mx.array(draw(st.integers(0, 2**31 - 1)), mx.int32),
    )
    return RunState(
        train=train,
        epoch=draw(counts),
        position=draw(counts),
        samples=draw(counts),
        tokens=draw(counts),
        epoch_total=draw(st.floats()),
        epoch_weight=draw(st.floats()),
        best_loss=draw(st.none() | st.floats()),
        best_step=draw(st.none() | counts),
        monitors=draw(json_tables),
        history=tuple(draw(st.lists(json_tables, max_size=3))),
    )
