"""What a step carries and reports: the state, the batch, and the values that travel between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import attrs
import mlx.core as mx

from mlxfn.tree import Params, Tree

IGNORED = -100
"""The label of a position that is not a target."""


class Batch(NamedTuple):
    """One micro-batch of rows; labels are aligned, so ``labels[b, t]`` is the target of ``t``."""

    tokens: mx.array  # int32 [B, T], ids in [0, V)
    labels: mx.array  # int32 [B, T], ids in [0, V) or IGNORED
    segments: mx.array  # int32 [B, T], 0 = padding, 1.. = document within the row


class Weighted(NamedTuple):
    """A sum and the weight it was taken over: the only form in which losses travel.

    Two of them add up; the division is done once, at the end.
    """

    total: mx.array  # fp32 [], sum of the losses of all label tokens
    weight: mx.array  # fp32 [], number of label tokens

    def mean(self) -> mx.array:
        """Return total / weight, fp32 []; 0 where the weight is 0."""
        return self.total / mx.maximum(self.weight, 1.0)


class StepMetrics(NamedTuple):
    """What one update reports; nothing of it is carried over to the next."""

    loss: mx.array  # fp32 [], mean over the label tokens of the update
    weight: mx.array  # fp32 [], label tokens of the update
    grad_norm: mx.array  # fp32 [], global norm before clipping
    learning_rate: mx.array  # fp32 [], the rate of this update; NaN if the transform has none
    finite: mx.array  # bool [], whether the loss and every gradient were finite


@attrs.frozen(eq=False)
class TrainState:
    """Everything a step needs and changes; arrays only."""

    # trained
    params: Params  # fp32 master values of the trainable parameters
    opt: Tree  # the transform's state
    # constant over the run
    key: mx.array  # uint32 [2], the key every draw is folded from
    # counted
    step: mx.array  # int32 [], optimizer updates applied
    skipped: mx.array  # int32 [], non-finite updates left out


@attrs.frozen(eq=False)
class RunState:
    """A training state and the run around it; what a checkpoint holds."""

    # the fold
    train: TrainState
    # where the data stands
    epoch: int = 0  # epochs completed
    position: int = 0  # micro-batches consumed in the current epoch
    # counted
    samples: int = 0  # rows trained on
    tokens: int = 0  # label tokens trained on
    epoch_total: float = 0.0  # summed loss of the label tokens of this epoch
    epoch_weight: float = 0.0  # label tokens of this epoch
    # watched
    best_loss: float | None = None  # lowest validation loss so far
    best_step: int | None = None  # the update it was reached at
    monitors: dict[str, Any] = attrs.field(factory=dict)  # state of each monitor, JSON values
    history: tuple[dict[str, Any], ...] = ()  # logged updates and evaluations; no clock values


ApplyFn = Callable[[Params, Batch, mx.array | None], mx.array]
"""``(params, batch, key) -> logits [B, T, V]``; without a key nothing is dropped out."""
LossFn = Callable[[Params, Batch, mx.array | None], Weighted]
"""``(params, batch, key) -> Weighted``: the loss of one micro-batch."""
