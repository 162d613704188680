"""Different transforms for different parameters, chosen by their path."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx

from mlxfn import tree
from mlxfn.transforms.base import Transform
from mlxfn.tree import Grads, Params, Tree


def partition(label: Callable[[str], str], groups: Mapping[str, Transform]) -> Transform:
    """Return the transform that sends every parameter through the transform of its group.

    Args:
        label: Dotted path of a parameter -> name of its group.
        groups: A transform for each group's name.

    Raises:
        KeyError: At ``init``, a label names no group.

    Example:
        >>> from mlxfn.transforms import sgd
        >>> tx = partition(lambda p: "b" if p.endswith("b") else "a", {"a": sgd(1.0), "b": sgd(2.0)})
        >>> params = {"a": mx.array([0.0]), "b": mx.array([0.0])}
        >>> tx.update({"a": mx.array([1.0]), "b": mx.array([1.0])}, tx.init(params), params)[0]
        {'a': array([-1], dtype=float32), 'b': array([-2], dtype=float32)}
    """

    def split(values: Tree) -> dict[str, Params]:
        parts: dict[str, dict[str, mx.array]] = {name: {} for name in groups}
        for path, leaf in tree.leaves(values):
            parts[label(path)][path] = leaf
        return {name: tree.unflatten(part) for name, part in parts.items()}

    def init(params: Params) -> Tree:
        return {name: groups[name].init(part) for name, part in split(params).items()}

    def update(grads: Grads, state: Tree, params: Params) -> tuple[Grads, Tree]:
        updates: dict[str, mx.array] = {}
        after: dict[str, Tree] = {}
        parts = split(params)
        for name, part in split(grads).items():
            group_updates, after[name] = groups[name].update(part, state[name], parts[name])
            updates |= tree.flatten(group_updates)
        return tree.restore(grads, updates), after

    def report(state: Tree) -> dict[str, mx.array]:
        return {
            key: value
            for name, tx in groups.items()
            for key, value in tx.report(state[name]).items()
        }

    return Transform(init, update, report)


def scale_by(factor: float) -> Transform:
    """Return the transform that multiplies every update by one number.

    Together with :func:`partition` it gives parameter groups their own rate, as LoRA+
    (Hayou et al., 2024) does for the ``lora_b`` matrices.

    Args:
        factor: The number.

    Example:
        >>> scale_by(2.0).update({"w": mx.array([1.0])}, {}, {})[0]
        {'w': array([2], dtype=float32)}
    """

    def update(grads: Grads, state: Tree, _: Params) -> tuple[Grads, Tree]:
        return tree.scale(grads, mx.array(factor, mx.float32)), state

    return Transform(lambda _: {}, update, elementwise=True)
