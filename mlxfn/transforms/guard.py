"""Leaving out an update whose gradients are not finite."""

from __future__ import annotations

from mlxfn import tree
from mlxfn.transforms.base import Transform
from mlxfn.tree import Grads, Params, Tree


def skip_nonfinite(inner: Transform) -> Transform:
    """Return a transform that gives zero updates and keeps its state where a gradient is not finite.

    :func:`mlxfn.make_step` guards the whole state already; this is for steps of one's own.

    Args:
        inner: The transform to protect.

    Example:
        >>> import mlx.core as mx
        >>> from mlxfn.transforms import sgd
        >>> tx = skip_nonfinite(sgd(0.1))
        >>> params = {"w": mx.array([1.0])}
        >>> tx.update({"w": mx.array([float("nan")])}, tx.init(params), params)[0]
        {'w': array([0], dtype=float32)}
    """

    def update(grads: Grads, state: Tree, params: Params) -> tuple[Grads, Tree]:
        finite = tree.all_finite(grads)
        updates, after = inner.update(grads, state, params)
        return (
            tree.where(finite, updates, tree.zeros_like(updates)),
            tree.where(finite, after, state),
        )

    return Transform(inner.init, update, inner.report, inner.elementwise)
