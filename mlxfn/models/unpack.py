"""Multiply by a quantized weight as it is packed, or unpack it first: whichever is faster."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import mlx.core as mx
from mlx import nn

from mlxfn.device import device_kind
from mlxfn.models.dropout import current_scope
from mlxfn.models.quantized import is_quantized, packing_of, switch_types, times_unpacked
from mlxfn.models.slots import walk

Route = Literal["packed", "unpacked"]

# Positions, and floating-point operations, of a product that is timed: milliseconds on each.
_TIMED = {"cpu": (256, 10**8), "metal": (1024, 10**10), "cuda": (4096, 2 * 10**11)}


def unpack_first(module: nn.Module) -> int:
    """Make a clone's quantized layers unpack their weight for each product, then drop it.

    ``x @ W.T`` and its backward pass ``dy @ W`` are then products of dense matrices, which
    some devices are several times faster at than at products with packed ones. A layer's weight
    is unpacked when its input is there and again when its gradient is, so that one dense weight
    exists at a time. Like :func:`mlxfn.models.remat.recompute` it acts on these layers only, and
    only inside a functional forward pass. Expert layers multiply by packed weights as before.

    Args:
        module: A clone, or a part of one.

    Returns:
        How many layers unpack.

    Example:
        >>> unpack_first(nn.Sequential(nn.QuantizedLinear(64, 8), nn.Linear(8, 8)))
        1
    """
    layers = [site.module for site in walk(module) if can_unpack(site.module)]
    for layer in layers:
        layer.__class__ = _unpacking(type(layer))
    return len(layers)


def can_unpack(layer: nn.Module) -> bool:
    """Return whether this is a layer that :func:`unpack_first` takes.

    Example:
        >>> can_unpack(nn.QuantizedLinear(64, 8)), can_unpack(nn.Linear(64, 8))
        (True, False)
    """
    kinds = (nn.QuantizedLinear, nn.QuantizedEmbedding)
    return (
        is_quantized(layer) and isinstance(layer, kinds) and not isinstance(layer, switch_types())
    )


@functools.cache
def _unpacking(cls: type[nn.Module]) -> type[nn.Module]:
    def product(self: nn.Module, x: mx.array) -> mx.array:
        y = times_unpacked(self, x)
        return y + self["bias"] if "bias" in self else y

    def routed(plain: Callable[..., mx.array]) -> Callable[..., mx.array]:
        def call(self: nn.Module, x: mx.array) -> mx.array:
            return plain(self, x) if current_scope() is None else product(self, x)

        return call

    name = "as_linear" if issubclass(cls, nn.QuantizedEmbedding) else "__call__"
    members: dict[str, Any] = {name: routed(getattr(cls, name)), "unpacks": True}
    unpacking: Any = type(f"Unpacking{cls.__name__}", (cls,), members)
    return unpacking


def faster_route(module: nn.Module, *, tokens: int, dtype: mx.Dtype) -> Route | None:
    """Return which route is faster for a model on this device, by timing both on a layer of it.

    Forward and backward product with the model's largest packed weight are timed, on a part of
    it where the device would take long.

    Args:
        module: The network.
        tokens: Positions of a micro-batch.
        dtype: The dtype it computes in.

    Returns:
        The faster one; None where nothing is packed.

    Example:
        >>> faster_route(nn.Sequential(nn.Linear(8, 8)), tokens=8, dtype=mx.float32) is None
        True
    """
    layers = [site.module for site in walk(module) if can_unpack(site.module)]
    linear = [layer for layer in layers if not isinstance(layer, nn.QuantizedEmbedding)]
    if not linear:
        return None
    largest = max(linear, key=lambda layer: layer["scales"].size)
    rows, groups = largest["scales"].shape
    inputs = groups * largest.group_size
    most, flops = _TIMED[device_kind()]
    tokens = min(tokens, most)
    part = _rows_of(largest, min(rows, max(flops // (2 * inputs * tokens), 64)))
    x = mx.random.normal((tokens, inputs), dtype=dtype, key=mx.random.key(0))
    mx.eval(x, part.parameters())
    packed = _seconds(lambda x: _packed(part, x), x)
    unpacked = _seconds(lambda x: times_unpacked(part, x), x)
    return "unpacked" if unpacked < packed else "packed"


def _rows_of(layer: nn.Module, rows: int) -> nn.Module:
    """Return a layer with the first rows of this one's weight."""
    kind: Any = type(layer)
    part: Any = kind.__new__(kind)
    nn.Module.__init__(part)
    for name in ("weight", "scales", "biases"):
        if layer.get(name) is not None:
            part[name] = mx.contiguous(layer[name][:rows])
    vars(part).update(packing_of(layer))
    return part


def _packed(layer: nn.Module, x: mx.array) -> mx.array:
    return mx.quantized_matmul(
        x, layer["weight"], layer["scales"], layer.get("biases"), **packing_of(layer)
    )


def _seconds(product: Callable[[mx.array], mx.array], x: mx.array) -> float:
    """Return the time of a product and its backward pass: the median of three, after one more."""
    both = mx.value_and_grad(lambda x: mx.sum(product(x)))
    times: list[float] = []
    for _ in range(4):
        start = time.perf_counter()
        mx.eval(both(x))
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
