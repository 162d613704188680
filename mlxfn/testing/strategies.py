"""Hypothesis strategies for everything a law takes; needs ``pip install hypothesis``.

Shapes, lengths and settings are drawn by Hypothesis, so that a broken law is shown at its
smallest; the numbers inside arrays come from a drawn seed, which keeps an example cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

import mlx.core as mx
import numpy as np
from hypothesis import strategies as st

from mlxfn import configfile, tree
from mlxfn.config import Config, sections
from mlxfn.errors import ConfigError
from mlxfn.state import IGNORED, Batch
from mlxfn.testing.arbitrary import arrays, json_tables, json_values, run_states, trees
from mlxfn.transforms import (
    OPTIMIZERS,
    SCHEDULES,
    Schedule,
    Transform,
    adjustable_rate,
    chain,
    clip_by_global_norm,
    identity,
    scale_by,
    skip_nonfinite,
)
from mlxfn.tree import Grads, Params

__all__ = [
    "Rate",
    "Training",
    "arrays",
    "batches",
    "configs",
    "documents",
    "gradients_of",
    "json_tables",
    "json_values",
    "keys",
    "masks",
    "normal",
    "param_trees",
    "run_states",
    "schedules",
    "seeds",
    "segments",
    "trainings",
    "transforms",
    "trees",
]

seeds = st.integers(0, 2**32 - 1)
"""Seeds of arrays."""
keys = seeds.map(mx.random.key)
"""Keys of random draws, uint32 [2]."""


def normal(seed: int, shape: Sequence[int], scale: float = 1.0) -> mx.array:
    """Return normal numbers of a seed, fp32."""
    values = np.random.default_rng([seed]).normal(size=tuple(shape)) * scale
    return mx.array(values.astype(np.float32))


# Trees of parameters


_LEAVES = (("lora_a", 2), ("lora_b", 2), ("weight", 2), ("bias", 1), ("m", 1))


@st.composite
def param_trees(draw: st.DrawFn, *, scale: float = 1.0, largest: int = 4) -> Params:
    """Trees like those of adapters: nested dicts and a list, matrices and vectors, fp32.

    Args:
        draw: Given by Hypothesis.
        scale: Size of the values.
        largest: Longest side of a leaf.
    """
    seed, count = draw(seeds), draw(st.integers(1, 3))
    sides = st.integers(1, largest)
    blocks: list[Params] = []
    for block in range(count):
        chosen = draw(st.lists(st.sampled_from(_LEAVES), min_size=1, max_size=3, unique=True))
        blocks.append(
            {
                name: normal(seed + 7 * block + i, [draw(sides) for _ in range(rank)], scale)
                for i, (name, rank) in enumerate(chosen)
            }
        )
    return {"layers": blocks[1:], "embed": blocks[0]} if count > 1 else {"embed": blocks[0]}


@st.composite
def gradients_of(
    draw: st.DrawFn, params: Params, *, updates: int = 3, zeros: bool = True
) -> list[Grads]:
    """Gradients for some updates of parameters, of sizes from tiny to large, some leaves zero.

    Args:
        draw: Given by Hypothesis.
        params: The tree they belong to.
        updates: How many.
        zeros: Whether a leaf may have none.
    """
    flat = tree.flatten(params)
    made: list[Grads] = []
    for _ in range(updates):
        seed = draw(seeds)
        scale = draw(st.sampled_from([1e-4, 0.1, 1.0, 30.0]))
        silent = draw(st.sampled_from([None, *flat])) if zeros else None
        leaves = {
            name: normal(seed + i, leaf.shape, 0.0 if name == silent else scale)
            for i, (name, leaf) in enumerate(flat.items())
        }
        made.append(tree.restore(params, leaves))
    return made


class Training(NamedTuple):
    """Parameters, and the gradients of some updates of them."""

    params: Params
    grads: list[Grads]


@st.composite
def trainings(draw: st.DrawFn, *, updates: int = 3, zeros: bool = True) -> Training:
    """Parameters and gradients for some updates."""
    params = draw(param_trees())
    return Training(params, draw(gradients_of(params, updates=updates, zeros=zeros)))


# Batches


@st.composite
def masks(draw: st.DrawFn, rows: int, length: int) -> np.ndarray:
    """What is labelled, bool [rows, length]: everything, nothing, completions, or at random."""
    seed = draw(seeds)
    kind = draw(st.sampled_from(["all", "completion", "random", "nothing"]))
    rng = np.random.default_rng([seed])
    if kind == "completion":
        return np.arange(length) >= rng.integers(0, length + 1, (rows, 1))
    share = {"all": 1.0, "random": 0.6, "nothing": 0.0}[kind]
    return rng.random((rows, length)) < share


@st.composite
def segments(draw: st.DrawFn, rows: int, length: int, *, packed: bool = False) -> np.ndarray:
    """Documents in rows of ragged lengths, int32 [rows, length]: 1.. and then 0 for padding.

    Args:
        draw: Given by Hypothesis.
        rows: Rows; one may be empty.
        length: Positions of a row.
        packed: Whether a row may hold several documents.
    """
    made = np.zeros((rows, length), np.int32)
    for row in made:
        end = draw(st.integers(0, length))
        cuts = draw(st.lists(st.integers(1, max(end, 1)), max_size=3)) if packed else []
        borders = sorted({0, end, *(cut for cut in cuts if cut < end)})
        for number, start in enumerate(borders[:-1], 1):
            row[start : borders[number]] = number
    return made


@st.composite
def batches(
    draw: st.DrawFn,
    *,
    vocab: int = 7,
    max_rows: int = 4,
    max_length: int = 6,
    rows: int | None = None,
    length: int | None = None,
    packed: bool = False,
    labelled: bool = False,
) -> Batch:
    """Batches of rows of ragged lengths, some labels ignored.

    Args:
        draw: Given by Hypothesis.
        vocab: Ids are below.
        max_rows: Most rows.
        max_length: Most positions.
        rows: Exactly this many rows.
        length: Exactly this many positions.
        packed: Whether a row may hold several documents.
        labelled: Whether there has to be a label.
    """
    rows = rows or draw(st.integers(1, max_rows))
    length = length or draw(st.integers(1, max_length))
    numbers = draw(segments(rows, length, packed=packed))
    is_target = draw(masks(rows, length)) & (numbers > 0)
    rng = np.random.default_rng([draw(seeds)])
    tokens, labels = (rng.integers(0, vocab, (rows, length)) for _ in range(2))
    if labelled and not is_target.any():
        numbers[0, 0] = max(numbers[0, 0], 1)
        is_target[0, 0] = True
    return Batch(
        mx.array(np.where(numbers > 0, tokens, 0).astype(np.int32)),
        mx.array(np.where(is_target, labels, IGNORED).astype(np.int32)),
        mx.array(numbers),
    )


def documents(*, vocab: int = 7, most: int = 3, longest: int = 5) -> st.SearchStrategy[Any]:
    """Documents to be packed: lists of ids."""
    return st.lists(
        st.lists(st.integers(0, vocab - 1), min_size=1, max_size=longest),
        min_size=1,
        max_size=most,
    )


# Schedules and transforms


class Rate(NamedTuple):
    """A schedule and what it was made of."""

    name: str
    peak: float
    warmup: int
    total: int
    min_ratio: float
    schedule: Schedule


@st.composite
def schedules(
    draw: st.DrawFn, name: str | None = None, *, table: Any = SCHEDULES, longest: int = 40
) -> Rate:
    """Schedules with every corner: no warmup, nothing but warmup, a run of one update.

    Args:
        draw: Given by Hypothesis.
        name: A key of ``table``; any where not given.
        table: Makers by name, called as those of ``mlxfn.transforms.SCHEDULES`` are.
        longest: Most updates of a run.
    """
    name = name or draw(st.sampled_from(sorted(table)))
    peak = draw(st.sampled_from([1.0, 3e-4, 2.0]))
    total = draw(st.integers(1, longest))
    warmup = draw(st.integers(0, total) | st.just(total) | st.just(total + 3))
    floor = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    made = table[name](peak, warmup=warmup, total=total, min_ratio=floor)
    return Rate(name, peak, warmup, total, floor, made)


def transforms(*, depth: int = 2) -> st.SearchStrategy[Transform]:
    """Any transform the library can make: clipping, scaling, optimizers, guards, chains of them.

    Args:
        depth: How deep chains may be nested.
    """
    rates = st.sampled_from([0.1, 1e-3]) | schedules().map(lambda rate: rate.schedule)
    optimizers = st.builds(
        lambda make, rate: make(rate), st.sampled_from(list(OPTIMIZERS.values())), rates
    )
    clips = st.sampled_from([0.0, 0.3, 5.0]).map(clip_by_global_norm)
    scales = st.sampled_from([0.5, 2.0]).map(scale_by)
    guarded = optimizers.map(skip_nonfinite)
    plain = clips | scales | optimizers | guarded | st.builds(adjustable_rate) | st.builds(identity)
    if not depth:
        return plain
    inner = st.deferred(lambda: transforms(depth=depth - 1))
    return plain | st.lists(inner, max_size=3).map(lambda stages: chain(*stages))


# Configurations


def configs() -> st.SearchStrategy[Config]:
    """Any valid configuration, by the schema's own types and bounds."""
    schema = sections()
    values = st.fixed_dictionaries(
        {}, optional={path: _value(field) for path, field in schema.items()}
    )
    return values.filter(_is_consistent).map(lambda chosen: configfile.build(chosen).config)


def _value(field: Any) -> st.SearchStrategy[Any]:
    check = field.metadata["check"]
    values = _of_type(field.type)
    return values.filter(lambda x: x is None or check[1](x)) if check else values


_SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(-1, 9) | st.sampled_from([32, 2**40]),
    float: st.sampled_from([0.0, 1e-8, 2e-4, 0.1, 0.9, 1.0, 1.5, 30.0]) | st.floats(0.001, 0.999),
    str: st.sampled_from(["a", "runs/x", "Qwen/Qwen3-0.6B", "naïve name", "1"]),
    type(None): st.none(),
}


def _of_type(kind: Any) -> st.SearchStrategy[Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(_of_type(arguments[0]), min_size=1, max_size=3, unique=True)
    if origin is tuple:
        return st.tuples(*(_of_type(kind) for kind in arguments))
    if origin is dict:
        names = st.sampled_from(["prompt", "text"])
        return st.dictionaries(names, _of_type(arguments[1]), max_size=2)
    if arguments:
        return st.one_of(*(_of_type(kind) for kind in arguments))
    return _SCALARS[kind]


def _is_consistent(values: dict[str, Any]) -> bool:
    try:
        configfile.build(values)
    except ConfigError:
        return False
    return True
