"""Weight-decomposed low-rank layers: a learned magnitude times a normalised direction."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn

from mlxfn.models.dropout import KeyedDropout
from mlxfn.models.layers import plus_low_rank, uniform
from mlxfn.models.quantized import dense_weight, like, sizes, times_weight


def squared_norms(weight: mx.array) -> mx.array:
    """Return the squared L2 norm of every row, fp32 [rows].

    Args:
        weight: float [rows, columns].

    Example:
        >>> squared_norms(mx.array([[3.0, 4.0], [0.0, 1.0]]))
        array([25, 1], dtype=float32)
    """
    return mx.sum(mx.square(weight.astype(mx.float32)), axis=-1)


def adapted_norms(
    norms: mx.array, product: mx.array, a: mx.array, b: mx.array, scale: float
) -> mx.array:
    """Return the row norms of ``W + scale * (a @ b).T`` without forming that matrix.

    By ``|w + s u|^2 = |w|^2 + 2 s <w, u> + s^2 |u|^2``, with u in the span of r columns.

    Args:
        norms: Squared row norms of W, fp32 [out].
        product: ``a.T @ W.T``, fp32 [r, out].
        a: fp32 [in, r].
        b: fp32 [r, out].
        scale: s.

    Returns:
        fp32 [out].

    Example:
        >>> w, a, b = mx.ones((3, 2)), mx.ones((2, 1)), mx.ones((1, 3))
        >>> adapted_norms(squared_norms(w), a.T @ w.T, a, b, 1.0)
        array([2.82843, 2.82843, 2.82843], dtype=float32)
    """
    cross = mx.sum(b * product, axis=0)
    own = mx.sum(b * ((a.T @ a) @ b), axis=0)
    # Rounding can take a row that cancels below zero; it must not become NaN.
    return mx.sqrt(mx.maximum(norms + 2 * scale * cross + scale * scale * own, 1e-20))


class DoRALinear(nn.Module):
    """A linear layer whose rows are ``m * (W + scale * (a @ b).T) / |W + scale * (a @ b).T|``.

    The norm below is a constant for the gradient; the bias is added outside.

    Args:
        base: Linear layer, packed or not.
        rank: Inner size r.
        scale: Factor of the update.
        dropout: Applied to the update's input.
        key: uint32 [2], for the initial ``lora_a``; ``m`` starts as the row norms of W.

    Example:
        >>> base = nn.Linear(4, 3)
        >>> layer = DoRALinear(base, 2, 2.0, KeyedDropout(0.0, 0), mx.random.key(0))
        >>> x = mx.ones((1, 4))
        >>> bool(mx.allclose(layer(x), base(x), atol=1e-6))
        True

    Liu et al., "DoRA: weight-decomposed low-rank adaptation", ICML 2024.
    """

    leaves = ("lora_a", "lora_b", "m")

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
        # The underscore keeps this constant out of the parameters.
        self._norms = squared_norms(dense_weight(base))  # fp32 [out]
        self.m = mx.sqrt(self._norms)  # fp32 [out]

    def __call__(self, x: mx.array) -> mx.array:
        """Return the adapted output [..., out] for x [..., in], in the base's dtype."""
        y = times_weight(self.linear, x)
        y = plus_low_rank(y, self.dropout(x), self.lora_a, self.lora_b, self.scale)
        y = (self.m / self.row_norms()).astype(y.dtype) * y
        return y + self.linear["bias"] if "bias" in self.linear else y

    def row_norms(self) -> mx.array:
        """Return the row norms of the adapted weight, fp32 [out]; no gradient flows through."""
        a, b = mx.stop_gradient(self.lora_a), mx.stop_gradient(self.lora_b)
        product = times_weight(self.linear, a.T)
        return mx.stop_gradient(adapted_norms(self._norms, product, a, b, self.scale))

    def fuse(self, *, dequantize: bool = False) -> nn.Module:
        """Return one plain layer that computes the same without dropout."""
        weight = dense_weight(self.linear)
        fused = weight.astype(mx.float32) + self.scale * (self.lora_a @ self.lora_b).T
        fused = (self.m / mx.linalg.norm(fused, axis=1))[:, None] * fused
        return like(self.linear, fused.astype(weight.dtype), dequantize=dequantize)


class DoRAEmbedding(nn.Module):
    """The same decomposition for the rows of an embedding; also as a tied output head.

    Args:
        base: Embedding, not packed (mlx-lm has no packed counterpart to load it into).
        rank: Inner size r.
        scale: Factor of the update.
        dropout: Applied to the update (to the input, where it serves as a head).
        key: uint32 [2], for the initial ``lora_a``.
    """

    leaves = ("lora_a", "lora_b", "m")

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
        self._norms = squared_norms(dense_weight(base))  # fp32 [V]
        self.m = mx.sqrt(self._norms)  # fp32 [V]

    def __call__(self, ids: mx.array) -> mx.array:
        """Return the adapted rows [..., D] of ids int32 [...]."""
        y = self.embedding(ids)
        z = self.scale * (self.lora_a[ids] @ self.lora_b)
        norms = mx.stop_gradient(mx.linalg.norm(y.astype(mx.float32) + z, axis=-1))
        out = y + self.dropout(z).astype(y.dtype)
        return (self.m[ids] / norms).astype(y.dtype)[..., None] * out

    def as_linear(self, x: mx.array) -> mx.array:
        """Return ``x @ W.T`` [..., V] with the adapted table W, for x [..., D]."""
        y = self.embedding.as_linear(x)
        y = plus_low_rank(y, self.dropout(x), self.lora_b.T, self.lora_a.T, self.scale)
        return (self.m / self.row_norms()).astype(y.dtype) * y

    def row_norms(self) -> mx.array:
        """Return the row norms of the adapted table, fp32 [V]; no gradient flows through."""
        a, b = mx.stop_gradient(self.lora_b.T), mx.stop_gradient(self.lora_a.T)
        product = times_weight(self.embedding, a.T)
        return mx.stop_gradient(adapted_norms(self._norms, product, a, b, self.scale))

    def fuse(self, *, dequantize: bool = False) -> nn.Module:
        """Return one plain embedding that computes the same without dropout."""
        weight = dense_weight(self.embedding)
        fused = weight.astype(mx.float32) + self.scale * (self.lora_a @ self.lora_b)
        fused = (self.m / mx.linalg.norm(fused, axis=1))[:, None] * fused
        return like(self.embedding, fused.astype(weight.dtype), dequantize=dequantize)
