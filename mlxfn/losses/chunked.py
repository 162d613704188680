"""Cross-entropy from hidden states, with the logits of a few positions at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlxfn.losses.cross_entropy import cross_entropy
from mlxfn.state import IGNORED, Weighted


def chunked_cross_entropy(
    hidden: mx.array,
    labels: mx.array,
    head: Callable[[mx.array], mx.array],
    *,
    chunk_size: int = 1024,
    label_smoothing: float = 0.0,
) -> Weighted:
    """Return what :func:`cross_entropy` returns of ``head(hidden)``, without the full logits.

    The gradient with respect to the hidden states is taken chunk by chunk in the forward
    pass, where the chunk's logits exist anyway, and only scaled in the backward pass. The
    head is frozen: no gradient reaches what it closes over.

    Args:
        hidden: float [B, T, D].
        labels: int32 [B, T], in [0, V) or -100.
        head: hidden [n, D] -> logits [n, V].
        chunk_size: Positions whose logits exist at a time.
        label_smoothing: As in :func:`cross_entropy`.

    Returns:
        Total fp32 [] and weight fp32 [].

    Example:
        >>> hidden, labels = mx.random.normal((1, 5, 4), key=mx.random.key(0)), mx.zeros((1, 5))
        >>> head = mx.random.normal((4, 7), key=mx.random.key(1))
        >>> labels = labels.astype(mx.int32)
        >>> chunks = chunked_cross_entropy(hidden, labels, lambda h: h @ head, chunk_size=2)
        >>> bool(mx.allclose(chunks.total, cross_entropy(hidden @ head, labels).total))
        True
    """
    flat_labels = labels.reshape(-1)

    def chunk_loss(rows: mx.array, targets: mx.array) -> mx.array:
        return cross_entropy(head(rows), targets, label_smoothing=label_smoothing).total

    def forward(rows: mx.array) -> tuple[mx.array, mx.array]:
        flat = rows.reshape(-1, rows.shape[-1])
        total, gradients = mx.array(0.0), []
        for start in range(0, flat.shape[0], chunk_size):
            part = flat[start : start + chunk_size]
            if gradients:
                # Ordered after all of the chunk before it, so that only one chunk's logits are
                # alive: a sum that may wait for the end keeps what it is the sum of.
                (part,) = mx.depends([part], [gradients[-1], total])
            targets = flat_labels[start : start + chunk_size]
            loss, gradient = mx.value_and_grad(chunk_loss)(part, targets)
            total = total + loss
            gradients.append(gradient)
        return total, mx.concatenate(gradients).reshape(rows.shape)

    @mx.custom_function
    def loss_and_gradient(rows: mx.array) -> tuple[mx.array, mx.array]:
        return forward(rows)

    @loss_and_gradient.vjp
    def backward(_: mx.array, cotangents: list[mx.array], outputs: list[mx.array]) -> mx.array:
        return (outputs[1] * cotangents[0]).astype(outputs[1].dtype)

    outputs: Any = loss_and_gradient(hidden)
    return Weighted(outputs[0], mx.sum(labels != IGNORED).astype(mx.float32))
