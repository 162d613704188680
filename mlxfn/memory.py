"""Memory: what the device holds now."""

from __future__ import annotations

from typing import NamedTuple

import mlx.core as mx


class Readings(NamedTuple):
    """What MLX holds, in GB (1e9 bytes)."""

    active_gb: float
    peak_gb: float
    cache_gb: float


def readings() -> Readings:
    """Return MLX's own counts of memory in use, at its highest, and kept for reuse."""
    return Readings(
        mx.get_active_memory() / 1e9, mx.get_peak_memory() / 1e9, mx.get_cache_memory() / 1e9
    )
