"""The loss of a language model on a batch, as make_step takes it."""

from __future__ import annotations

import mlx.core as mx

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
