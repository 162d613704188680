"""Layers whose weight may be packed: their sizes, their dense weight, products with it."""

from __future__ import annotations

import sys
from typing import Any

import mlx.core as mx
from mlx import nn

from mlxfn.errors import ConfigError
from mlxfn.models.dropout import current_scope


def is_quantized(layer: nn.Module) -> bool:
    """Return whether the layer's weight is packed into integers with scales beside it.

    Example:
        >>> is_quantized(nn.Linear(32, 8)), is_quantized(nn.QuantizedLinear(32, 8, group_size=32))
        (False, True)
    """
    return "scales" in layer and hasattr(layer, "bits")


def switch_types() -> tuple[type, ...]:
    """Return mlx-lm's mixture-of-experts linear layers; none where mlx-lm is not loaded."""
    # Importing mlx-lm takes seconds, and without it no such layer can exist.
    module: Any = sys.modules.get("mlx_lm.models.switch_layers")
    return (module.SwitchLinear, module.QuantizedSwitchLinear) if module else ()


def linear_types() -> tuple[type, ...]:
    """Return the classes of layers that multiply by a weight [..., out, in]."""
    return (nn.Linear, nn.QuantizedLinear, *switch_types())


EMBEDDING_TYPES: tuple[type, ...] = (nn.Embedding, nn.QuantizedEmbedding)


def sizes(layer: nn.Module) -> tuple[int, int]:
    """Return (input size, output size) of a layer with a weight [..., out, in].

    The input size of a packed weight comes from its scales, one per group: its own last axis
    cannot be multiplied out for 3, 5 and 6 bits.

    Args:
        layer: Linear, embedding or expert layer, packed or not. An embedding's sizes are
            (dimension, rows).

    Example:
        >>> sizes(nn.QuantizedLinear(64, 8, bits=3, group_size=32))
        (64, 8)
    """
    columns = layer["scales"].shape[-1] * layer.group_size if is_quantized(layer) else None
    return columns or layer["weight"].shape[-1], layer["weight"].shape[-2]


def packing_of(layer: nn.Module) -> dict[str, Any]:
    """Return how a layer's weight is packed, as keyword arguments of MLX's functions.

    Example:
        >>> packing_of(nn.QuantizedLinear(64, 8, bits=3, group_size=32))
        {'group_size': 32, 'bits': 3, 'mode': 'affine'}
    """
    return {name: getattr(layer, name) for name in ("group_size", "bits", "mode")}


def dense_weight(layer: nn.Module) -> mx.array:
    """Return the weight [..., out, in] as floating point, unpacked where it is packed.

    Raises:
        ConfigError: The layer has a second scale for each expert (nvfp4), which MLX cannot
            unpack.

    Example:
        >>> dense_weight(nn.QuantizedLinear(64, 8, bits=5, group_size=32)).shape
        (8, 64)
    """
    if not is_quantized(layer):
        return layer["weight"]
    if layer.get("global_scale") is not None:
        raise ConfigError(
            "expert layers with a scale per expert cannot be unpacked",
            where=type(layer).__name__,
            remedy="export the adapter instead of a fused model",
        )
    return mx.dequantize(
        layer["weight"],
        layer["scales"],
        layer.get("biases"),
        **packing_of(layer),
    )


def unpacks(layer: nn.Module) -> bool:
    """Return whether a layer unpacks its weight now: it may, and a functional pass is running."""
    return getattr(layer, "unpacks", False) and current_scope() is not None


def times_weight(layer: nn.Module, x: mx.array) -> mx.array:
    """Return ``x @ weight.T`` without the layer's bias; only layers that unpack unpack it.

    Args:
        layer: Linear or embedding layer, packed or not.
        x: float [..., in].

    Returns:
        float [..., out].

    Example:
        >>> times_weight(nn.Linear(4, 3), mx.zeros((2, 4))).shape
        (2, 3)
    """
    if not is_quantized(layer):
        return x @ layer["weight"].T
    if unpacks(layer):
        return times_unpacked(layer, x)
    return mx.quantized_matmul(
        x,
        layer["weight"],
        scales=layer["scales"],
        biases=layer.get("biases"),
        transpose=True,
        **packing_of(layer),
    )


