"""The governor: it keeps MLX within a run's memory budget, and no bit of the results knows of it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import attrs
import mlx.core as mx

from mlxfn import memory, tree
from mlxfn.memory import GB, Readings

ROOM = 0.9
"""Share of the memory that is there which a run without a budget may use."""
LIMIT = 0.96
"""Share of the budget up to which the CPU runs ahead: what is needed at once passes it (0.25 GB for
an update of a 7 B model)."""
NEAR = 0.9
"""Share of the budget from which on a peak is told."""
CACHE_SHARE = 0.9
"""Share of what arrays leave of the budget that may lie in the cache between two updates."""
BUFFERS_SHARE = 0.5
"""Share of the device's buffers that weights and state may take; an update needs the others."""

LESS = (
    "lower data.batch_size or data.max_seq_length, set train.remat = 'all', or quantize the base "
    "with model.quantize_bits = 4"
)


@attrs.frozen
class Limits:
    """What MLX is told, in bytes.

    Args:
        memory: Active memory above which the CPU waits for the device, instead of running ahead
            of it; arrays that are needed at once may pass it. Above it, the cache is given back.
        cache: Most that is kept of what arrays have freed.
        wired: What is kept resident; Metal only.
    """

    memory: int
    cache: int
    wired: int


def limits_for(budget_gb: float, *, before: Limits, recommended: int = 0) -> Limits:
    """Return the limits of a run; none is higher than MLX's own.

    Args:
        budget_gb: What the run may use, in GB.
        before: The limits as they are.
        recommended: The device's recommended working set in bytes; 0 where it has none.

    Example:
        >>> limits_for(8.0, before=Limits(memory=20 * 10**9, cache=10**9, wired=0))
        Limits(memory=7680000000, cache=1000000000, wired=0)
    """
    budget = int(budget_gb * GB)
    ahead = int(LIMIT * budget)
    return Limits(min(before.memory, ahead), min(before.cache, budget), min(recommended, budget))


def should_clear(now: Readings, budget_gb: float) -> bool:
    """Return whether the cache holds so much of what arrays leave that the next update may not fit.

    By its share and not every n updates: a cache that fits makes allocations cheap.

    Example:
        >>> full = Readings(active_gb=6.0, peak_gb=7.0, cache_gb=1.9)
        >>> should_clear(full, 8.0), should_clear(full, 10.0)
        (True, False)
    """
    return now.cache_gb > CACHE_SHARE * max(budget_gb - now.active_gb, 0.0)


@attrs.frozen
class Notice:
    """Something to tell once, with the remedy in its text."""

    kind: str  # memory_near, memory_over or buffers_near
    message: str


def judge_peak(now: Readings, budget_gb: float) -> Notice | None:
    """Say that the peak is near the budget, or over it.

    Example:
        >>> judge_peak(Readings(5.0, 7.5, 0.0), 8.0).kind, judge_peak(Readings(5.0, 7.1, 0.0), 8.0)
        ('memory_near', None)
    """
    figures = f"{now.peak_gb:.2f} GB of a budget of {budget_gb:.2f} GB"
    if now.peak_gb > budget_gb:
        message = f"The peak of memory is over the budget: {figures}. To use less, {LESS}."
        return Notice("memory_over", message)
    if now.peak_gb > NEAR * budget_gb:
        message = f"The peak of memory is near the budget: {figures}. For longer rows, {LESS}."
        return Notice("memory_near", message)
    return None


def judge_buffers(arrays: int, limit: int) -> Notice | None:
    """Say that weights and state take so many of a device's buffers that an update may lack some.

    Args:
        arrays: How many arrays live as long as the run.
        limit: How many buffers the device can have; 0 where it does not say.

    Example:
        >>> judge_buffers(300_000, 499_000).kind, judge_buffers(300_000, 0)
        ('buffers_near', None)
    """
    if not limit or arrays <= BUFFERS_SHARE * limit:
        return None
    return Notice(
        "buffers_near",
        f"The model and its state are {arrays:,} arrays, and the device can hold {limit:,} at a "
        "time, those of an update included. Train fewer modules with adapter.target_modules or "
        "adapter.num_layers.",
    )


@attrs.define(eq=False)
class Governor:
    """What watches a run's memory; made by :func:`governed`.

    Args:
        budget_gb: What the run may use, in GB.
    """

    budget_gb: float
    _waiting: list[Notice] = attrs.field(factory=list, init=False)
    _told: set[str] = attrs.field(factory=set, init=False)

    def expect(self, *held: Any) -> None:
        """Take what lives as long as the run, as trees of arrays, and count its buffers."""
        arrays = sum(1 for part in held for _ in tree.leaves(part))
        notice = judge_buffers(arrays, _device("resource_limit"))
        self._waiting += [notice] if notice else []

    def look(self) -> list[Notice]:
        """Clear the cache if that is due, and return what is to be told and was not yet."""
        now = memory.readings()
        if should_clear(now, self.budget_gb):
            mx.clear_cache()
        found = [*self._waiting, judge_peak(now, self.budget_gb)]
        news = [notice for notice in found if notice and notice.kind not in self._told]
        self._told |= {notice.kind for notice in news}
        self._waiting.clear()
        return news


@contextmanager
def governed(setting: float | str) -> Generator[Governor]:
    """Keep MLX within a budget in the block; its limits of before are put back at the end.

    The peak is counted from the start of the block.

    Args:
        setting: ``memory.budget_gb``: GB, or ``"auto"``, which leaves nearly all there is.

    Example:
        >>> with governed("auto") as governor:
        ...     governor.look()
        []
    """
    budget = float(setting) if setting != "auto" else ROOM * memory.device_memory_gb()
    recommended = _recommended()
    # MLX tells a limit only when another one is set.
    before = _set(limits_for(budget, before=Limits(0, 0, 0), recommended=recommended))
    try:
        _set(limits_for(budget, before=before, recommended=recommended))
        mx.reset_peak_memory()
        yield Governor(budget)
    finally:
        _set(before)


def _set(limits: Limits) -> Limits:
    """Set the limits and return those of before."""
    wired = mx.set_wired_limit(limits.wired) if mx.metal.is_available() else 0
    return Limits(mx.set_memory_limit(limits.memory), mx.set_cache_limit(limits.cache), wired)


def _recommended() -> int:
    return _device("max_recommended_working_set_size") if mx.metal.is_available() else 0


def _device(name: str) -> int:
    """Return a number that the default device says about itself; 0 where it says none."""
    return int(mx.device_info().get(name, 0))
