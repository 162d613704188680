"""Trees of arrays: norms, selection, flat names, and the lowering of attrs objects for compile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import attrs
import mlx.core as mx
from mlx.utils import tree_map

__all__ = [
    "Grads",
    "Params",
    "Tree",
    "add",
    "all_finite",
    "cast",
    "flatten",
    "global_norm",
    "leaves",
    "lift",
    "lower",
    "restore",
    "same_bits",
    "scale",
    "tree_map",
    "unflatten",
    "where",
    "zeros_like",
]

Tree = Any
"""A nested dict, list or (named) tuple whose leaves are arrays."""
Params = dict[str, Any]
"""The trainable parameters: a nested dict of fp32 arrays."""
Grads = dict[str, Any]
"""Gradients, in the structure of the parameters they belong to."""

T = TypeVar("T")


def _children(tree: Tree) -> Iterator[tuple[str, Tree]] | None:
    if isinstance(tree, Mapping):
        return ((str(key), child) for key, child in tree.items())
    if isinstance(tree, list | tuple):
        names = getattr(tree, "_fields", None) or range(len(tree))
        return zip(map(str, names), tree, strict=True)
    return None


def leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, mx.array]]:
    """Yield ``(dotted path, array)`` for every leaf, in the tree's own order.

    Args:
        tree: The tree to walk.
        prefix: A path to put in front of every name.

    Example:
        >>> [name for name, _ in leaves({"a": {"b": mx.zeros(2)}, "c": (mx.zeros(1),)})]
        ['a.b', 'c.0']
    """
    children = _children(tree)
    if children is None:
        yield prefix, tree
        return
    for name, child in children:
        yield from leaves(child, f"{prefix}.{name}" if prefix else name)


def flatten(tree: Tree) -> dict[str, mx.array]:
    """Return the leaves by dotted path.

    Raises:
        ValueError: Two leaves have the same path (a key holds a dot).

    Example:
        >>> sorted(flatten({"a": {"b": mx.zeros(2), "c": mx.zeros(1)}}))
        ['a.b', 'a.c']
    """
    flat: dict[str, mx.array] = {}
    for name, leaf in leaves(tree):
        if name in flat:
            raise ValueError(f"two leaves are named {name!r}")
        flat[name] = leaf
    return flat


def unflatten(flat: Mapping[str, mx.array]) -> Params:
    """Return the nested dict whose leaves have these dotted paths (every level a dict).

    Example:
        >>> unflatten({"a.b": 1, "a.c": 2})
        {'a': {'b': 1, 'c': 2}}
    """
    tree: Params = {}
    for path, leaf in flat.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def restore(template: Tree, flat: Mapping[str, mx.array]) -> Tree:
    """Return a tree of the template's structure with the leaves of ``flat``.

    Args:
        template: A tree with the structure, shapes and dtypes that are expected.
        flat: Arrays by dotted path, as :func:`flatten` gives them.

    Raises:
        ValueError: A name is missing or left over, or a shape or dtype differs.

    Example:
        >>> template = {"a": {"b": mx.zeros(2)}}
        >>> restore(template, flatten(template))
        {'a': {'b': array([0, 0], dtype=float32)}}
    """
    expected = flatten(template)
    if missing := sorted(expected.keys() - flat.keys()):
        raise ValueError(f"missing: {', '.join(missing[:5])}")
    if unknown := sorted(flat.keys() - expected.keys()):
        raise ValueError(f"not expected: {', '.join(unknown[:5])}")
    for name, leaf in expected.items():
        found = flat[name]
        if found.shape != leaf.shape or found.dtype != leaf.dtype:
            raise ValueError(
                f"{name} is {found.dtype} {list(found.shape)}, "
                f"expected {leaf.dtype} {list(leaf.shape)}"
            )
    return _fill(template, flat, "")


def _fill(template: Tree, flat: Mapping[str, mx.array], prefix: str) -> Tree:
    children = _children(template)
    if children is None:
        return flat[prefix]
    filled = {
        name: _fill(child, flat, f"{prefix}.{name}" if prefix else name) for name, child in children
    }
    if isinstance(template, Mapping):
        return filled
    values = filled.values()
    return type(template)(*values) if hasattr(template, "_fields") else type(template)(values)


def global_norm(tree: Tree) -> mx.array:
    """Return the L2 norm over all leaves together, fp32 [].

    Example:
        >>> global_norm({"a": mx.array([3.0]), "b": mx.array([4.0])})
        array(5, dtype=float32)
    """
    squares = [mx.sum(mx.square(leaf.astype(mx.float32))) for _, leaf in leaves(tree)]
    return mx.sqrt(sum(squares, mx.array(0.0, mx.float32)))


def all_finite(tree: Tree) -> mx.array:
    """Return whether every element of every leaf is finite, bool [].

    Example:
        >>> all_finite({"a": mx.array([1.0, float("nan")])})
        array(False, dtype=bool)
    """
    finite = mx.array(True)
    for _, leaf in leaves(tree):
        finite = finite & mx.all(mx.isfinite(leaf))
    return finite


def where(condition: mx.array, on_true: T, on_false: T) -> T:
    """Return the leaves of one tree or of the other, chosen by one flag inside the graph.

    Args:
        condition: bool [].
        on_true: The tree taken where the condition holds.
        on_false: The tree taken elsewhere, of the same structure.
    """
    return tree_map(lambda a, b: mx.where(condition, a, b), on_true, on_false)


def add(a: T, b: Tree) -> T:
    """Return ``a + b`` leaf by leaf, in the dtypes of ``a``."""
    return tree_map(lambda x, y: x + y.astype(x.dtype), a, b)


def scale(tree: T, factor: mx.array) -> T:
    """Return every leaf times one factor (fp32 []), in the leaf's dtype."""
    return tree_map(lambda x: (x * factor).astype(x.dtype), tree)


def zeros_like(tree: T, dtype: mx.Dtype | None = None) -> T:
    """Return zeros in the shapes of the leaves, and in their dtypes unless one is given."""
    return tree_map(lambda x: mx.zeros(x.shape, dtype or x.dtype), tree)


def cast(tree: T, dtype: mx.Dtype) -> T:
    """Return the tree with every leaf in ``dtype``."""
    return tree_map(lambda x: x.astype(dtype), tree)


def same_bits(a: Tree, b: Tree) -> bool:
    """Return whether two trees have the same names, dtypes, shapes and bits (NaN equals itself).

    Example:
        >>> same_bits({"a": mx.array([0.0])}, {"a": mx.array([-0.0])})
        False
    """
    left, right = flatten(a), flatten(b)
    return left.keys() == right.keys() and all(_same(left[name], right[name]) for name in left)


def _same(a: mx.array, b: mx.array) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    unsigned = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}[a.dtype.size]
    return bool(mx.array_equal(mx.view(a, unsigned), mx.view(b, unsigned)).item())


def lower(state: Any) -> dict[str, Tree]:
    """Return an attrs object as the dict of its fields, which is what ``mx.compile`` takes."""
    return attrs.asdict(state, recurse=False)


def lift(cls: type[T], fields: Mapping[str, Tree]) -> T:
    """Return the attrs object whose fields were lowered: the inverse of :func:`lower`."""
    return cls(**fields)
