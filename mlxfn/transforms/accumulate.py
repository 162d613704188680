"""Gradients over several micro-batches, weighted by label tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx

from mlxfn import tree
from mlxfn.random import fold_in
from mlxfn.state import Batch, LossFn, Weighted
from mlxfn.tree import Grads, Params


class Accumulated(NamedTuple):
    """Sums over the micro-batches seen so far; nothing is divided before the end."""

    grads: Grads  # fp32, gradient of the summed loss
    loss: Weighted

    @classmethod
    def zero(cls, params: Params) -> Accumulated:
        """Return the sum over no micro-batch."""
        nothing = Weighted(mx.array(0.0), mx.array(0.0))
        return cls(tree.zeros_like(params, mx.float32), nothing)

    def mean(self) -> tuple[Grads, Weighted]:
        """Return the gradient of the mean loss over all label tokens, and the summed loss."""
        return tree.scale(self.grads, 1.0 / mx.maximum(self.loss.weight, 1.0)), self.loss


def micro_batch_sums(
    loss_fn: LossFn, params: Params, batch: Batch, key: mx.array | None
) -> Accumulated:
    """Return the sums of one micro-batch."""

    def total(p: Params) -> tuple[mx.array, mx.array]:
        loss = loss_fn(p, batch, key)
        return loss.total, loss.weight

    (loss, weight), grads = mx.value_and_grad(total)(params)
    return Accumulated(grads, Weighted(loss, weight))


def add_micro_batch(
    loss_fn: LossFn, params: Params, so_far: Accumulated, batch: Batch, key: mx.array | None
) -> Accumulated:
    """Return the sums with one more micro-batch in them."""
    more = micro_batch_sums(loss_fn, params, batch, key)
    return Accumulated(
        tree.add(so_far.grads, more.grads),
        Weighted(so_far.loss.total + more.loss.total, so_far.loss.weight + more.loss.weight),
    )


def accumulate(
    loss_fn: LossFn, k: int
) -> Callable[[Params, Sequence[Batch], mx.array | None], tuple[Grads, Weighted]]:
    """Return the gradient function over up to ``k`` micro-batches of one update.

    Gradients of the summed losses and the token counts are added up and divided once, so any
    split of the same rows gives the same update.

    Args:
        loss_fn: The loss of one micro-batch.
        k: Most micro-batches in one update; fewer are fine.

    Returns:
        ``(params, batches, key) -> (grads of the mean loss, Weighted)``. Micro-batch ``i``
        draws from ``fold_in(key, i)``.

    Raises:
        ValueError: The returned function is given none, or more than ``k``.

    Example:
        >>> def loss_fn(params, batch, key):
        ...     return Weighted(params["w"] * batch.tokens.sum(), mx.array(1.0 * batch.tokens.size))
        >>> batches = [Batch(t, t, t) for t in (mx.array([[1]]), mx.array([[2, 6]]))]
        >>> grads, loss = accumulate(loss_fn, 2)({"w": mx.array(1.0)}, batches, None)
        >>> grads["w"], loss.mean()
        (array(3, dtype=float32), array(3, dtype=float32))
    """

    def grad_fn(
        params: Params, batches: Sequence[Batch], key: mx.array | None
    ) -> tuple[Grads, Weighted]:
        if not 1 <= len(batches) <= k:
            raise ValueError(f"an update takes 1 to {k} micro-batches, got {len(batches)}")
        total = Accumulated.zero(params)
        for i, batch in enumerate(batches):
            own_key = None if key is None else fold_in(key, i)
            total = add_micro_batch(loss_fn, params, total, batch, own_key)
        return total.mean()

    return grad_fn
