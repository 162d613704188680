"""The loss of a language model on a batch, as make_step takes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx

from mlxfn import tree
from mlxfn.losses.chunked import chunked_cross_entropy
from mlxfn.losses.cross_entropy import cross_entropy
from mlxfn.state import ApplyFn, Batch, LossFn, Weighted
from mlxfn.tree import Params


def causal_lm_loss(apply: ApplyFn, *, label_smoothing: float = 0.0) -> LossFn:
    """Return the loss function of a model: its logits on a batch against the batch's labels.

    Args:
        apply: ``(params, batch, key) -> logits [B, T, V]``.
        label_smoothing: As in :func:`mlxfn.losses.cross_entropy`.

    Returns:
        ``(params, batch, key) -> Weighted``.

    Example:
        >>> loss_fn = causal_lm_loss(lambda params, batch, key: params["table"][batch.tokens])
        >>> ids = mx.array([[0, 1]])
        >>> loss_fn({"table": mx.zeros((2, 2))}, Batch(ids, ids, mx.ones_like(ids)), None).weight
        array(2, dtype=float32)
    """

    def loss_fn(params: Params, batch: Batch, key: mx.array | None) -> Weighted:
        logits = apply(params, batch, key)
        return cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)

    return loss_fn


def chunked_causal_lm_loss(
    hidden_apply: ApplyFn,
    head: Callable[[Params, mx.array], mx.array],
    *,
    trained: Sequence[str] = (),
    chunk_size: int = 1024,
    label_smoothing: float = 0.0,
    gradient: bool = True,
) -> LossFn:
    """Return the same loss from hidden states and a head, without the full logits.

    Args:
        hidden_apply: ``(params, batch, key) -> hidden [B, T, D]``.
        head: ``(params, hidden [n, D]) -> logits [n, V]``.
        trained: Paths of the parameters that the head reads; no other gets a gradient from it.
        chunk_size: Positions whose logits exist at a time.
        label_smoothing: As in :func:`mlxfn.losses.cross_entropy`.
        gradient: False for a loss that is only evaluated.

    Returns:
        ``(params, batch, key) -> Weighted``.

    Example:
        >>> loss_fn = chunked_causal_lm_loss(
        ...     lambda params, batch, key: params["table"][batch.tokens], lambda params, h: h
        ... )
        >>> ids = mx.array([[0, 1]])
        >>> loss_fn({"table": mx.zeros((2, 2))}, Batch(ids, ids, ids), None).weight
        array(2, dtype=float32)
    """

    def loss_fn(params: Params, batch: Batch, key: mx.array | None) -> Weighted:
        flat = tree.flatten(params)

        def logits(rows: mx.array, *weights: mx.array) -> mx.array:
            given = {**flat, **dict(zip(trained, weights, strict=True))}
            return head(tree.unflatten(given), rows)

        return chunked_cross_entropy(
            hidden_apply(params, batch, key),
            batch.labels,
            logits,
            [flat[path] for path in trained],
            chunk_size=chunk_size,
            label_smoothing=label_smoothing,
            gradient=gradient,
        )

    return loss_fn
