"""A factor on the learning rate that lies in the state, so that a running step can be slowed."""

from __future__ import annotations

import mlx.core as mx

from mlxfn import tree
from mlxfn.transforms.base import Transform
from mlxfn.tree import Grads, Params, Tree

FACTOR = "rate_factor"


def adjustable_rate() -> Transform:
    """Return the transform that multiplies updates by a factor kept in its state, 1 at first.

    Behind an optimizer whose updates are proportional to its learning rate, weight decay
    included, this is a lower learning rate; no new trace is needed to change it.

    Example:
        >>> from mlxfn.transforms import sgd, chain
        >>> tx = chain(sgd(1.0), adjustable_rate())
        >>> params = {"w": mx.array([1.0])}
        >>> state = with_rate_factor(tx.init(params), 0.5)
        >>> tx.update({"w": mx.array([1.0])}, state, params)[0]
        {'w': array([-0.5], dtype=float32)}
    """

    def update(grads: Grads, state: Tree, _: Params) -> tuple[Grads, Tree]:
        return tree.scale(grads, state[FACTOR]), state

    return Transform(lambda _: {FACTOR: mx.array(1.0)}, update, dict, elementwise=True)


def with_rate_factor(state: Tree, factor: float) -> Tree:
    """Return a transform's state with every rate factor in it set to a number.

    Args:
        state: State of a chain that holds :func:`adjustable_rate`.
        factor: The number, > 0.
    """
    flat = tree.flatten(state)
    changed = {
        path: mx.array(factor) if path.rpartition(".")[2] == FACTOR else leaf
        for path, leaf in flat.items()
    }
    return tree.restore(state, changed)
