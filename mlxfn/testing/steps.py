"""Laws of a training step: pure, exact under any split, the same compiled, safe from NaN."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import attrs
import mlx.core as mx

from mlxfn import tree
from mlxfn.state import IGNORED, Batch, LossFn, StepMetrics, TrainState, Weighted
from mlxfn.step import Step, init_state, make_step
from mlxfn.testing.law import LawError, close, copied, require, same
from mlxfn.testing.losses import TOLERANCE
from mlxfn.transforms.accumulate import accumulate
from mlxfn.transforms.base import Transform
from mlxfn.tree import Params, Tree

StepFn = Callable[[TrainState, Sequence[Batch]], tuple[TrainState, StepMetrics]]
"""A step over a list of micro-batches: one of :func:`mlxfn.make_step`, or one's own."""


def cut(batch: Batch, edges: Sequence[int]) -> list[Batch]:
    """Return the rows of a batch as several, cut before the rows with these numbers.

    Example:
        >>> ids = mx.zeros((5, 2), mx.int32)
        >>> [part.tokens.shape[0] for part in cut(Batch(ids, ids, ids), [1, 4])]
        [1, 3, 1]
    """
    rows = batch.tokens.shape[0]
    borders = sorted({0, rows, *(edge for edge in edges if 0 < edge < rows)})
    return [Batch(*(field[low:high] for field in batch)) for low, high in pairwise(borders)]


def accumulation_is_independent_of_the_split(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    edges: Sequence[int],
    *,
    tolerance: float = TOLERANCE,
) -> float:
    """The gradient of an update is that of its mean loss, however its rows were cut.

    Args:
        loss_fn: The loss; without a key, since each micro-batch draws its own dropout.
        params: Parameters to take the gradient at.
        batch: The rows of one update, best of unequal lengths.
        edges: Rows before which it is cut.
        tolerance: Largest difference, as a share of the largest value.

    Returns:
        The largest difference.

    Raises:
        LawError: The cut changes the gradient or the loss: some row or token is weighted by the
            company it keeps.

    Example:
        >>> from mlxfn.losses import causal_lm_loss
        >>> from mlxfn.testing.toys import bigrams, table
        >>> ids = mx.array([[1, 2], [3, 4], [0, 1]])
        >>> batch = Batch(ids, ids, mx.ones_like(ids))
        >>> loss_fn = causal_lm_loss(bigrams)
        >>> accumulation_is_independent_of_the_split(loss_fn, table(5), batch, [1]) < 1e-5
        True
    """
    parts = cut(batch, edges)
    mean, expected = mx.value_and_grad(lambda p: loss_fn(p, batch, None).mean())(params)
    gap = 0.0
    for batches in ([batch], parts):
        grads, loss = accumulate(loss_fn, len(parts))(params, batches, None)
        what = f"the cut into {len(batches)} micro-batches changes the"
        gap = max(gap, close(f"{what} loss", loss.mean(), mean, tolerance))
        gap = max(gap, close(f"{what} gradient", grads, expected, tolerance))
    return gap


def step_is_pure(
    step: StepFn,
    state: TrainState,
    batches: Sequence[Batch],
    *,
    watched: Callable[[], Tree] = dict,
) -> float:
    """A step changes nothing it was given and gives the same twice, also after one that raised.

    The calls that raise in between fail in the middle of their traces: one inside the model, while
    the parameters are in it, and one in the loss.

    Args:
        step: The step.
        state: Any state.
        batches: The micro-batches of an update.
        watched: Returns what else must stay as it is now: ``module.parameters`` of the module
            that the loss runs, say.

    Raises:
        LawError: The state, the batches, what is watched or the result changed.
    """
    given = {"state": tree.lower(state), "batches": list(batches)}
    places = dict(tree.leaves(watched()))
    # An array that sits in several places is looked at once.
    watching = {str(id(leaf)): leaf for leaf in places.values()}
    before, content = copied(given), copied(watching)
    first = _result(step(state, batches))
    mx.eval(first)
    _check_untouched("a step", given, before, watched, places)
    for what, wrong in _unusable(batches).items():
        with contextlib.suppress(Exception):  # whatever it raises, nothing may have changed
            mx.eval(_result(step(state, wrong)))
        _check_untouched(f"a step with {what}", given, before, watched, places)
    same("a step wrote into the arrays of the model", watching, content)
    second = _result(step(state, batches))
    return same("the same step with the same state gives another result", second, first)


