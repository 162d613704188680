"""Laws of models and adapters: dropout by key, exact recompute, packing, gradients, a frozen base."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import mlx.core as mx

from mlxfn import tree
from mlxfn.random import fold_in
from mlxfn.state import ApplyFn, Batch, LossFn
from mlxfn.testing.law import Forward, LawError, close, require, same
from mlxfn.testing.losses import losses_agree
from mlxfn.tree import Params, Tree


def dropout_is_a_function_of_its_key(
    forward: Forward, params: Params, batch: Batch, key: mx.array, *, drops: bool = True
) -> float:
    """The same key drops the same values, evaluation drops none and disturbs nothing.

    Args:
        forward: An ApplyFn or a LossFn.
        params: Any parameters.
        batch: Any batch.
        key: uint32 [2].
        drops: Whether it has any dropout: another key has to give another result then.

    Raises:
        LawError: A draw comes from elsewhere, such as the global random state.
    """
    world = _global_state()
    first = forward(params, batch, key)
    still = forward(params, batch, None)
    second = forward(params, batch, key)
    same("the same key drops other values", second, first)
    same("an evaluation is not the same twice", forward(params, batch, None), still)
    same("the global random state was drawn from", _global_state(), world)
    if drops:
        other = forward(params, batch, fold_in(key, 1))
        require(not tree.same_bits(other, first), "another key drops the same values")
        require(not tree.same_bits(still, first), "an evaluation drops values, or training none")
    return 0.0


def _global_state() -> list[mx.array]:
    return [mx.array(word) for word in cast("list[mx.array]", mx.random.state)]


def recompute_equals_plain(
    recomputed: LossFn,
    plain: LossFn,
    params: Params,
    batch: Batch,
    key: mx.array | None,
    *,
    tolerance: float = 1e-5,
) -> float:
    """Recomputing activations in the backward pass gives the same gradient, dropout included.

    Args:
        recomputed: The loss of the model that recomputes.
        plain: The loss of the same model that does not.
        params: Parameters to take the gradient at.
        batch: Any batch.
        key: Key of the dropout.
        tolerance: Largest difference, as a share of the largest value.

    Raises:
        LawError: They differ: the recompute draws other masks, or loses a gradient.
    """
    what = "the loss with recompute is not the plain one"
    return losses_agree(what, recomputed, plain, params, batch, key, tolerance=tolerance)


def packed_equals_separate(
    apply: ApplyFn,
    params: Params,
    documents: Sequence[Sequence[int]],
    *,
    alone: ApplyFn | None = None,
    tolerance: float = 1e-4,
) -> float:
    """Documents packed into one row get the logits that each gets in a row of its own.

    Args:
        apply: The model that reads packed rows.
        params: Any parameters.
        documents: Ids of each document.
        alone: The model that reads single documents; the same where not given.
        tolerance: Largest difference, as a share of the largest logit.

    Raises:
        LawError: They differ: attention crosses documents, or positions do not start anew.
    """
    ids = mx.array([[token for document in documents for token in document]], mx.int32)
    numbers = [n for n, document in enumerate(documents, 1) for _ in document]
    logits = apply(params, Batch(ids, ids, mx.array([numbers], mx.int32)), None)
    start, worst = 0, 0.0
    for number, document in enumerate(documents, 1):
        own = mx.array([list(document)], mx.int32)
        expected = (alone or apply)(params, Batch(own, own, mx.ones_like(own)), None)
        ours = logits[:, start : start + len(document)]
        what = f"document {number} of a packed row has other logits than alone"
        worst = max(worst, close(what, ours, expected, tolerance))
        start += len(document)
    return worst


def gradient_is_right(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    key: mx.array | None = None,
    *,
    directions: int = 4,
    size: float = 0.01,
    seed: int = 0,
    tolerance: float = 0.03,
) -> float:
    """The gradient is the slope of the loss, by central differences in random directions.

    All parameters move at once, each by a small share of its leaf's size, so that the change of
    the loss stands out of the rounding of fp32 however many parameters there are. Two steps give
    the slope by Richardson's extrapolation, and their difference says how well it is known.

    Args:
        loss_fn: A smooth loss.
        params: Parameters to take the gradient at; none should sit where its gradient is 0 by
            construction, as the first matrix of a fresh LoRA pair does.
        batch: A batch with labels.
        key: Key of the dropout; held fixed, dropout is a smooth function too.
        directions: Random directions; the error is their root mean square.
        size: Step, as a share of each leaf's root mean square.
        seed: Where the directions are drawn from.
        tolerance: Largest error, as a share of the gradient's size.

    Returns:
        The error of the gradient, as a share of its size.

    Raises:
        LawError: The gradient is wrong, or the loss is no smooth function of the parameters.

    Example:
        >>> from mlxfn.losses import causal_lm_loss
        >>> from mlxfn.testing.toys import bigrams, table
        >>> ids = mx.array([[1, 2, 3]])
        >>> batch = Batch(ids, ids[:, ::-1], mx.ones_like(ids))
        >>> gradient_is_right(causal_lm_loss(bigrams), table(5), batch) < 0.01
        True
    """

    def mean(p: Params) -> mx.array:
        return loss_fn(p, batch, key).mean()

    value, grads = mx.value_and_grad(mean)(params)
    require(bool(tree.all_finite([value, grads]).item()), "the loss or its gradient is not finite")
    lengths = tree.tree_map(_typical_size, params)
    scale = float(tree.global_norm(tree.tree_map(lambda g, s: g * s, grads, lengths)))
    require(scale > 0, "the gradient is 0")
    errors, doubts = [], []
    for number in range(directions):
        way = _direction(params, lengths, fold_in(mx.random.key(seed), number))
        near, far = (_slope(mean, params, way, step) for step in (size, 2 * size))
        products = tree.tree_map(lambda g, d: mx.sum(g * d), grads, way)
        predicted = sum(float(leaf) for _, leaf in tree.leaves(products))
        errors.append(((4 * near - far) / 3 - predicted) / scale)
        doubts.append((near - far) / scale)
    error, doubt = _rms(errors), _rms(doubts)
    if not error <= tolerance:
        what = "the gradient is not the slope of the loss"
        raise LawError(what, difference=error, allowed=tolerance, two_steps_differ_by=doubt)
    return error


def _typical_size(leaf: mx.array) -> mx.array:
    """Return the root mean square of a leaf, and something small for one of zeros."""
    return mx.maximum(mx.sqrt(mx.mean(mx.square(leaf.astype(mx.float32)))), 1e-2)


def _direction(params: Params, lengths: Tree, key: mx.array) -> Tree:
    """Return normal numbers in the shapes of the parameters, and in the size of each leaf."""
    flat, sizes = tree.flatten(params), tree.flatten(lengths)
    drawn = {
        name: sizes[name] * mx.random.normal(leaf.shape, key=fold_in(key, number))
        for number, (name, leaf) in enumerate(flat.items())
    }
    return tree.restore(tree.cast(params, mx.float32), drawn)


def _slope(
    value: Callable[[Params], mx.array], params: Params, direction: Tree, step: float
) -> float:
    ends = [tree.tree_map(lambda p, d, s=s: p + s * d, params, direction) for s in (step, -step)]
    up, down = (float(value(end)) for end in ends)
    return (up - down) / (2 * step)


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))


def base_is_frozen(params: Params, base: Mapping[str, mx.array]) -> float:
    """What is trained is the adapter: no array of the base is among the parameters.

    Args:
        params: The trainable parameters, as training starts with them.
        base: The base model's arrays by name; forgetting ``freeze()`` trains them.

    Raises:
        LawError: An array of the base is trained.

    Example:
        >>> base = {"q_proj.weight": mx.array([[1.0, 2.0]])}
        >>> base_is_frozen({"lora_a": mx.zeros((1, 1))}, base)
        0.0
    """
    by_shape: dict[tuple[int, ...], list[tuple[str, mx.array]]] = {}
    for name, array in base.items():
        by_shape.setdefault(tuple(array.shape), []).append((name, array))
    trained = [
        name
        for name, leaf in tree.flatten(params).items()
        for _, array in by_shape.get(tuple(leaf.shape), [])
        if leaf.size and bool(mx.array_equal(leaf.astype(array.dtype), array).item())
    ]
    few = ", ".join(trained[:3]) + (", ..." if len(trained) > 3 else "")
    require(not trained, "weights of the base are trained", arrays=len(trained), such_as=few)
    return 0.0


def base_is_untouched(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """The base's arrays are the same objects with the same content as before.

    Args:
        before: What :func:`snapshot` returned before something ran.
        after: What it returns now.

    Raises:
        LawError: An array was replaced or written into.
    """
    require(before.keys() == after.keys(), "the base has other arrays than before")
    changed = [name for name in before if before[name] != after[name]]
    require(
        not changed, "the base was changed", arrays=len(changed), such_as=", ".join(changed[:3])
    )
    return 0.0


def snapshot(base: Mapping[str, mx.array]) -> dict[str, tuple[int, int]]:
    """Return which object each array is, and a checksum of its bits.

    Example:
        >>> weights = {"w": mx.ones(3)}
        >>> snapshot(weights) == snapshot(weights), snapshot(weights) == snapshot({"w": mx.ones(3)})
        (True, False)
    """
    sums = {id(array): _checksum(array) for array in {id(a): a for a in base.values()}.values()}
    return {name: (id(array), sums[id(array)]) for name, array in base.items()}


def _checksum(array: mx.array) -> int:
    unsigned = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}[array.dtype.size]
    bits = mx.view(array.reshape(-1), unsigned).astype(mx.uint64)
    # Sums of bits and of odd multiples by place: a swap of two values is seen as well.
    places = mx.arange(bits.size, dtype=mx.uint64) * 2 + 1
    return int(mx.sum(bits) * 3 + mx.sum(bits * places)) if bits.size else 0
