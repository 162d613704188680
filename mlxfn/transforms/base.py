"""What a gradient transform is, and how transforms compose."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import mlx.core as mx
from mlx.utils import tree_map

from mlxfn.tree import Grads, Params, Tree


def _nothing(_: Tree) -> dict[str, mx.array]:
    return {}


@attrs.frozen
class Transform:
    """A pair of pure functions that turn gradients into updates (after optax).

    Args:
        init: ``params -> state``; a tree of arrays.
        update: ``(grads, state, params) -> (updates, state)``. Updates are added to the
            parameters by whoever runs the chain.
        report: ``state -> named scalars`` worth logging, such as the learning rate.
        elementwise: The update of a value follows from its own gradient, state and value, and
            from numbers over all of them such as a norm, whatever the shapes and paths. The
            step may then lay arrays out as one vector.

    Example:
        >>> double = Transform(lambda p: {}, lambda g, s, p: (tree_map(lambda x: 2 * x, g), s))
        >>> double.update({"w": mx.array([1.0])}, {}, None)[0]
        {'w': array([2], dtype=float32)}
    """

    init: Callable[[Params], Tree]
    update: Callable[[Grads, Tree, Params], tuple[Grads, Tree]]
    report: Callable[[Tree], dict[str, mx.array]] = _nothing
    elementwise: bool = False


def chain(*transforms: Transform) -> Transform:
    """Return the transform that applies the given ones from left to right.

    Its state is a dict of theirs by position, so that it lies flat in a checkpoint.

    Args:
        transforms: The stages; none is the identity.

    Example:
        >>> half = Transform(lambda p: {}, lambda g, s, p: (tree_map(lambda x: x / 2, g), s))
        >>> both = chain(half, half)
        >>> both.update({"w": mx.array([4.0])}, both.init({}), {})[0]
        {'w': array([1], dtype=float32)}
    """

    def init(params: Params) -> Tree:
        return {str(i): stage.init(params) for i, stage in enumerate(transforms)}

    def update(grads: Grads, state: Tree, params: Params) -> tuple[Grads, Tree]:
        after: dict[str, Tree] = {}
        for i, stage in enumerate(transforms):
            grads, after[str(i)] = stage.update(grads, state[str(i)], params)
        return grads, after

    def report(state: Tree) -> dict[str, mx.array]:
        scalars: dict[str, mx.array] = {}
        for i, stage in enumerate(transforms):
            scalars |= stage.report(state[str(i)])
        return scalars

    return Transform(init, update, report, all(stage.elementwise for stage in transforms))


def identity() -> Transform:
    """Return the transform that changes nothing: the empty chain."""
    return chain()


def apply_updates(params: Params, updates: Grads) -> Params:
    """Return the parameters with the updates added, in the parameters' dtypes.

    Example:
        >>> apply_updates({"w": mx.array([1.0])}, {"w": mx.array([0.5])})
        {'w': array([1.5], dtype=float32)}
    """
    return tree_map(lambda p, u: (p + u).astype(p.dtype), params, updates)
