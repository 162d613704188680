"""A model as hidden states and head, so that a loss can take the head chunk by chunk."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import attrs
import mlx.core as mx
from mlx import nn

from mlxfn import tree
from mlxfn.models.adapter import Adapter, functional
from mlxfn.models.checks import TOLERANCE
from mlxfn.models.dropout import keyed
from mlxfn.models.slots import Slot
from mlxfn.state import ApplyFn, Batch
from mlxfn.tree import Params

# Where mlx-lm's models keep the part that ends in hidden states.
_BODIES: tuple[str, ...] = ("model", "language_model.model", "transformer", "backbone", "gpt_neox")


@attrs.frozen(eq=False)
class HeadSplit:
    """An adapter's forward pass in two parts, so that logits are the head of the hidden states.

    Args:
        hidden_apply: ``(params, batch, key) -> hidden [B, T, D]``.
        head: ``(params, hidden [B, T, D] or [n, D]) -> logits`` of the same leading shape.
    """

    hidden_apply: ApplyFn
    head: Callable[[Params, mx.array], mx.array]


def split_head(adapter: Adapter) -> HeadSplit | None:
    """Return the adapter's forward pass as hidden states and head, where that is exact.

    The head is the model's own code, run with a stand-in for its body, so scaling and
    soft-capping of the logits are part of it. That the parts make the whole is verified on
    the model's own logits.

    Args:
        adapter: Any adapter.

    Returns:
        The two parts, or None for a model that does not come apart.
    """
    for path in _BODIES:
        split = _split_at(adapter, path.split("."))
        if split is not None and _holds(adapter, split):
            return split
    return None


def _split_at(adapter: Adapter, path: list[str]) -> HeadSplit | None:
    """Return the split at the body with this path, not yet verified."""
    shells = [adapter.module]
    for name in path:
        child = shells[-1].get(name)
        if not isinstance(child, nn.Module):
            return None
        shells.append(child)
    if any(_is_directly_in(slot, shells) for slot in adapter.slots.values()):
        return None  # the copies made below would not see that parameter
    stand_in = _shallow(shells[-1])
    stand_in.__class__ = _answering(type(stand_in))
    whole = stand_in
    for shell, name in zip(reversed(shells[:-1]), reversed(path), strict=True):
        whole = _shallow(shell, {name: whole})
    hidden_apply = functional(shells[-1], adapter.slots, adapter.dtypes, adapter.caches)
    return HeadSplit(hidden_apply, _head(adapter, whole, stand_in))


def _is_directly_in(slot: Slot, modules: list[nn.Module]) -> bool:
    return any(slot.container is module for module in modules)


def _shallow(module: nn.Module, children: dict[str, nn.Module] | None = None) -> nn.Module:
    """Return a module with the same fields, sharing its children but for the ones given."""
    copy = type(module).__new__(type(module))
    dict.update(copy, module, **(children or {}))
    vars(copy).update(vars(module))
    return copy


@functools.cache
def _answering(cls: type[nn.Module]) -> type[nn.Module]:
    """Return a class like ``cls`` that answers every call with hidden states it was given."""
    answer = {"__call__": lambda self, *_args, **_kwargs: vars(self)["_hidden"]}
    return type(f"Answering{cls.__name__}", (cls,), answer)


def _head(
    adapter: Adapter, whole: Any, stand_in: nn.Module
) -> Callable[[Params, mx.array], mx.array]:
    def head(params: Params, hidden: mx.array) -> mx.array:
        rows = hidden if hidden.ndim == 3 else hidden[None]
        ids = mx.zeros(rows.shape[:2], mx.int32)
        vars(stand_in)["_hidden"] = rows
        try:
            with adapter.inserted(params), keyed(None):
                logits = whole(ids)
        finally:
            del vars(stand_in)["_hidden"]
        # Not logits[0]: an index gathers, which copies all of them, and scatters in the backward pass.
        return logits if hidden.ndim == 3 else logits.squeeze(0)

    return head


def read_by_head(split: HeadSplit, adapter: Adapter) -> tuple[str, ...]:
    """Return the paths of the trainable parameters that the head reads; none where it is frozen.

    Args:
        split: Of this adapter.
        adapter: Any adapter.
    """
    draw = mx.random.normal
    # Random values, because a gradient may be zero at the initial ones: lora_b is zero there.
    flat = {n: draw(a.shape, key=mx.random.key(0)) for n, a in tree.flatten(adapter.params).items()}
    ids = mx.zeros((1, 1), mx.int32)
    hidden = split.hidden_apply(adapter.params, Batch(ids, ids, mx.ones_like(ids)), None)
    grads = mx.grad(lambda flat: mx.sum(split.head(tree.unflatten(flat), hidden)))(flat)
    return tuple(name for name, grad in grads.items() if bool(mx.any(grad != 0)))


def _holds(adapter: Adapter, split: HeadSplit) -> bool:
    """Return whether the parts make the whole, for all positions and for a few of them."""
    tokens = mx.random.randint(0, adapter.model.vocab_size, (2, 5), key=mx.random.key(0))
    batch = Batch(tokens, tokens, mx.ones_like(tokens))
    logits = adapter.apply(adapter.params, batch, None)
    try:
        hidden = split.hidden_apply(adapter.params, batch, None)
        together = split.head(adapter.params, hidden)
        few = split.head(adapter.params, hidden[1, 2:4])
    except Exception:  # noqa: BLE001 - whatever goes wrong, this model has no such split
        return False
    if together.shape != logits.shape or bool(mx.array_equal(hidden, logits)):
        return False
    error = mx.maximum(mx.max(mx.abs(together - logits)), mx.max(mx.abs(few - logits[1, 2:4])))
    return bool(error <= TOLERANCE[logits.dtype] * mx.max(mx.abs(logits)))
