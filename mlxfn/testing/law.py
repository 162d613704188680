"""What a law says when it is broken, and how laws compare trees."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs
import mlx.core as mx

from mlxfn.tree import Tree, flatten, same_bits, tree_map

Forward = Callable[[Any, Any, mx.array | None], Tree]
"""``(params, batch, key) -> tree``: an ApplyFn or a LossFn."""


class LawError(AssertionError):
    """A law is broken.

    Args:
        what: Which one, as the sentence that does not hold.
        figures: What was measured, by name.

    Example:
        >>> print(LawError("clipping raised the norm", before=1.0, after=2.5))
        clipping raised the norm (before 1, after 2.5)
    """

    def __init__(self, what: str, **figures: object) -> None:
        self.what = what
        self.figures = figures
        told = ", ".join(f"{name} {_short(value)}" for name, value in figures.items())
        super().__init__(f"{what} ({told})" if told else what)


@attrs.frozen
class Fact:
    """What one check came to: a value to be shown, sorted or sent as JSON."""

    name: str  # the sentence that holds or does not
    holds: bool
    figure: float | None  # the largest difference that was measured; None: nothing to measure
    detail: str  # what it was measured on, or what went wrong


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def fact(
    name: str, law: Callable[..., float], *args: Any, detail: str = "", **options: Any
) -> Fact:
    """Return whether a law holds, as a value instead of an exception.

    Args:
        name: The sentence that the law says.
        law: Any law; it returns its figure or raises :class:`LawError`.
        args: Its arguments.
        detail: What it is measured on.
        options: Its keyword arguments.

    Example:
        >>> fact("equal", same, "they differ", {"a": mx.zeros(1)}, {"a": mx.ones(1)}).holds
        False
    """
    try:
        figure = law(*args, **options)
    except LawError as broken:
        measured = broken.figures.get("difference")
        figure = measured if isinstance(measured, float) else None
        return Fact(name, holds=False, figure=figure, detail=str(broken))
    return Fact(name, holds=True, figure=figure, detail=detail)


def distance(ours: Tree, theirs: Tree) -> float:
    """Return the largest difference of two trees, as a share of the second's largest value.

    Args:
        ours: A tree of arrays.
        theirs: A tree with the same names and shapes.

    Returns:
        0 for equal trees; infinity where names or shapes differ or a value is NaN.

    Example:
        >>> distance({"a": mx.array([1.0, 4.0])}, {"a": mx.array([1.0, 2.0])})
        1.0
    """
    left, right = flatten(ours), flatten(theirs)
    if left.keys() != right.keys() or any(left[n].shape != right[n].shape for n in left):
        return math.inf
    ours, theirs = (tree_map(lambda leaf: leaf.astype(mx.float32), x) for x in (left, right))
    gap = _largest([ours[name] - theirs[name] for name in ours])
    # Below this the trees hold nothing but rounding, and a share of it would mean nothing.
    share = gap / max(_largest(list(theirs.values())), 1e-6)
    return share if math.isfinite(share) else math.inf


def _largest(arrays: list[mx.array]) -> float:
    """Return the largest absolute value; infinity where there is a NaN, which max would skip."""
    flat = [mx.abs(array).reshape(-1) for array in arrays if array.size]
    if not flat:
        return 0.0
    values = mx.concatenate(flat)
    return float(mx.where(mx.any(mx.isnan(values)), math.inf, mx.max(values)))


def close(what: str, ours: Tree, theirs: Tree, tolerance: float) -> float:
    """Return the distance of two trees.

    Args:
        what: The sentence that is true where they differ.
        ours: A tree of arrays.
        theirs: What it should be.
        tolerance: The largest distance allowed; 0 asks for the same bits.

    Raises:
        LawError: They are further apart.
    """
    if not tolerance:
        return same(what, ours, theirs)
    apart = distance(ours, theirs)
    if not apart <= tolerance:
        raise LawError(what, difference=apart, allowed=tolerance, at=_worst(ours, theirs))
    return apart


def same(what: str, ours: Tree, theirs: Tree) -> float:
    """Return 0 for two trees that are the same, bit for bit.

    Raises:
        LawError: They are not.
    """
    if not _equal(ours, theirs):
        raise LawError(what, difference=distance(ours, theirs), at=_worst(ours, theirs))
    return 0.0


def _equal(ours: Tree, theirs: Tree) -> bool:
    """Return what ``tree.same_bits`` does, asking the device once and not once a leaf."""
    left, right = flatten(ours), flatten(theirs)
    if left.keys() != right.keys() or any(_kind(left[n]) != _kind(right[n]) for n in left):
        return False
    return bool(
        mx.all(mx.stack([mx.array(True), *(_bits_equal(left[n], right[n]) for n in left)])).item()
    )


def _kind(array: mx.array) -> tuple[mx.Dtype, tuple[int, ...]]:
    return array.dtype, tuple(array.shape)


def _bits_equal(a: mx.array, b: mx.array) -> mx.array:
    unsigned = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}[a.dtype.size]
    return mx.array_equal(mx.view(a, unsigned), mx.view(b, unsigned))


def _worst(ours: Tree, theirs: Tree) -> str:
    """Name the leaf that differs most."""
    left, right = flatten(ours), flatten(theirs)
    if odd := sorted(left.keys() ^ right.keys()):
        return f"{odd[0]}, which one of them lacks"
    differing = [name for name in left if not same_bits(left[name], right[name])]
    gaps = {name: distance(left[name], right[name]) for name in differing}
    return max(gaps, key=lambda name: gaps[name], default="nowhere") or "the value"


def require(condition: bool, what: str, **figures: object) -> None:
    """Check one condition of a law.

    Raises:
        LawError: It does not hold.
    """
    if not condition:
        raise LawError(what, **figures)


def copied(tree: Tree) -> Tree:
    """Return a tree whose arrays are copies, to compare with after something ran."""
    copy = tree_map(lambda leaf: mx.array(leaf) if isinstance(leaf, mx.array) else leaf, tree)
    mx.eval(copy)
    return copy