def _unusable(batches: Sequence[Batch]) -> dict[str, list[Batch]]:
    """Return batches that fail in the model, which takes ids, and behind it, in the loss."""
    return {
        "tokens that are no ids": [b._replace(tokens=b.tokens.astype(mx.float32)) for b in batches],
        "labels of another shape": [
            b._replace(labels=mx.pad(b.labels, [(0, 0), (0, 1)])) for b in batches
        ],
    }


def _result(returned: tuple[TrainState, StepMetrics]) -> Tree:
    state, metrics = returned
    return {"state": tree.lower(state), "metrics": metrics}


def _check_untouched(
    what: str,
    given: Tree,
    before: Tree,
    watched: Callable[[], Tree],
    places: dict[str, mx.array],
) -> None:
    now = dict(tree.leaves(watched()))
    swapped = [name for name in places if now.get(name) is not places[name]]
    require(not swapped, f"{what} left other arrays in the model", at=", ".join(swapped[:3]))
    same(f"{what} changed what it was given", given, before)


def compiled_equals_eager(
    compiled: StepFn,
    eager: StepFn,
    state: TrainState,
    updates: Sequence[Sequence[Batch]],
    *,
    tolerance: float = 0.0,
) -> float:
    """Compilation is no other result: states and metrics of a sequence of updates are the same.

    Args:
        compiled: One step.
        eager: The same, not compiled.
        state: Where both begin.
        updates: The micro-batches of each update.
        tolerance: Largest difference, as a share of the largest value; 0 asks for the same bits,
            which a CPU gives in fp32.

    Raises:
        LawError: They differ.
    """
    ours, theirs, gap = state, state, 0.0
    for number, batches in enumerate(updates, 1):
        ours, our_metrics = compiled(ours, batches)
        theirs, their_metrics = eager(theirs, batches)
        what = f"compiled and eager differ in update {number}, in"
        for name, value in their_metrics._asdict().items():
            gap = max(gap, close(f"{what} {name}", our_metrics._asdict()[name], value, tolerance))
        if tolerance:
            gap = max(gap, _same_way(f"{what} the parameters", ours, theirs, state, tolerance))
        else:
            same(f"{what} the state", tree.lower(ours), tree.lower(theirs))
    return gap


def _same_way(
    what: str, ours: TrainState, theirs: TrainState, start: TrainState, tolerance: float
) -> float:
    """Compare how far two states have moved, in the L2 norm.

    The largest difference would say nothing: Adam makes a whole step of a gradient that is
    nothing but rounding, and its sign is anybody's guess.
    """
    apart = float(tree.global_norm(tree.tree_map(mx.subtract, ours.params, theirs.params)))
    moved = float(tree.global_norm(tree.tree_map(mx.subtract, theirs.params, start.params)))
    share = apart / moved if moved else apart
    require(share <= tolerance, what, difference=share, allowed=tolerance)
    return share


def one_trace_per_shape(
    loss_fn: LossFn,
    tx: Transform,
    state: TrainState,
    updates: Sequence[Sequence[Batch]],
    *,
    make: Callable[..., Step] = make_step,
) -> float:
    """A compiled step traces the loss once for each shape, whatever else changes.

    Args:
        loss_fn: The loss.
        tx: The transform.
        state: Where it begins.
        updates: The micro-batches of each update.
        make: ``(loss_fn, tx, accumulate=...) -> step``.

    Returns:
        The number of traces.

    Raises:
        LawError: A shape was traced again, or not at all.
    """
    traced: list[tuple[int, ...]] = []

    def counting(params: Params, batch: Batch, key: mx.array | None) -> Weighted:
        traced.append(tuple(batch.tokens.shape))
        return loss_fn(params, batch, key)

    mx.eval(mx.zeros(1) + 1)  # before any op has run, mlx traces twice
    step = make(counting, tx, accumulate=max(map(len, updates)))
    for batches in updates:
        state, _ = step(state, batches)
    shapes = {tuple(batch.tokens.shape) for batches in updates for batch in batches}
    require(sorted(traced) == sorted(shapes), "the step was not traced once per shape", got=traced)
    return float(len(traced))


