"""The loss over a whole split: a fold of Weighted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import attrs
import mlx.core as mx

from mlxfn.state import Batch, LossFn, Weighted
from mlxfn.tree import Params

Evaluate = Callable[[Params, Iterable[Batch]], "Evaluation"]
"""``(params, batches) -> Evaluation``."""

LARGEST_EXPONENT = math.log(1e30)
"""Perplexities are capped here, where they have long stopped to mean anything."""


@attrs.frozen
class Evaluation:
    """The loss of a split."""

    total: float  # summed loss of all label tokens
    weight: float  # label tokens

    @property
    def loss(self) -> float:
        """Mean loss per label token; NaN where nothing is labelled."""
        return self.total / self.weight if self.weight else math.nan

    @property
    def perplexity(self) -> float:
        """``exp(loss)``, capped at 1e30."""
        return math.exp(min(self.loss, LARGEST_EXPONENT))


def make_evaluate(loss_fn: LossFn, *, compiled: bool = True) -> Evaluate:
    """Return the function that evaluates parameters on batches.

    No key is given to the loss, so nothing is dropped out and nothing is drawn. Sums are added
    up in float64 on the host, so that the value does not depend on the batch size.

    Args:
        loss_fn: ``(params, batch, key) -> Weighted``.
        compiled: Compile the loss, once per shape.

    Returns:
        ``(params, batches) -> Evaluation``.

    Example:
        >>> from mlxfn.losses import causal_lm_loss
        >>> loss_fn = causal_lm_loss(lambda params, batch, key: params["table"][batch.tokens])
        >>> ids = mx.array([[0, 1]])
        >>> evaluate = make_evaluate(loss_fn, compiled=False)
        >>> round(evaluate({"table": mx.zeros((2, 2))}, [Batch(ids, ids, ids)]).perplexity, 3)
        2.0
    """

    def batch_loss(params: Params, batch: Batch) -> Weighted:
        return loss_fn(params, batch, None)

    run = mx.compile(batch_loss) if compiled else batch_loss

    def evaluate(params: Params, batches: Iterable[Batch]) -> Evaluation:
        total = weight = 0.0
        for batch in batches:
            loss = run(params, batch)
            total += float(loss.total)
            weight += float(loss.weight)
        return Evaluation(total, weight)

    return evaluate
