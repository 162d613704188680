"""Low-rank adapter layers, with the names and shapes that mlx-lm gives its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from mlxfn.models.dropout import KeyedDropout
from mlxfn.models.quantized import dense_weight, like, sizes


def uniform(key: mx.array, shape: Sequence[int], size: int) -> mx.array:
    """Return fp32 values in ``[-1/sqrt(size), 1/sqrt(size))``: Kaiming's with a = sqrt(5).

    Args:
        key: uint32 [2].
        shape: Shape of the result.
        size: Number of inputs.

    He et al., "Delving deep into rectifiers", ICCV 2015; the choice of PEFT and mlx-lm.
    """
    bound = 1 / math.sqrt(size)
    return mx.random.uniform(-bound, bound, shape, key=key)


def low_rank(x: mx.array, a: mx.array, b: mx.array, scale: float) -> mx.array:
    """Return ``scale * x @ a @ b`` in the dtype of x, whatever the masters are kept in.

    Args:
        x: float [..., in].
        a: fp32 [in, r].
        b: fp32 [r, out].
        scale: Factor; it multiplies the r columns in between, the narrowest place.

    Returns:
        [..., out] in the dtype of x.
    """
    return (scale * (x @ a.astype(x.dtype))) @ b.astype(x.dtype)


def plus_low_rank(y: mx.array, x: mx.array, a: mx.array, b: mx.array, scale: float) -> mx.array:
    """Return ``y + scale * x @ a @ b``, in the dtype of y and without the second term alone.

    Args:
        y: float [..., out].
        x: float [..., in].
        a: fp32 [in, r].
        b: fp32 [r, out].
        scale: As in :func:`low_rank`.
    """
    if x.dtype != y.dtype:
        return y + low_rank(x, a, b, scale).astype(y.dtype)
    return mx.addmm(y, scale * (x @ a.astype(x.dtype)), b.astype(x.dtype))


class LoRALinear(nn.Module):
    """A frozen linear layer plus ``scale * dropout(x) @ lora_a @ lora_b``.

    Args:
        base: Linear layer, packed or not.
        rank: Inner size r.
        scale: Factor of the update.
        dropout: Applied to the update's input.
        key: uint32 [2], for the initial ``lora_a``; ``lora_b`` starts at zero.

    Example:
        >>> base = nn.Linear(4, 3)
        >>> layer = LoRALinear(base, 2, 2.0, KeyedDropout(0.0, 0), mx.random.key(0))
        >>> x = mx.ones((1, 4))
        >>> bool(mx.array_equal(layer(x), base(x)))
        True

    Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022.
    """

    leaves = ("lora_a", "lora_b")

    def __init__(
        self, base: nn.Module, rank: int, scale: float, dropout: KeyedDropout, key: mx.array
    ) -> None:
        super().__init__()
        inputs, outputs = sizes(base)
        self.linear = base
        self.dropout = dropout
        self.scale = scale
        self.lora_a = uniform(key, (inputs, rank), inputs)  # fp32 [in, r]
        self.lora_b = mx.zeros((rank, outputs))  # fp32 [r, out]

    def __call__(self, x: mx.array) -> mx.array:
        """Return the adapted output [..., out] for x [..., in], in the base's dtype."""
        y = self.linear(x)
        return plus_low_rank(y, self.dropout(x), self.lora_a, self.lora_b, self.scale)

    def fuse(self, *, dequantize: bool = False) -> nn.Module:
        """Return one plain layer that computes the same without dropout.

        Args:
            dequantize: Keep the sum as floating point; else a packed base is packed again.
        """
        weight = dense_weight(self.linear)
        fused = weight.astype(mx.float32) + self.scale * (self.lora_a @ self.lora_b).T
        return like(self.linear, fused.astype(weight.dtype), dequantize=dequantize)


class LoRASwitchLinear(nn.Module):
    """Frozen expert layers, each with its own low-rank update.

    Args:
        base: mlx-lm's SwitchLinear or QuantizedSwitchLinear.
        rank: Inner size r.
        scale: Factor of the update.
        dropout: Applied to the update's input.
        key: uint32 [2], for the initial ``lora_a``.
    """

    leaves = ("lora_a", "lora_b")

    def __init__(
        self, base: nn.Module, rank: int, scale: float, dropout: KeyedDropout, key: mx.array
    ) -> None:
        super().__init__()
        inputs, outputs = sizes(base)
        experts = base["weight"].shape[0]
        self.linear = base
        self.dropout = dropout
        self.scale = scale
        self.lora_a = uniform(key, (experts, rank, inputs), inputs)  # fp32 [E, r, in]
        self.lora_b = mx.zeros((experts, outputs, rank))  # fp32 [E, out, r]

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """Return each row through its expert; the arguments are those of the base."""
        y = self.linear(x, indices, sorted_indices=sorted_indices)
        z = self.dropout(x)
        for leaf in (self.lora_a, self.lora_b):
            z = mx.gather_mm(
                z,
                leaf.astype(x.dtype).swapaxes(-1, -2),
                rhs_indices=indices,
                sorted_indices=sorted_indices,
            )
        return y + (self.scale * z).astype(y.dtype)

    def fuse(self, *, dequantize: bool = False) -> nn.Module:
        """Return plain expert layers that compute the same without dropout."""
        weight = dense_weight(self.linear)
        fused = weight.astype(mx.float32) + self.scale * (self.lora_b @ self.lora_a)
        return like(self.linear, fused.astype(weight.dtype), dequantize=dequantize)


class LoRAEmbedding(nn.Module):
    """A frozen embedding plus ``scale * lora_a[ids] @ lora_b``; also as a tied output head.

    Args:
        base: Embedding, packed or not.
        rank: Inner size r.
        scale: Factor of the update.
        dropout: Applied to the update (to the input, where it serves as a head).
        key: uint32 [2], for the initial ``lora_a``.
    """

    leaves = ("lora_a", "lora_b")

    def __init__(
        self, base: nn.Module, rank: int, scale: float, dropout: KeyedDropout, key: mx.array
    ) -> None:
        super().__init__()
        dimension, rows = sizes(base)
        self.embedding: Any = base
        self.dropout = dropout
        self.scale = scale
        self.lora_a = uniform(key, (rows, rank), rows)  # fp32 [V, r]
        self.lora_b = mx.zeros((rank, dimension))  # fp32 [r, D]

    def __call__(self, ids: mx.array) -> mx.array:
        """Return the adapted rows [..., D] of ids int32 [...]."""
        y = self.embedding(ids)
        z = self.dropout(self.lora_a[ids].astype(y.dtype) @ self.lora_b.astype(y.dtype))
        return y + (self.scale * z).astype(y.dtype)

    def as_linear(self, x: mx.array) -> mx.array:
        """Return ``x @ W.T`` [..., V] with the adapted table W, for x [..., D]."""
        y = self.embedding.as_linear(x)
        return plus_low_rank(y, self.dropout(x), self.lora_b.T, self.lora_a.T, self.scale)

    def fuse(self, *, dequantize: bool = False) -> nn.Module:
        """Return one plain embedding that computes the same without dropout."""
        weight = dense_weight(self.embedding)
        fused = weight.astype(mx.float32) + self.scale * (self.lora_a @ self.lora_b)
        return like(self.embedding, fused.astype(weight.dtype), dequantize=dequantize)
