"""One optimizer update as a pure function of the state and its micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import attrs
import mlx.core as mx

from mlxfn import tree
from mlxfn.device import device_kind
from mlxfn.random import fold_in, key
from mlxfn.state import Batch, LossFn, StepMetrics, TrainState, Weighted
from mlxfn.transforms.accumulate import Accumulated, add_micro_batch, micro_batch_sums
from mlxfn.transforms.base import Transform, apply_updates
from mlxfn.transforms.flat import Layout
from mlxfn.transforms.rate import FACTOR
from mlxfn.tree import Grads, Params


def init_state(params: Params, tx: Transform, *, seed: int = 0) -> TrainState:
    """Return the state before the first update.

    Args:
        params: Trainable parameters; kept as fp32.
        tx: The transform that the step will use.
        seed: Where all draws of the run come from.

    Raises:
        ValueError: The seed is not in [0, 2**64).

    Example:
        >>> from mlxfn.transforms import sgd
        >>> init_state({"w": mx.ones(2)}, sgd(0.1)).step
        array(0, dtype=int32)
    """
    # Copies, so that no buffer of the caller's is ever donated to a step.
    masters = tree.tree_map(lambda leaf: mx.array(leaf, mx.float32), params)
    zero = mx.array(0, mx.int32)
    return TrainState(params=masters, opt=tx.init(masters), key=key(seed), step=zero, skipped=zero)


@attrs.frozen(eq=False)
class Step:
    """``step(state, batch) -> (state, metrics)``, made by :func:`make_step`."""

    accumulate: int
    _alone: Callable[..., Accumulated]
    _add: Callable[..., Accumulated]
    _update: Callable[..., tuple[dict[str, Any], StepMetrics]]

    def __call__(
        self, state: TrainState, batch: Batch | Sequence[Batch]
    ) -> tuple[TrainState, StepMetrics]:
        """Return the state after one update, and what the update reports.

        Args:
            state: The state before; it is not changed.
            batch: The rows of one update: micro-batches (at most ``accumulate``), or one batch
                that is split by rows into ``accumulate`` of them.

        Raises:
            ValueError: There is no micro-batch, or there are too many.
        """
        fields, metrics = self._update(tree.lower(state), self._sum(state, batch))
        return tree.lift(TrainState, fields), metrics

    def gradients(
        self, state: TrainState, batch: Batch | Sequence[Batch]
    ) -> tuple[Grads, Weighted]:
        """Return the gradient of the mean loss, before any transform, and the summed loss."""
        return self._sum(state, batch).mean()

    def _sum(self, state: TrainState, batch: Batch | Sequence[Batch]) -> Accumulated:
        micro_batches = self._micro_batches(batch)
        if self.accumulate == 1:
            return self._alone(state.params, micro_batches[0], state.key, state.step)
        total = Accumulated.zero(state.params)
        for i, micro_batch in enumerate(micro_batches):
            index = mx.array(i, mx.uint32)
            total = self._add(state.params, total, micro_batch, state.key, state.step, index)
        return total

    def _micro_batches(self, batch: Batch | Sequence[Batch]) -> Sequence[Batch]:
        parts = split_rows(batch, self.accumulate) if isinstance(batch, Batch) else batch
        if not 1 <= len(parts) <= self.accumulate:
            raise ValueError(
                f"an update takes 1 to {self.accumulate} micro-batches, got {len(parts)}"
            )
        return parts


def make_step(
    loss_fn: LossFn,
    tx: Transform,
    *,
    accumulate: int = 1,
    compiled: bool = True,
    flat: bool | None = None,
) -> Step:
    """Return the pure step that a loss and a transform make.

    Gradients and token counts are summed over the micro-batches, divided once, sent through the
    transform and added to the parameters. Where the loss or a gradient is not finite, the
    parameters, the transform's state and the step count stay as they are, bit for bit, and
    ``skipped`` counts one; where no token is labelled, nothing changes at all. Micro-batch ``i``
    of update ``t`` draws from ``fold_in(fold_in(state.key, t), i)``.

    Args:
        loss_fn: ``(params, batch, key) -> Weighted``.
        tx: Gradient transform, the optimizer included.
        accumulate: Micro-batches in one update.
        compiled: Compile the two halves, the gradient of a micro-batch (once per shape) and the
            update (once). The eager step gives the same bits on a CPU in fp32.
        flat: Lay small parameters out as one vector for the update, which an elementwise
            transform allows; None: on a GPU, where every kernel costs its start.

    Returns:
        A callable ``(state, batch) -> (state, metrics)``.

    Raises:
        ValueError: ``accumulate`` is less than 1, or ``flat`` is asked of a transform that is
            not elementwise.

    Example:
        >>> from mlxfn.losses import causal_lm_loss
        >>> from mlxfn.transforms import sgd
        >>> loss_fn = causal_lm_loss(lambda params, batch, key: params["table"][batch.tokens])
        >>> step = make_step(loss_fn, sgd(0.1), compiled=False)
        >>> ids = mx.array([[0, 1, 1]])
        >>> state = init_state({"table": mx.zeros((2, 2))}, sgd(0.1))
        >>> state, metrics = step(state, Batch(ids, ids, mx.ones_like(ids)))
        >>> f"{metrics.loss.item():.4f}", state.step.item()
        ('0.6931', 1)
    """
    if accumulate < 1:
        raise ValueError(f"accumulate is at least 1, got {accumulate}")
    if flat and not tx.elementwise:
        raise ValueError("only the update of an elementwise transform can be flat")
    in_one_vector = flat or (flat is None and tx.elementwise and device_kind() != "cpu")

    def alone(params: Params, batch: Batch, key: mx.array, step: mx.array) -> Accumulated:
        own_key = fold_in(fold_in(key, step), mx.array(0, mx.uint32))
        return micro_batch_sums(loss_fn, params, batch, own_key)

    def add(
        params: Params,
        so_far: Accumulated,
        batch: Batch,
        key: mx.array,
        step: mx.array,
        index: mx.array,
    ) -> Accumulated:
        # Ordered after the sum so far, so that one micro-batch's activations live at a time.
        ordered = mx.depends(list(batch), [so_far.loss.weight, *_first_leaf(so_far.grads)])
        own_key = fold_in(fold_in(key, step), index)
        return add_micro_batch(loss_fn, params, so_far, Batch(*ordered), own_key)

    def update(fields: dict[str, Any], total: Accumulated) -> tuple[dict[str, Any], StepMetrics]:
        apply = apply_flat if in_one_vector else apply_gradients
        return apply(tree.lift(TrainState, fields), total, tx)

    if compiled:
        alone, add, update = mx.compile(alone), mx.compile(add), mx.compile(update)
    return Step(accumulate, alone, add, update)


def apply_gradients(
    state: TrainState, total: Accumulated, tx: Transform
) -> tuple[dict[str, Any], StepMetrics]:
    """Return the lowered state after an update with the summed gradients, and its metrics."""
    grads, loss = total.mean()
    norm = tree.global_norm(grads)
    # One NaN or infinity in any gradient makes the norm one; so do squares that overflow, and
    # such gradients are of no use either.
    finite = mx.isfinite(loss.total) & mx.isfinite(norm)
    updates, opt = tx.update(grads, state.opt, state.params)
    trained = {
        "params": apply_updates(state.params, updates),
        "opt": opt,
        "step": state.step + 1,
    }
    before = {"params": state.params, "opt": state.opt, "step": state.step}
    after = tree.where(finite & (loss.weight > 0), trained, before)
    skipped = state.skipped + mx.logical_not(finite).astype(mx.int32)
    metrics = StepMetrics(loss.mean(), loss.weight, norm, _rate(tx.report(opt)), finite)
    return {**after, "key": state.key, "skipped": skipped}, metrics


def apply_flat(
    state: TrainState, total: Accumulated, tx: Transform
) -> tuple[dict[str, Any], StepMetrics]:
    """Return what :func:`apply_gradients` returns, computed on small parameters as one vector."""
    layout = Layout.of(state.params)
    if len(layout.shapes) < 2:
        return apply_gradients(state, total, tx)
    params = layout.pack(state.params)
    opt = layout.pack_state(state.opt, like=tx.init(params))
    packed = attrs.evolve(state, params=params, opt=opt)
    fields, metrics = apply_gradients(packed, total._replace(grads=layout.pack(total.grads)), tx)
    fields["params"] = layout.unpack(fields["params"], like=state.params)
    fields["opt"] = layout.unpack(fields["opt"], like=state.opt)
    return fields, metrics


def split_rows(batch: Batch, parts: int) -> list[Batch]:
    """Return the rows of a batch as at most ``parts`` batches of nearly equal size.

    Example:
        >>> ids = mx.zeros((5, 2), mx.int32)
        >>> [part.tokens.shape[0] for part in split_rows(Batch(ids, ids, ids), 2)]
        [3, 2]
    """
    rows = batch.tokens.shape[0]
    count = max(min(parts, rows), 1)
    edges = [-(-rows * i // count) for i in range(count + 1)]
    return [Batch(*(field[low:high] for field in batch)) for low, high in pairwise(edges)]


def _rate(report: dict[str, mx.array]) -> mx.array:
    rate = report.get("learning_rate", mx.array(float("nan")))
    return rate * report.get(FACTOR, mx.array(1.0))


def _first_leaf(grads: Grads) -> list[mx.array]:
    return [leaf for _, leaf in tree.leaves(grads)][:1]
