"""What it means for two run states to be the same, and the law of writing one down."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from mlxfn import tree
from mlxfn.checkpoint import codec
from mlxfn.state import RunState
from mlxfn.testing.law import require
from mlxfn.tree import Tree


def encode(state: RunState) -> bytes:
    """Return a run state as a checkpoint holds it."""
    return codec.encode(codec.snapshot(state))


def decode(data: bytes, template: RunState) -> RunState:
    """Return the run state in a checkpoint, in the structure of a template."""
    return codec.decode(data, template)[0]


def same_state(a: RunState, b: RunState) -> bool:
    """Return whether two run states are the same in structure, in every bit and every JSON value.

    Example:
        >>> import mlx.core as mx
        >>> from mlxfn.step import init_state
        >>> from mlxfn.transforms import sgd
        >>> state = RunState(init_state({"w": mx.ones(1)}, sgd(0.1)))
        >>> same_state(state, state)
        True
    """
    return not _difference(a, b)


def _difference(a: RunState, b: RunState) -> str:
    left, right = tree.lower(a), tree.lower(b)
    trains = [tree.lower(state.pop("train")) for state in (left, right)]
    for name in left.keys() | right.keys():
        # As text, because NaN is the same as itself there.
        texts = [json.dumps(state.get(name), sort_keys=True) for state in (left, right)]
        if texts[0] != texts[1]:
            return f"{name}: {texts[0]} and {texts[1]}"
    if containers(trains[0]) != containers(trains[1]):
        return "the containers of the arrays"
    ours, theirs = tree.flatten(trains[0]), tree.flatten(trains[1])
    odd = [name for name in ours if not tree.same_bits(ours[name], theirs[name])]
    return f"the bits of {odd[0]}" if odd else ""


def containers(node: Tree) -> Any:
    """Return the containers of a tree without its leaves, empty ones too.

    Example:
        >>> containers({"a": {}, "b": (1,)})
        {'a': {}, 'b': (<class 'tuple'>, [None])}
    """
    if isinstance(node, Mapping):
        return {name: containers(child) for name, child in node.items()}
    if isinstance(node, list | tuple):
        return type(node), [containers(child) for child in node]
    return None


def encoding_is_lossless(
    state: RunState,
    *,
    encode: Callable[[RunState], bytes] = encode,
    decode: Callable[[bytes, RunState], RunState] = decode,
) -> float:
    """A run state comes back from a checkpoint as it was, to the bit, and twice the same bytes.

    Args:
        state: Any run state.
        encode: State -> bytes.
        decode: Bytes and a template -> state.

    Raises:
        LawError: Something differs.

    Example:
        >>> import mlx.core as mx
        >>> from mlxfn.step import init_state
        >>> from mlxfn.transforms import adamw
        >>> encoding_is_lossless(RunState(init_state({"w": mx.ones(2)}, adamw(0.1))))
        0.0
    """
    data = encode(state)
    again = decode(data, state)
    difference = _difference(again, state)
    require(not difference, "a run state changed on its way through a checkpoint", at=difference)
    require(encode(again) == data, "the same state has two encodings")
    return 0.0
