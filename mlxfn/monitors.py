"""Watching a run: pure folds over what it reports, with verdicts whose text says what to do."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import Any

import attrs

MonitorState = dict[str, Any]
"""State of a monitor: JSON values only, so that a checkpoint can hold it."""


class Verdict(enum.Enum):
    """What a monitor says after an observation."""

    CONTINUE = ""
    EARLY_STOP = (
        "The validation loss has stopped falling. The best checkpoint is kept; raise "
        "monitor.early_stopping_patience to wait longer."
    )
    DIVERGED = (
        "The training loss is rising far above its average. Lower optimizer.learning_rate, "
        "lengthen the warmup, or set monitor.on_divergence to halt or rollback."
    )
    NONFINITE = (
        "The loss or a gradient was NaN or infinite; the update was left out. If it repeats, "
        "lower optimizer.learning_rate or look at the rows named."
    )
    TOO_MANY_NONFINITE = (
        "Too many updates in a row were NaN or infinite. Lower optimizer.learning_rate, check "
        "the base model's weights and the rows named, or raise train.max_consecutive_skips."
    )


@attrs.frozen
class Monitor:
    """A fold over observations.

    Args:
        init: The state before the first observation.
        observe: ``(state, value) -> (state, verdict)``; neither state is changed.
    """

    init: Callable[[], MonitorState]
    observe: Callable[[MonitorState, float], tuple[MonitorState, Verdict]]


def early_stopping(*, patience: int, min_delta: float) -> Monitor:
    """Return the monitor of validation losses that ends a run which no longer improves.

    A NaN never counts as an improvement.

    Args:
        patience: Evaluations in a row without improvement before it stops; 0 never stops.
        min_delta: Smallest fall below the best loss that counts.

    Example:
        >>> monitor = early_stopping(patience=1, min_delta=0.0)
        >>> state, _ = monitor.observe(monitor.init(), 1.0)
        >>> monitor.observe(state, 1.0)[1].name
        'EARLY_STOP'
    """

    def observe(state: MonitorState, loss: float) -> tuple[MonitorState, Verdict]:
        best = state["best"]
        if math.isfinite(loss) and (best is None or loss < best - min_delta):
            return {"best": loss, "without_improvement": 0}, Verdict.CONTINUE
        count = state["without_improvement"] + 1
        stop = patience > 0 and count >= patience
        after = {"best": best, "without_improvement": count}
        return after, Verdict.EARLY_STOP if stop else Verdict.CONTINUE

    return Monitor(lambda: {"best": None, "without_improvement": 0}, observe)


RECENT = 10
"""Losses in the short average of :func:`divergence`."""


def divergence(*, window: int, threshold: float) -> Monitor:
    """Return the monitor of training losses that finds a run going wrong.

    It speaks when the mean of the last 10 losses is ``threshold`` times the mean of the last
    ``window``, or not a number; once, until the loss has come back.

    Args:
        window: Losses in the long average.
        threshold: How many times the long average the short one may be, > 1.

    Example:
        >>> monitor = divergence(window=100, threshold=2.0)
        >>> state, verdicts = monitor.init(), []
        >>> for loss in [1.0] * 50 + [9.0] * 10:
        ...     state, verdict = monitor.observe(state, loss)
        ...     verdicts.append(verdict.name)
        >>> verdicts.count("DIVERGED")
        1
    """

    def observe(state: MonitorState, loss: float) -> tuple[MonitorState, Verdict]:
        losses = [*state["losses"], loss][-max(window, RECENT) :]
        recent, average = sum(losses[-RECENT:]) / RECENT, sum(losses) / len(losses)
        # isfinite, because NaN compares as false and an infinite mean never exceeds itself.
        healthy = math.isfinite(average) and (len(losses) < RECENT or recent <= threshold * average)
        news = not healthy and not state["diverged"]
        after = {"losses": losses, "diverged": not healthy}
        return after, Verdict.DIVERGED if news else Verdict.CONTINUE

    return Monitor(lambda: {"losses": [], "diverged": False}, observe)


def nonfinite(*, policy: str, max_in_a_row: int) -> Monitor:
    """Return the monitor of the steps' finite flags.

    Args:
        policy: ``"skip"`` goes on, ``"halt"`` asks to stop at the first one.
        max_in_a_row: More non-finite updates in a row than this ask to stop.

    Example:
        >>> monitor = nonfinite(policy="skip", max_in_a_row=1)
        >>> state, first = monitor.observe(monitor.init(), False)
        >>> first.name, monitor.observe(state, False)[1].name
        ('NONFINITE', 'TOO_MANY_NONFINITE')
    """

    def observe(state: MonitorState, finite: float) -> tuple[MonitorState, Verdict]:
        if finite:
            return {"in_a_row": 0}, Verdict.CONTINUE
        count = state["in_a_row"] + 1
        enough = policy == "halt" or count > max_in_a_row
        return {"in_a_row": count}, Verdict.TOO_MANY_NONFINITE if enough else Verdict.NONFINITE

    return Monitor(lambda: {"in_a_row": 0}, observe)
