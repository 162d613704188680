"""What MLX computes on: the one place that tells a CPU, Metal and CUDA apart."""

from __future__ import annotations

from typing import Literal

import mlx.core as mx


def device_kind() -> Literal["cpu", "metal", "cuda"]:
    """Return what MLX computes on by default.

    Example:
        >>> device_kind() in {"cpu", "metal", "cuda"}
        True
    """
    if mx.default_device().type != mx.gpu:
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"
