"""Softmax and sigmoid in operations that MLX compiles: on a CPU far faster, bit for bit the same."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import mlx.core as mx
from mlx import nn

from mlxfn.models.dropout import current_scope
from mlxfn.models.slots import walk


def spell_out(clone: nn.Module, *, attends: bool = True) -> None:
    """Let SwiGLU and attention of mlx-lm's models take their exponentials in compiled kernels.

    On a CPU, MLX's own softmax and sigmoid take 9 ns for each value, kernels compiled for the
    processor at hand a quarter of one (:mod:`mlxfn.compiler`). The code of a block stays: a copy of
    its ``__call__`` finds :func:`attention` and :func:`swiglu` where mlx-lm's are named. Neither
    mlx-lm nor other models of the process change, and outside of a functional forward pass the
    block runs as before.

    Args:
        clone: A module that no other model shares.
        attends: Whether attention does so too; while it computes it needs two more arrays of the
            scores' size [B, H, T, S] than MLX's softmax, which works in place.

    Example:
        >>> from types import SimpleNamespace
        >>> from mlx_lm.models.llama import MLP
        >>> shell = nn.Sequential(MLP(SimpleNamespace(hidden_size=4, intermediate_size=8)))
        >>> spell_out(shell)
        >>> type(shell.layers[0]) is MLP, isinstance(shell.layers[0], MLP)
        (False, True)
    """
    for site in list(walk(clone)):
        site.module.__class__ = _spelled(type(site.module), attends)


@functools.cache
def _spelled(cls: type[nn.Module], attends: bool) -> type[nn.Module]:
    """Return a class whose ``__call__`` finds our functions; the class itself if it needs none."""
    plain: Any = cls.__call__
    names = dict(_replaced(plain, attends)) if isinstance(plain, FunctionType) else {}
    if not names:
        return cls
    globals_ = {**plain.__globals__, **names}
    code, defaults, closure = plain.__code__, plain.__defaults__, plain.__closure__
    ours = FunctionType(code, globals_, plain.__name__, defaults, closure)
    ours.__kwdefaults__ = plain.__kwdefaults__

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (plain if current_scope() is None else ours)(self, *args, **kwargs)

    return type(cls.__name__, (cls,), {"__call__": call})


def _replaced(function: FunctionType, attends: bool) -> Iterator[tuple[str, Any]]:
    """Yield each global of a function that is one of mlx-lm's, and what takes its place."""
    for module, name, ours in (
        ("mlx_lm.models.activations", "swiglu", swiglu),
        ("mlx_lm.models.base", "scaled_dot_product_attention", attention if attends else None),
    ):
        # A module that is not loaded is not used either.
        theirs = getattr(sys.modules.get(module), name, None)
        for used in function.__code__.co_names:
            if ours and theirs and function.__globals__.get(used) is theirs:
                yield used, ours


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: Any,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None = None,
) -> mx.array:
    """Return what mlx-lm's function of these arguments returns; other dtypes than fp32 go there.

    Args:
        queries: fp32 [B, H, T, D].
        keys: fp32 [B, K, S, D]; H is a multiple of K.
        values: fp32 [B, K, S, D].
        cache: Where the keys come from.
        scale: Factor of the queries.
        mask: bool or fp32, to be broadcast to [B, H, T, S]; ``"causal"``; or None.
        sinks: Logits of no position, for models that have them.

    Returns:
        fp32 [B, H, T, D].
    """
    if sinks is not None or hasattr(cache, "bits") or not _fp32(queries, keys, values):
        from mlx_lm.models import base

        theirs: Any = base.scaled_dot_product_attention
        return theirs(queries, keys, values, cache, scale, mask, sinks)
    heads, groups = queries.shape[1], keys.shape[1]
    shared = heads // groups
    queries = scale * queries
    if shared > 1:
        queries = mx.unflatten(queries, 1, (groups, shared))
        keys, values = keys[:, :, None], values[:, :, None]
    scores = queries @ keys.swapaxes(-1, -2)
    if isinstance(mask, str):
        mask = _causal(*scores.shape[-2:])
    if mask is not None:
        if shared > 1 and mask.ndim >= 3:
            one = mask.shape[-3] == 1
            mask = mask[..., None, :, :] if one else mx.unflatten(mask, -3, (groups, shared))
        hidden = mx.finfo(scores.dtype).min
        scores = mx.where(mask, scores, hidden) if mask.dtype == mx.bool_ else scores + mask
    out = softmax(scores) @ values
    return mx.flatten(out, 1, 2) if shared > 1 else out


def _fp32(*arrays: mx.array) -> bool:
    return all(array.dtype == mx.float32 for array in arrays)


def _causal(queries: int, keys: int) -> mx.array:
    return mx.arange(keys - queries, keys)[:, None] >= mx.arange(keys)


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """Return ``silu(gate) * x`` as mlx-lm's function does; other dtypes than fp32 go there.

    Args:
        gate: fp32 [..., D].
        x: fp32 [..., D].
    """
    if not _fp32(gate):
        return nn.silu(gate) * x
    return (gate * sigmoid(gate)) * x


def softmax(scores: mx.array) -> mx.array:
    """Return ``mx.softmax`` over the last axis of fp32 [..., S], and its gradient, bit for bit."""
    return _softmax(scores)


def _shares(scores: mx.array) -> mx.array:
    exponentials = mx.exp(scores - mx.max(scores, axis=-1, keepdims=True))
    return exponentials * (1.0 / mx.sum(exponentials, axis=-1, keepdims=True))


_softmax: Any = mx.custom_function(_shares)


@_softmax.vjp
def _softmax_gradient(_: mx.array, cotangent: mx.array, shares: mx.array) -> mx.array:
    weighted = shares * cotangent
    return weighted - shares * mx.sum(weighted, axis=-1, keepdims=True)


def sigmoid(x: mx.array) -> mx.array:
    """Return ``mx.sigmoid`` of fp32 [...], and its gradient, bit for bit."""
    return _sigmoid(x)


def _logistic(x: mx.array) -> mx.array:
    smaller = 1.0 / (1.0 + mx.exp(mx.abs(x)))
    return mx.where(x < 0, smaller, 1.0 - smaller)


_sigmoid: Any = mx.custom_function(_logistic)


@_sigmoid.vjp
def _sigmoid_gradient(_: mx.array, cotangent: mx.array, y: mx.array) -> mx.array:
    return cotangent * (y * (1.0 - y))