def _nothing(leaf: mx.array) -> mx.array:
    """Return zeros whose slope is 1."""
    return leaf - mx.stop_gradient(leaf)


SPOILS: dict[str, Callable[[mx.array, mx.array], mx.array]] = {
    "a NaN loss": lambda total, _: total + math.nan,
    "an infinite loss": lambda total, _: total + math.inf,
    "a loss of minus infinity": lambda total, _: total - math.inf,
    # The root of 0 is 0, and its slope is 0 * inf.
    "a NaN gradient": lambda total, leaf: total + mx.sqrt(mx.sum(leaf * 0)),
    "an infinite gradient": lambda total, leaf: total + mx.sum(_nothing(leaf) * 1e30 * 1e30),
    "a gradient whose norm overflows": lambda total, leaf: total + mx.sum(_nothing(leaf) * 1e30),
}
"""Ways a loss can go wrong: (its sum, a parameter) -> the sum, spoiled."""


def nonfinite_changes_nothing(
    loss_fn: LossFn,
    tx: Transform,
    params: Params,
    batch: Batch,
    spoil: str,
    *,
    make: Callable[..., StepFn] = make_step,
    compiled: bool = False,
) -> float:
    """An update that is not finite leaves parameters, optimizer and step as they were, to the bit.

    Args:
        loss_fn: A loss that is finite on the batch.
        tx: The transform.
        params: Parameters before a first, good update.
        batch: Any batch with labels.
        spoil: A key of :data:`SPOILS`.
        make: ``(loss_fn, tx, compiled=...) -> step``.
        compiled: Whether the step is compiled.

    Raises:
        LawError: Something changed, or the update was not reported.
    """

    def spoiled(p: Params, b: Batch, key: mx.array | None) -> Weighted:
        loss = loss_fn(p, b, key)
        _, leaf = next(iter(tree.leaves(p)))
        return loss._replace(total=SPOILS[spoil](loss.total, leaf))

    good, bad = (make(fn, tx, compiled=compiled) for fn in (loss_fn, spoiled))
    before, _ = good(init_state(params, tx), [batch])
    after, metrics = bad(before, [batch])
    for part in ("params", "opt", "step", "key"):
        same(f"{spoil} changed {part}", getattr(after, part), getattr(before, part))
    require(not bool(metrics.finite.item()), f"{spoil} was reported as finite")
    counted = int(after.skipped - before.skipped)
    require(counted == 1, f"{spoil} was counted {counted} times")
    return 0.0


def update_without_labels_changes_nothing(
    step: StepFn, state: TrainState, batches: Sequence[Batch]
) -> float:
    """Nothing labelled, nothing learned: not even weight decay is applied.

    Args:
        step: The step.
        state: Any state.
        batches: Micro-batches; their labels are taken away.

    Raises:
        LawError: The state changed.
    """
    empty = [b._replace(labels=mx.full(b.labels.shape, IGNORED, mx.int32)) for b in batches]
    after, metrics = step(state, empty)
    require(metrics.loss.item() == 0, "without labels there is a loss", got=metrics.loss.item())
    return same("an update without labels changed the state", tree.lower(after), tree.lower(state))


def randomness_comes_from_the_state(
    step: StepFn, state: TrainState, batches: Sequence[Batch]
) -> float:
    """Another key or another update number gives another draw; the state gives the same again.

    Args:
        step: A step whose loss drops out.
        state: Any state.
        batches: The micro-batches of an update.

    Raises:
        LawError: One mask is repeated, or a draw comes from elsewhere.
    """
    first = step(state, batches)[1].loss
    again = step(state, batches)[1].loss
    same("the same state draws another mask", again, first)
    later = attrs.evolve(state, step=state.step + 1)
    other = attrs.evolve(state, key=state.key + 1)
    for name, changed in {"update number": later, "key": other}.items():
        loss = step(changed, batches)[1].loss
        if tree.same_bits(loss, first):
            raise LawError(f"another {name} draws the same mask", loss=float(loss))
    return 0.0
