"""Laws of learning-rate schedules, over every update of a run and beyond."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx

from mlxfn.testing.law import require
from mlxfn.transforms.schedules import Schedule


def rates(schedule: Schedule, first: int, last: int) -> list[float]:
    """Return the rates of the updates ``first`` to ``last``, both included.

    Example:
        >>> from mlxfn.transforms import warmup_linear
        >>> rates(warmup_linear(1.0, warmup=0, total=4, min_ratio=0.0), 1, 4)
        [0.75, 0.5, 0.25, 0.0]
    """
    numbers = mx.arange(first, last + 1, dtype=mx.int32)
    # One by one, as a step asks: a schedule need not take more than a 0-d array.
    values = [schedule(number) for number in numbers]
    mx.eval(values)
    return [float(value) for value in values]


def schedule_is_bounded(schedule: Schedule, *, peak: float, total: int) -> float:
    """Every rate, also after the end of the run, is finite and between 0 and the peak.

    Args:
        schedule: Update number int32 [] -> rate.
        peak: The highest rate.
        total: Updates of the run.

    Returns:
        The highest rate as a share of the peak.

    Raises:
        LawError: A rate is outside.

    Example:
        >>> from mlxfn.transforms import warmup_cosine
        >>> schedule_is_bounded(warmup_cosine(1.0, warmup=2, total=9), peak=1.0, total=9)
        1.0
    """
    found = rates(schedule, 1, total + 20)
    for number, rate in enumerate(found, 1):
        inside = math.isfinite(rate) and 0 <= rate <= peak * (1 + 1e-6)
        require(inside, "a rate is outside [0, peak]", update=number, rate=rate, peak=peak)
    return max(found) / peak


def schedule_counts(schedule: Schedule, *, total: int) -> float:
    """No update has the rate 0: one that has is an update thrown away.

    Args:
        schedule: Update number int32 [] -> rate.
        total: Last update that has to count; one less than the run has, where the schedule is
            meant to end at 0.

    Returns:
        The lowest rate.

    Raises:
        LawError: An update has the rate 0, or less.

    Example:
        >>> from mlxfn.transforms import constant
        >>> schedule_counts(constant(0.5), total=10)
        0.5
    """
    found = rates(schedule, 1, total) if total > 0 else [math.inf]
    for number, rate in enumerate(found, 1):
        require(
            rate > 0, "an update that is counted has no learning rate", update=number, rate=rate
        )
    return min(found)


def schedule_is_continuous(schedule: Schedule, *, peak: float, warmup: int, total: int) -> float:
    """Neighbouring updates have neighbouring rates: no jump where warmup and decay join.

    The rate rises by at most ``peak / warmup`` an update and falls by at most what half a cosine
    over the rest falls by, ``peak * pi / 2 / (total - warmup)``.

    Args:
        schedule: Update number int32 [] -> rate.
        peak: The highest rate.
        warmup: Updates of the warmup.
        total: Updates of the run.

    Returns:
        The largest jump as a share of what is allowed.

    Raises:
        LawError: There is a larger jump.

    Example:
        >>> from mlxfn.transforms import warmup_linear
        >>> rate = warmup_linear(1.0, warmup=4, total=9, min_ratio=0.0)
        >>> schedule_is_continuous(rate, peak=1.0, warmup=4, total=9) <= 1
        True
    """
    end = max(total, warmup)
    found = rates(schedule, 1, end)
    worst = 0.0
    for number in range(1, len(found)):
        jump = found[number] - found[number - 1]
        rise = peak / warmup if number < warmup else 0.0
        fall = peak * math.pi / 2 / (total - warmup) if number >= warmup else 0.0
        worst = max(worst, jump / rise if rise else 0.0, -jump / fall if fall else 0.0)
        require(
            -fall - 2e-6 * peak <= jump <= rise + 2e-6 * peak,
            "the rate jumps",
            update=number + 1,
            before=found[number - 1],
            after=found[number],
        )
    return worst


def schedule_ends(schedule: Schedule, *, warmup: int, total: int) -> float:
    """After the last update the rate stays what it is: a cosine that is not held rises again.

    A run that ends within its warmup ends at the peak; only what comes after it is constant then.

    Args:
        schedule: Update number int32 [] -> rate.
        warmup: Updates of the warmup.
        total: Updates of the run.

    Raises:
        LawError: A later rate is another one.

    Example:
        >>> from mlxfn.transforms import warmup_cosine
        >>> schedule_ends(warmup_cosine(1.0, warmup=1, total=5), warmup=1, total=5)
        0.0
    """
    end = total if total > warmup else max(total, warmup) + 1
    later = rates(schedule, end, end + 3) + rates(schedule, 2 * end + 7, 2 * end + 8)
    for rate in later:
        require(rate == later[0], "the rate changes after the end", last=later[0], later=rate)
    return 0.0


def schedule_warms_up(schedule: Schedule, *, peak: float, warmup: int) -> float:
    """Update ``i`` of the warmup has ``peak * i / warmup``, so the peak is reached once, at its end.

    Args:
        schedule: Update number int32 [] -> rate.
        peak: The highest rate.
        warmup: Updates of the warmup.

    Returns:
        The largest difference as a share of the peak.

    Raises:
        LawError: A rate of the warmup is another one.

    Example:
        >>> from mlxfn.transforms import warmup_constant
        >>> schedule_warms_up(warmup_constant(1.0, warmup=4), peak=1.0, warmup=4)
        0.0
    """
    worst = 0.0
    for number, rate in enumerate(rates(schedule, 1, warmup) if warmup else [], 1):
        worst = max(worst, abs(rate / peak - number / warmup))
        require(worst <= 1e-6, "the warmup is not linear from 1", update=number, rate=rate)
    return worst


def schedule_is_traceable(schedule: Schedule, *, number: int) -> float:
    """The rate is an fp32 scalar of the array it is given, so a compiled step can ask for it.

    Args:
        schedule: Update number int32 [] -> rate.
        number: Any update.

    Raises:
        LawError: The rate is no fp32 array of shape [].

    Example:
        >>> from mlxfn.transforms import constant
        >>> schedule_is_traceable(constant(0.5), number=3)
        0.0
    """
    rate: Any = schedule(mx.array(number, mx.int32))
    kind = f"{rate.dtype} {list(rate.shape)}" if isinstance(rate, mx.array) else type(rate).__name__
    require(kind == "mlx.core.float32 []", "a rate is no fp32 scalar", got=kind)
    return 0.0
