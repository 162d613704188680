"""Laws of losses: what a sum over label tokens may depend on, and what not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlxfn.losses import cross_entropy
from mlxfn.state import IGNORED, ApplyFn, Batch, LossFn, Weighted
from mlxfn.testing.law import LawError, close, require
from mlxfn.tree import Grads, Params

TOLERANCE = 1e-5
"""Share of the largest value by which two orders of the same fp32 sums may differ."""


def loss_and_grads(
    loss_fn: LossFn, params: Params, batch: Batch, key: mx.array | None = None
) -> tuple[Weighted, Grads]:
    """Return the loss of a batch and the gradient of its sum.

    Example:
        >>> ids = mx.array([[1]])
        >>> loss_fn = lambda params, batch, key: Weighted(3 * params["w"], mx.array(1.0))
        >>> loss_and_grads(loss_fn, {"w": mx.array(2.0)}, Batch(ids, ids, ids))[1]
        {'w': array(3, dtype=float32)}
    """

    def total(p: Params) -> tuple[mx.array, mx.array]:
        loss = loss_fn(p, batch, key)
        return loss.total, loss.weight

    (value, weight), grads = mx.value_and_grad(total)(params)
    return Weighted(value, weight), grads


def losses_agree(
    what: str,
    ours: LossFn,
    theirs: LossFn,
    params: Params,
    batch: Batch,
    key: mx.array | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> float:
    """Two losses have the same value, weight and gradient.

    Args:
        what: The sentence that is true where they do not.
        ours: One loss.
        theirs: The other, taken as the right one.
        params: Parameters to take the gradient at.
        batch: Any batch.
        key: Key of the dropout of both; None for none.
        tolerance: Largest difference, as a share of the largest value.

    Raises:
        LawError: They differ.
    """
    one, one_grads = loss_and_grads(ours, params, batch, key)
    two, two_grads = loss_and_grads(theirs, params, batch, key)
    gap = close(f"{what}, in the value", list(one), list(two), tolerance)
    return max(gap, close(f"{what}, in the gradient", one_grads, two_grads, tolerance))


def chunked_equals_full(
    chunked: LossFn,
    full: LossFn,
    params: Params,
    batch: Batch,
    *,
    tolerance: float = TOLERANCE,
) -> float:
    """A loss that takes the head chunk by chunk has the value and gradient of the whole one.

    Args:
        chunked: For example from ``chunked_causal_lm_loss``.
        full: The same loss from full logits.
        params: Parameters to take the gradient at.
        batch: Any batch.
        tolerance: Largest difference, as a share of the largest value.

    Raises:
        LawError: They differ.
    """
    what = "the chunked loss is not the full one"
    return losses_agree(what, chunked, full, params, batch, tolerance=tolerance)


def padded(batch: Batch, *, columns: int = 0, rows: int = 0, token: int = 0) -> Batch:
    """Return a batch with padding to the right of every row, and empty rows below.

    Example:
        >>> ids = mx.array([[1, 2]])
        >>> padded(Batch(ids, ids, ids), columns=1, rows=1).labels.tolist()
        [[1, 2, -100], [-100, -100, -100]]
    """
    edges = [(0, rows), (0, columns)]
    fills = Batch(*map(mx.array, (token, IGNORED, 0)))
    return Batch(*(mx.pad(f, edges, constant_values=v) for f, v in zip(batch, fills, strict=True)))


def taken(batch: Batch, rows: Sequence[int]) -> Batch:
    """Return the rows of a batch with these numbers, in this order."""
    return Batch(*(field[mx.array(list(rows), mx.int32)] for field in batch))


def loss_is_invariant_to_padding(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    columns: int = 3,
    rows: int = 1,
    token: int = 0,
    tolerance: float = TOLERANCE,
) -> float:
    """Padding is no target: more of it changes neither value, weight nor gradient.

    Args:
        loss_fn: The loss.
        params: Parameters to take the gradient at.
        batch: Any batch.
        columns: Positions added to the right of every row.
        rows: Empty rows added.
        token: The id in the padding.
        tolerance: Largest difference, as a share of the largest value.

    Raises:
        LawError: Padding changes the loss.

    Example:
        >>> from mlxfn.losses import causal_lm_loss
        >>> from mlxfn.testing.toys import bigrams, table
        >>> ids = mx.array([[1, 2, 3]])
        >>> batch = Batch(ids, ids, mx.ones_like(ids))
        >>> loss_is_invariant_to_padding(causal_lm_loss(bigrams), table(5), batch) < 1e-5
        True
    """
    more = padded(batch, columns=columns, rows=rows, token=token)
    return _agree("padding changes the loss", loss_fn, params, more, batch, tolerance)


def loss_is_invariant_to_row_order(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    order: Sequence[int],
    *,
    tolerance: float = TOLERANCE,
) -> float:
    """Rows are added up: their order changes neither value, weight nor gradient.

    Args:
        loss_fn: The loss.
        params: Parameters to take the gradient at.
        batch: Any batch.
        order: Every row's number once.
        tolerance: Largest difference, as a share of the largest value.

    Raises:
        LawError: The order changes the loss.
    """
    what = "the order of the rows changes the loss"
    return _agree(what, loss_fn, params, taken(batch, order), batch, tolerance)


def _agree(
    what: str, loss_fn: LossFn, params: Params, other: Batch, batch: Batch, tolerance: float
) -> float:
    one, one_grads = loss_and_grads(loss_fn, params, other)
    two, two_grads = loss_and_grads(loss_fn, params, batch)
    gap = close(f"{what}, in the value", list(one), list(two), tolerance)
    return max(gap, close(f"{what}, in the gradient", one_grads, two_grads, tolerance))


def loss_adds_up(
    loss_fn: LossFn, params: Params, parts: Sequence[Batch], *, tolerance: float = TOLERANCE
) -> float:
    """The sums and weights of the parts of a batch add up to those of the whole.

    Args:
        loss_fn: The loss.
        params: Any parameters.
        parts: Rows of one batch, cut anywhere; all of one length.
        tolerance: Largest difference, as a share of the largest value.

    Raises:
        LawError: They do not: some row is weighted by the company it keeps.

    Example:
        >>> from mlxfn.testing.toys import bigrams, table
        >>> def mean_loss(params, batch, key):
        ...     loss = cross_entropy(bigrams(params, batch, key), batch.labels)
        ...     return Weighted(loss.mean(), mx.array(1.0))
        >>> ids = mx.array([[1, 2]])
        >>> batch = Batch(ids, ids, mx.ones_like(ids))
        >>> loss_adds_up(mean_loss, table(5), [batch, batch])
        Traceback (most recent call last):
        ...
        mlxfn.testing.law.LawError: the losses of the parts do not add up to ...
    """
    whole = Batch(*(mx.concatenate(list(fields)) for fields in zip(*parts, strict=True)))
    losses = [loss_fn(params, part, None) for part in parts]
    added = [sum(numbers, mx.array(0.0)) for numbers in zip(*losses, strict=True)]
    expected = list(loss_fn(params, whole, None))
    what = "the losses of the parts do not add up to that of the whole batch"
    return close(what, added, expected, tolerance)


def loss_ignores_unlabelled_positions(
    loss_fn: LossFn, params: Params, batch: Batch, token: int, *, tolerance: float = TOLERANCE
) -> float:
    """What the logits are where no label is changes nothing: an ignored label points nowhere.

    Args:
        loss_fn: The loss over a model whose logits depend on their own position's token alone,
            such as :func:`mlxfn.testing.toys.bigrams`.
        params: Parameters to take the gradient at.
        batch: A batch with ignored labels.
        token: The id put at all ignored positions; give it extreme logits.
        tolerance: Largest difference, as a share of the largest value.

    Raises:
        LawError: The loss changed.
    """
    elsewhere = batch._replace(tokens=mx.where(batch.labels == IGNORED, token, batch.tokens))
    what = "a position without a label changes the loss"
    return _agree(what, loss_fn, params, elsewhere, batch, tolerance)


def loss_of_nothing_is_zero(loss_fn: LossFn, params: Params, batch: Batch) -> float:
    """Without a label the sum, the weight and the gradient are 0, not 0 / 0.

    Args:
        loss_fn: The loss.
        params: Parameters to take the gradient at.
        batch: Any batch; its labels are taken away.

    Raises:
        LawError: Something is not 0.
    """
    empty = batch._replace(labels=mx.full(batch.labels.shape, IGNORED, mx.int32))
    loss, grads = loss_and_grads(loss_fn, params, empty)
    nothing = mx.array(0.0)
    close("a batch without labels has a loss", list(loss), [nothing, nothing], 1e-30)
    zeros = mx.zeros(1)
    for name, leaf in _flat(grads).items():
        what = f"a batch without labels has a gradient, in {name}"
        close(what, mx.max(mx.abs(leaf))[None], zeros, 1e-30)
    return 0.0


def _flat(grads: Grads) -> dict[str, mx.array]:
    from mlxfn.tree import flatten

    return {name: leaf for name, leaf in flatten(grads).items() if leaf.size}


def loss_counts_label_tokens(loss_fn: LossFn, params: Params, batch: Batch) -> float:
    """The weight is the number of labelled positions, so that one division at the end is right.

    Args:
        loss_fn: The loss.
        params: Any parameters.
        batch: Any batch.

    Returns:
        By how many tokens the weight is off.

    Raises:
        LawError: The weight is another number.
    """
    weight = float(loss_fn(params, batch, None).weight)
    labels = int(mx.sum(batch.labels != IGNORED))
    require(weight == labels, "the weight is not the number of labels", got=weight, labels=labels)
    return 0.0


def exact_cross_entropy(
    logits: mx.array, labels: mx.array, *, label_smoothing: float = 0.0
) -> tuple[float, int]:
    """Return sum and weight in float64, written from the definition with NumPy.

    Args:
        logits: float [B, T, V].
        labels: int32 [B, T].
        label_smoothing: s; each label token adds ``(1 - s) * nll + s * mean over V of -log p``.

    Example:
        >>> exact_cross_entropy(mx.zeros((1, 1, 2)), mx.array([[1]]))
        (0.6931471805599453, 1)
    """
    values = np.array(logits.astype(mx.float32)).astype(np.float64)
    ids = np.array(labels)
    shifted = values - values.max(-1, keepdims=True, initial=-np.inf)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    total, count = 0.0, 0
    for place in np.argwhere(ids != IGNORED):
        row = log_p[tuple(place)]
        total -= (1 - label_smoothing) * row[ids[tuple(place)]] + label_smoothing * row.mean()
        count += 1
    return float(total), count


def loss_is_cross_entropy(
    loss_fn: LossFn,
    apply: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    label_smoothing: float = 0.0,
    tolerance: float = 2e-5,
) -> float:
    """The loss is the cross-entropy of its definition, computed in float64.

    Args:
        loss_fn: The loss over ``apply``.
        apply: The model whose logits it takes.
        params: Any parameters.
        batch: Any batch.
        label_smoothing: The loss's smoothing.
        tolerance: Largest difference, as a share of the value (or of 1, where that is less).

    Raises:
        LawError: It is another one.
    """
    loss = loss_fn(params, batch, None)
    logits = apply(params, batch, None)
    total, count = exact_cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
    got, weight = float(loss.total), float(loss.weight)
    gap = abs(got - total) / max(abs(total), 1.0)
    require(weight == count, "the weight is another one", got=weight)
    if not gap <= tolerance:
        raise LawError("the loss is no cross-entropy", difference=gap, got=got, exact=total)
    return gap


def smoothing_zero_is_cross_entropy(
    make: Callable[[float], LossFn],
    apply: ApplyFn,
    params: Params,
    batch: Batch,
    *,
    tolerance: float = 1e-6,
) -> float:
    """A smoothed loss at 0 is the plain one, and little smoothing changes it little.

    Args:
        make: Smoothing -> loss over ``apply``.
        apply: The model whose logits it takes.
        params: Parameters to take the gradient at.
        batch: Any batch.
        tolerance: Largest difference, as a share of the largest value.

    Raises:
        LawError: The loss at 0 is another one, or it jumps there.
    """

    def plain(p: Params, b: Batch, key: mx.array | None) -> Weighted:
        return cross_entropy(apply(p, b, key), b.labels)

    gap = losses_agree(
        "smoothing 0 is not cross-entropy", make(0.0), plain, params, batch, tolerance=tolerance
    )
    tiny = 1e-6
    logits: Any = apply(params, batch, None).astype(mx.float32)
    spread = float(mx.max(logits) - mx.min(logits)) if logits.size else 0.0
    before = make(0.0)(params, batch, None)
    after = make(tiny)(params, batch, None)
    jump = abs(float(after.total - before.total))
    size = max(abs(float(before.total)), 1.0)
    allowed = 2 * tiny * spread * float(before.weight) + 1e-5 * size
    require(jump <= allowed, "a little smoothing changes the loss a lot", jump=jump)
    return gap
