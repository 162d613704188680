"""The laws on the pieces of one's own step: a loss, its parameters, a transform, a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs
import mlx.core as mx

from mlxfn import tree
from mlxfn.random import fold_in
from mlxfn.state import Batch, LossFn
from mlxfn.step import init_state, make_step
from mlxfn.testing import laws
from mlxfn.testing.law import Fact, fact
from mlxfn.transforms.base import Transform
from mlxfn.tree import Params

ZERO = 0.02
"""Size of the noise in the place of leaves that are zero."""


@attrs.frozen(eq=False)
class Pieces:
    """What :func:`verify_pieces` looks at.

    Args:
        loss_fn: ``(params, batch, key) -> Weighted``, as it is trained with.
        params: Its trainable parameters, as training starts with them.
        batch: Some rows of unequal lengths, with labels.
        tx: The transform that the step will use; None leaves the step out.
        plain_loss: The same loss without recompute, to compare with.
        base: Arrays of the frozen base by name; none of them may be trained or changed.
        drops: Whether there is dropout.
        tolerance: Largest difference between two orders of the same sums, as a share of the
            largest value; fp32 allows 1e-4 for models of any depth.
        bitwise: Whether a compiled step has to give the very same bits (a CPU does, in fp32).
        smooth: Whether the loss is computed in fp32; in half precision rounding hides its slope.
    """

    loss_fn: LossFn
    params: Params
    batch: Batch
    tx: Transform | None = None
    plain_loss: LossFn | None = None
    base: Mapping[str, mx.array] = attrs.field(factory=dict[str, mx.array])
    drops: bool = False
    tolerance: float = 1e-4
    bitwise: bool = False
    smooth: bool = True


def verify_pieces(pieces: Pieces) -> Iterator[Fact]:
    """Run every law that applies to one's own pieces, without a configuration or a run.

    Args:
        pieces: What to look at.

    Yields:
        One fact for each law; a broken one says what was measured.

    Example:
        >>> from mlxfn.losses import causal_lm_loss
        >>> from mlxfn.testing.toys import bigrams, table
        >>> ids = mx.array([[1, 2, 3], [4, 0, 2]])
        >>> batch = Batch(ids, ids[:, ::-1], mx.ones_like(ids))
        >>> [f.holds for f in verify_pieces(Pieces(causal_lm_loss(bigrams), table(5), batch))]
        [True, True, True, True, True]
    """
    if pieces.base:
        yield fact(
            "only the adapter is trained",
            laws.base_is_frozen,
            pieces.params,
            pieces.base,
            detail=f"{sum(leaf.size for _, leaf in tree.leaves(pieces.params)):,} values in "
            f"{len(tree.flatten(pieces.params))} arrays, none of them the base's",
        )
    awake = waken(pieces.params)
    yield from _of_the_loss(pieces, awake)
    yield from _of_the_randomness(pieces, awake)
    if pieces.tx is not None:
        yield from _of_the_step(pieces, pieces.tx, awake)


def waken(params: Params, *, seed: int = 0) -> Params:
    """Return parameters with noise in the place of leaves that are zero.

    A fresh LoRA pair has one, and while it is zero the gradient of the other is zero too:
    most errors of an adapter cannot be seen there.

    Example:
        >>> bool(mx.any(waken({"lora_b": mx.zeros((2, 2))})["lora_b"] != 0))
        True
    """
    flat = tree.flatten(params)
    key = mx.random.key(seed)
    noisy = {
        name: leaf
        if bool(mx.any(leaf != 0).item())
        else ZERO * mx.random.normal(leaf.shape, leaf.dtype, key=fold_in(key, number))
        for number, (name, leaf) in enumerate(flat.items())
    }
    return tree.restore(params, noisy)


def _of_the_loss(pieces: Pieces, params: Params) -> Iterator[Fact]:
    loss_fn, batch, near = pieces.loss_fn, pieces.batch, {"tolerance": pieces.tolerance}
    rows, length = batch.tokens.shape
    size = f"{rows} rows of up to {length} positions"
    yield _of_the_gradient(pieces, params)
    yield fact(
        "padding changes nothing",
        laws.loss_is_invariant_to_padding,
        loss_fn,
        params,
        batch,
        **near,
        detail="3 more positions, 1 more row",
    )
    order = list(reversed(range(rows)))
    law = laws.loss_is_invariant_to_row_order
    yield fact(
        "the order of rows changes nothing", law, loss_fn, params, batch, order, **near, detail=size
    )
    edges = [1, 1 + rows // 2]
    law = laws.accumulation_is_independent_of_the_split
    yield fact(
        "any split into micro-batches gives the same update",
        law,
        loss_fn,
        params,
        batch,
        edges,
        **near,
        detail=f"{rows} rows at once, and cut before rows {edges[0]} and {edges[1]}",
    )
    law = laws.loss_of_nothing_is_zero
    yield fact("a batch without labels has no loss", law, loss_fn, params, batch)


def _of_the_gradient(pieces: Pieces, params: Params) -> Fact:
    name = "the gradient is the slope of the loss"
    if not pieces.smooth:
        return Fact(name, holds=True, figure=None, detail="not measured: needs float32")
    key = mx.random.key(0) if pieces.drops else None
    detail = "central differences in 4 random directions" + (", dropout on" if pieces.drops else "")
    law = laws.gradient_is_right
    return fact(name, law, pieces.loss_fn, params, pieces.batch, key, detail=detail)


def _of_the_randomness(pieces: Pieces, params: Params) -> Iterator[Fact]:
    key = mx.random.key(1)
    if pieces.drops:
        yield fact(
            "dropout is a function of its key",
            laws.dropout_is_a_function_of_its_key,
            pieces.loss_fn,
            params,
            pieces.batch,
            key,
            detail="the same key twice, another key, evaluations in between",
        )
    if pieces.plain_loss is not None:
        yield fact(
            "recompute changes nothing",
            laws.recompute_equals_plain,
            pieces.loss_fn,
            pieces.plain_loss,
            params,
            pieces.batch,
            key if pieces.drops else None,
            tolerance=pieces.tolerance,
            detail="value and gradient" + (", dropout on" if pieces.drops else ""),
        )


def _of_the_step(pieces: Pieces, tx: Transform, params: Params) -> Iterator[Fact]:
    loss_fn, batch = pieces.loss_fn, pieces.batch
    state = init_state(params, tx)
    compiled, eager = (make_step(loss_fn, tx, compiled=c) for c in (True, False))
    yield fact(
        "a step changes nothing it was given",
        laws.step_is_pure,
        eager,
        state,
        [batch],
        detail="also after one that raised in the middle of its trace",
    )
    yield fact(
        "compiled and eager agree",
        laws.compiled_equals_eager,
        compiled,
        eager,
        state,
        [[batch]] * 2,
        tolerance=0.0 if pieces.bitwise else pieces.tolerance,
        detail="2 updates, the same bits" if pieces.bitwise else "2 updates",
    )
    law = laws.nonfinite_changes_nothing
    yield fact("a NaN changes nothing", law, loss_fn, tx, params, batch, "a NaN gradient")
