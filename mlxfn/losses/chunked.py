"""Cross-entropy from hidden states, with the logits of a few positions at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from mlxfn.losses.cross_entropy import cross_entropy
from mlxfn.state import IGNORED, Weighted


def chunked_cross_entropy(
    hidden: mx.array,
    labels: mx.array,
    head: Callable[..., mx.array],
    weights: Sequence[mx.array] = (),
    *,
    chunk_size: int = 1024,
    label_smoothing: float = 0.0,
    gradient: bool = True,
) -> Weighted:
    """Return what :func:`cross_entropy` returns of ``head(hidden)``, without the full logits.

    The gradients are taken chunk by chunk in the forward pass, where the chunk's logits exist
    anyway, and only scaled in the backward pass. They reach the hidden states and ``weights``,
    and nothing else that the head closes over.

    Args:
        hidden: float [B, T, D].
        labels: int32 [B, T], in [0, V) or -100.
        head: ``(hidden [n, D], *weights) -> logits [n, V]``.
        weights: The head's trainable arrays; none for a frozen head.
        chunk_size: Positions whose logits exist at a time.
        label_smoothing: As in :func:`cross_entropy`.
        gradient: Whether one will be asked for. Without it the forward pass computes none,
            and one that is asked for all the same is right, but holds all logits.

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
    targets = labels.reshape(-1)

    def chunk_loss(start: int, rows: mx.array, weights: Sequence[mx.array]) -> mx.array:
        part = targets[start : start + chunk_size]
        return cross_entropy(head(rows, *weights), part, label_smoothing=label_smoothing).total

    value_and_grad = mx.value_and_grad(chunk_loss, argnums=(1, 2))

    def forward(rows: mx.array, *weights: mx.array) -> tuple[mx.array, ...]:
        flat = rows.reshape(-1, rows.shape[-1])
        total, of_rows = mx.array(0.0), []
        of_weights = [mx.zeros_like(weight) for weight in weights]
        for start in range(0, flat.shape[0], chunk_size):
            part = flat[start : start + chunk_size]
            if start:
                # Ordered after all of the chunk before it, so that only one chunk's logits are
                # alive: a sum that may wait for the end keeps what it is the sum of.
                (part,) = mx.depends([part], [of_rows[-1], total, *of_weights])
            loss, (of_part, more) = value_and_grad(start, part, list(weights))
            total = total + loss
            of_rows.append(of_part)
            of_weights = [a + b for a, b in zip(of_weights, more, strict=True)]
        return total, mx.concatenate(of_rows).reshape(rows.shape), *of_weights

    def value() -> mx.array:
        flat, total = hidden.reshape(-1, hidden.shape[-1]), mx.array(0.0)
        for start in range(0, targets.size, chunk_size):
            (part,) = mx.depends([flat[start : start + chunk_size]], [total])
            total = total + chunk_loss(start, part, weights)
        return total

    weight = mx.sum(labels != IGNORED).astype(mx.float32)
    if not gradient:
        return Weighted(value(), weight)

    loss_and_gradients: Any = mx.custom_function(forward)

    @loss_and_gradients.vjp
    def backward(_: Any, cotangents: Any, outputs: Any) -> Any:
        scaled = [(out * cotangents[0]).astype(out.dtype) for out in outputs[1:]]
        return scaled if weights else scaled[0]  # a single input's gradient is handed over bare

    outputs: Any = loss_and_gradients(hidden, *weights)
    return Weighted(outputs[0], weight)
