"""Linear layers that are fed the same input: their products, and one gradient of that input."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import mlx.core as mx
from mlx import nn

from mlxfn.models.dropout import current_scope
from mlxfn.models.layers import LoRALinear
from mlxfn.models.quantized import back_through_weight, unpacks
from mlxfn.models.slots import trainable_slots


def joint_outputs(x: mx.array, layers: Sequence[nn.Module]) -> list[mx.array]:
    """Return ``[layer(x) for layer in layers]``, with the low-rank parts computed side by side.

    Queries, keys and values, or gate and up, read one input. One product with all their
    ``lora_a`` next to each other reads it once instead of once for each; the backward pass adds
    each layer's part of the input's gradient onto the sum so far inside its product, where
    automatic differentiation makes all parts, and then adds them.

    Args:
        x: float [..., in].
        layers: Linear layers; where one is of another kind, drops out, is trained itself or
            computes in another dtype than x, they are called one by one.

    Returns:
        float [..., out] of each layer, in their order.

    Example:
        >>> x, layers = mx.ones((2, 4)), [nn.Linear(4, 3).freeze(), nn.Linear(4, 5).freeze()]
        >>> [out.shape for out in joint_outputs(x, layers)]
        [(2, 3), (2, 5)]
    """
    if not all(_is_frozen_sum(layer, x.dtype) for layer in layers):
        return [layer(x) for layer in layers]
    adapted = [layer for layer in layers if isinstance(layer, LoRALinear)]
    if len({layer.scale for layer in adapted}) > 1:
        return [layer(x) for layer in layers]
    leaves = [mx.concatenate([layer.lora_a for layer in adapted], axis=1)] if adapted else []
    leaves += [layer.lora_b for layer in adapted]
    return _Products(layers)(x, *(leaf.astype(x.dtype) for leaf in leaves))


def _is_frozen_sum(layer: nn.Module, dtype: mx.Dtype) -> bool:
    """Return whether a layer computes ``frozen(x)``, or ``frozen(x) + scale * x @ a @ b``."""
    base = _base(layer)
    if not isinstance(base, nn.Linear | nn.QuantizedLinear):
        return False
    if base.get("scales", base["weight"]).dtype != dtype or trainable_slots(base):
        return False
    if isinstance(layer, LoRALinear):
        scope = current_scope()
        return layer.dropout.p == 0 or scope is None or scope.key is None
    return layer is base


def _base(layer: nn.Module) -> nn.Module:
    return layer.linear if isinstance(layer, LoRALinear) else layer


class _Products:
    """The outputs of layers as a function of ``(x, all lora_a [in, R], lora_b [r, out], ...)``."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.bases: list[Any] = [_base(layer) for layer in layers]
        self.adapted = [i for i, layer in enumerate(layers) if isinstance(layer, LoRALinear)]
        # Asked now: the backward pass runs outside of the functional forward pass.
        self.unpacked = [unpacks(base) for base in self.bases]
        self.scale = next((layer.scale for layer in layers if isinstance(layer, LoRALinear)), 1.0)

    def __call__(self, *inputs: mx.array) -> list[mx.array]:
        function: Any = mx.custom_function(self.forward)
        function.vjp(self.backward)
        return list(function(*inputs))[: len(self.bases)]

    def forward(self, x: mx.array, *leaves: mx.array) -> list[mx.array]:
        """Return the outputs, and behind them ``scale * x @ a`` [..., R] for the backward pass."""
        outputs = [base(x) for base in self.bases]
        if not self.adapted:
            return outputs
        low = self.scale * (x @ leaves[0])
        for i, part, b in zip(self.adapted, _parts(low, leaves[1:]), leaves[1:], strict=True):
            outputs[i] = mx.addmm(outputs[i], part, b)
        return [*outputs, low]

    def backward(self, primals: Any, cotangents: Any, outputs: Any) -> Any:
        """Return the gradients of x and of the leaves."""
        if not self.adapted:
            return self._of_input(cotangents)
        x, a, *bs = primals
        rows = [cotangents[i] for i in self.adapted]
        low = self.scale * mx.concatenate([dy @ b.T for dy, b in zip(rows, bs, strict=True)], -1)
        of_bs = [
            _flat(part).T @ _flat(dy)
            for part, dy in zip(_parts(outputs[-1], bs), rows, strict=True)
        ]
        of_x = mx.addmm(self._of_input(cotangents), low, a.T)
        return [of_x, _flat(x).T @ _flat(low), *of_bs]

    def _of_input(self, cotangents: Sequence[mx.array]) -> Any:
        """Return the input's gradient through the frozen weights."""
        total: mx.array | None = None
        for base, unpacked, cotangent in zip(self.bases, self.unpacked, cotangents, strict=False):
            total = back_through_weight(base, cotangent, onto=total, unpacked=unpacked)
        return total


def _parts(low: mx.array, bs: Sequence[mx.array]) -> list[mx.array]:
    """Return each layer's columns of the low-rank product, [..., r]."""
    ends = list(accumulate(b.shape[0] for b in bs))
    return list(mx.split(low, ends[:-1], axis=-1)) if len(bs) > 1 else [low]


def _flat(rows: mx.array) -> mx.array:
    return rows.reshape(-1, rows.shape[-1])
