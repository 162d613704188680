"""How long an update will take: the work it is, at the speeds that the device shows."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import attrs
import mlx.core as mx

from mlxfn.device import device_kind
from mlxfn.memory import Shape, Workload, layer_values, recomputed_layers

# Rows of a product and values of a copy: milliseconds on each.
_PROBE = {"cpu": (256, 1 << 24), "metal": (1024, 1 << 24), "cuda": (4096, 1 << 28)}
# What the parts of a step reach of the speed of a plain product or copy, fitted to a step of a
# 7 B model: attention's forward and backward kernels, and passes over each kept activation.
_ATTENTION = 0.4
_PASSES = 5
_RANK = 16  # of the narrow product that is timed


@attrs.frozen
class Rates:
    """Speeds of a device.

    Args:
        product: Floating-point operations per second of a dense product.
        bandwidth: Bytes per second that an elementwise operation reads and writes.
        unpacking: Weights per second that are unpacked; infinite where none is.
        low_rank: Values per second that a product with a low-rank matrix reads.
    """

    product: float
    bandwidth: float
    unpacking: float = float("inf")
    low_rank: float = float("inf")


@functools.cache
def rates(dtype: str, bits: int | None = None) -> Rates:
    """Return the device's speeds, from a product, a copy and an unpacking of milliseconds each.

    Args:
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        bits: Of the packed weights, if there are any.

    Example:
        >>> rates("float32").product > 1e8
        True
    """
    kind: Any = getattr(mx, dtype)
    rows, values = _PROBE[device_kind()]
    a = mx.random.normal((rows, rows), dtype=kind, key=mx.random.key(0))
    b = mx.random.normal((rows, rows), dtype=kind, key=mx.random.key(1))
    narrow = mx.contiguous(b[:, :_RANK])
    flat = mx.zeros((values,), kind)
    mx.eval(a, b, narrow, flat)
    unpacking = float("inf")
    if bits:
        packed = mx.quantize(b, 64, bits)
        mx.eval(packed)
        unpacking = b.size / seconds_of(lambda: mx.dequantize(*packed, 64, bits))
    return Rates(
        product=2 * rows**3 / seconds_of(lambda: a @ b),
        bandwidth=2 * flat.nbytes / seconds_of(lambda: flat + 1),
        unpacking=unpacking,
        low_rank=rows**2 / seconds_of(lambda: a @ narrow),
    )


def seconds_of(make: Callable[[], mx.array]) -> float:
    """Return the time to evaluate an array: the median of three, after one more.

    On a GPU eight are evaluated together, because a single one is mostly waiting.

    Example:
        >>> seconds_of(lambda: mx.ones(4)) > 0
        True
    """
    times: list[float] = []
    count = 1 if device_kind() == "cpu" else 8
    for _ in range(4):
        start = time.perf_counter()
        mx.eval([make() for _ in range(count)])
        times.append((time.perf_counter() - start) / count)
    return statistics.median(times[1:])


def predict_seconds(
    shape: Shape,
    work: Workload,
    speeds: Rates,
    *,
    remat: str | int = "none",
    lean: str = "none",
    frozen: bool = True,
) -> float:
    """Return how long one update takes.

    Products with the weights: 2 operations for each weight and token in the forward pass, 2
    more in the backward pass, another 2 where the weights themselves have gradients, and again
    those that are recomputed. Attention over half of all pairs of positions. Elementwise work
    by the bytes of the activations, the three products of a low-rank update by the inputs and
    outputs they read, and quantized weights that are unpacked for each product.

    Args:
        shape: Sizes of the decoder.
        work: What an update is.
        speeds: Of the device.
        remat: As in :func:`mlxfn.memory.estimate`.
        lean: As there.
        frozen: Whether the base has no gradients of its own.

    Example:
        >>> llama = Shape(4096, 32, 14336, 32, 8, 128, 32768)
        >>> work = Workload(15 * 10**9, 10**7, 2, 2048, 2, fused_attention=True, chunk=1024)
        >>> 0.2 < predict_seconds(llama, work, Rates(6.8e14, 4.3e12)) < 0.3
        True
    """
    passes = shape.layers * (2 if frozen else 3)
    again = recomputed_layers(shape, remat)
    mlp = shape.hidden * shape.intermediate
    weights = passes * shape.layer_weights + again * (shape.layer_weights - mlp)
    weights += 2 * mlp * shape.layers if remat == "mlp" else 0
    head = (2 if frozen else 3) * shape.hidden * shape.vocab
    products = 2.0 * work.tokens * (weights + head)
    pairs = work.batch_size * work.length**2 / 2
    forward = 4 * pairs * shape.queries
    repeats = shape.layers * 3.5 + again + (shape.layers if lean == "all" else 0)
    kept = layer_values(shape, work, lean="mlp") * work.dtype_bytes
    elementwise = kept * work.tokens * (_PASSES * shape.layers + _PASSES / 3 * again)
    unpacked = (weights + head) if work.unpacked else 0
    once = (
        products / speeds.product
        + forward * repeats / (_ATTENTION * speeds.product)
        + elementwise / speeds.bandwidth
        + unpacked / speeds.unpacking
        + 3.0 * work.tokens * work.low_rank / speeds.low_rank
    )
    return once * work.accumulation