def times_unpacked(layer: nn.Module, x: mx.array) -> mx.array:
    """Return ``x @ weight.T`` with the weight unpacked for it, in the dtype of x.

    Args:
        layer: A quantized linear layer or embedding; it is frozen: only x gets a gradient.
        x: float [..., in].

    Returns:
        float [..., out].

    Example:
        >>> layer, x = nn.QuantizedLinear(64, 8), mx.ones((2, 64))
        >>> bool(mx.allclose(times_unpacked(layer, x), layer(x) - layer.bias, atol=1e-4))
        True
    """
    product: Any = mx.custom_function(lambda x: x @ _unpacked(layer, x).T)

    @product.vjp
    def backward(_: mx.array, cotangent: mx.array, __: mx.array) -> mx.array:
        return cotangent @ _unpacked(layer, cotangent)

    return product(x)


def back_through_weight(
    layer: nn.Module, cotangent: mx.array, *, onto: mx.array | None = None, unpacked: bool = False
) -> mx.array:
    """Return ``cotangent @ weight``, the gradient of the input of ``x @ weight.T``.

    Args:
        layer: Linear layer, packed or not.
        cotangent: float [..., out].
        onto: float [..., in], added to it; None: nothing.
        unpacked: Unpack a packed weight first.

    Returns:
        float [..., in].

    Example:
        >>> back_through_weight(nn.Linear(4, 3), mx.zeros((2, 3)), onto=mx.ones((2, 4))).shape
        (2, 4)
    """
    if is_quantized(layer) and not unpacked:
        product = mx.quantized_matmul(
            cotangent,
            layer["weight"],
            scales=layer["scales"],
            biases=layer.get("biases"),
            transpose=False,
            **packing_of(layer),
        )
        return product if onto is None else onto + product
    after = cotangent if onto is None else onto
    weight = _unpacked(layer, after) if is_quantized(layer) else layer["weight"]
    return cotangent @ weight if onto is None else mx.addmm(onto, cotangent, weight)


def _unpacked(layer: nn.Module, after: mx.array) -> mx.array:
    """Return the dense weight in the dtype of ``after``, unpacked once that is there."""
    # Ordered, or every layer's dense weight could be made before it is needed.
    (packed,) = mx.depends([layer["weight"]], [after])
    weight = mx.dequantize(packed, layer["scales"], layer.get("biases"), **packing_of(layer))
    return weight.astype(after.dtype)


def like(layer: nn.Module, weight: mx.array, *, dequantize: bool = False) -> nn.Module:
    """Return a layer of the same kind, bias and packing with another dense weight.

    Args:
        layer: Linear, embedding or expert layer.
        weight: float [..., out, in].
        dequantize: Leave the weight as floating point even if the layer's is packed.

    Example:
        >>> like(nn.QuantizedLinear(64, 8, bits=3), mx.zeros((8, 64))).bits
        3
    """
    dense = _dense_like(layer, weight)
    if not is_quantized(layer) or dequantize:
        return dense
    return dense.to_quantized(**packing_of(layer))


def _dense_like(layer: nn.Module, weight: mx.array) -> Any:
    if isinstance(layer, EMBEDDING_TYPES):
        dense: nn.Module = nn.Embedding.__new__(nn.Embedding)
    elif isinstance(layer, switch_types()):
        kind: Any = switch_types()[0]
        dense = kind.__new__(kind)
    else:
        dense = nn.Linear.__new__(nn.Linear)
    # __new__ and Module.__init__ alone: the layer's own __init__ would draw random weights.
    nn.Module.__init__(dense)
    dense.weight = weight
    if "bias" in layer:
        dense.bias = layer["bias"]
    return dense
