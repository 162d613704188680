"""Learning-rate schedules: pure functions of the update's number, counted from 1."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx

Schedule = Callable[[mx.array], mx.array]
"""``update number: int32 [] -> learning rate: fp32 []``; the first update is number 1."""


def _with_warmup(
    peak: float, warmup: int, total: int, min_ratio: float, shape: Callable[[mx.array], mx.array]
) -> Schedule:
    if warmup < 0 or total < 1:
        raise ValueError(f"warmup >= 0 and total >= 1 are needed, got {warmup} and {total}")
    floor = peak * min_ratio
    # A schedule that ends with its warmup has nothing left to decay over.
    span = max(total - warmup, 1)

    def schedule(step: mx.array) -> mx.array:
        step = step.astype(mx.float32)
        progress = mx.clip((step - warmup) / span, 0.0, 1.0)
        decayed = floor + (peak - floor) * shape(progress)
        rising = peak * step / max(warmup, 1)
        return mx.where(step < warmup, rising, decayed).astype(mx.float32)

    return schedule


def warmup_cosine(peak: float, *, warmup: int, total: int, min_ratio: float = 0.1) -> Schedule:
    """Return a linear warmup followed by half a cosine (Loshchilov and Hutter, 2017).

    Update ``i`` has the rate ``peak * i / warmup`` while ``i < warmup``, then
    ``min + (peak - min) * (1 + cos(pi * (i - warmup) / (total - warmup))) / 2``, and stays at
    ``min = peak * min_ratio`` after ``total``. No update has the rate 0 unless ``min_ratio`` is 0.

    Args:
        peak: Highest learning rate.
        warmup: Updates of the warmup, >= 0.
        total: Updates of the whole run, >= 1.
        min_ratio: Final rate as a share of the peak.

    Raises:
        ValueError: ``warmup`` is negative or ``total`` is less than 1.

    Example:
        >>> lr = warmup_cosine(1.0, warmup=2, total=4, min_ratio=0.0)
        >>> [round(lr(mx.array(i)).item(), 3) for i in (1, 2, 3, 4, 5)]
        [0.5, 1.0, 0.5, 0.0, 0.0]
    """
    return _with_warmup(peak, warmup, total, min_ratio, lambda x: (1.0 + mx.cos(math.pi * x)) / 2.0)


def warmup_linear(peak: float, *, warmup: int, total: int, min_ratio: float = 0.1) -> Schedule:
    """Return a linear warmup followed by a straight line down to ``peak * min_ratio``.

    The arguments and errors are those of :func:`warmup_cosine`.

    Example:
        >>> lr = warmup_linear(1.0, warmup=0, total=4, min_ratio=0.0)
        >>> [lr(mx.array(i)).item() for i in (1, 2, 4, 9)]
        [0.75, 0.5, 0.0, 0.0]
    """
    return _with_warmup(peak, warmup, total, min_ratio, lambda x: 1.0 - x)


def warmup_constant(
    peak: float, *, warmup: int, total: int = 1, min_ratio: float = 1.0
) -> Schedule:
    """Return a linear warmup after which the rate stays at its peak.

    Args:
        peak: The learning rate.
        warmup: Updates of the warmup, >= 0.
        total: Taken so that every schedule is called alike; the rate does not depend on it.
        min_ratio: Likewise.

    Example:
        >>> lr = warmup_constant(1.0, warmup=2)
        >>> [lr(mx.array(i)).item() for i in (1, 2, 100)]
        [0.5, 1.0, 1.0]
    """
    del min_ratio
    return _with_warmup(peak, warmup, max(total, 1), 1.0, mx.ones_like)


def constant(rate: float) -> Schedule:
    """Return the schedule that is always ``rate``."""
    return lambda _: mx.array(rate, mx.float32)


SCHEDULES = {"cosine": warmup_cosine, "linear": warmup_linear, "constant": warmup_constant}
"""Schedules by their name in the configuration; each takes peak, warmup, total, min_ratio."""
