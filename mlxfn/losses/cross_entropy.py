"""Cross-entropy over label tokens, in fp32 whatever the logits are."""

from __future__ import annotations

import mlx.core as mx

from mlxfn.device import device_kind
from mlxfn.state import IGNORED, Weighted


def cross_entropy(logits: mx.array, labels: mx.array, *, label_smoothing: float = 0.0) -> Weighted:
    """Return the summed cross-entropy of the label tokens and how many there are.

    With ``p = softmax(logits)``, smoothing ``s`` and ``V`` classes, each label token adds
    ``(1 - s) * -log p[label] + s * mean over V of -log p`` (Szegedy et al., 2016, in the
    form of PyTorch and Hugging Face). Positions labelled -100 add nothing.

    Args:
        logits: float [..., V], any float dtype.
        labels: int32 [...], in [0, V) or -100; aligned, nothing is shifted here.
        label_smoothing: s, in [0, 1).

    Returns:
        Total fp32 [] and weight fp32 []; both are 0 where nothing is labelled.

    Example:
        >>> loss = cross_entropy(mx.zeros((1, 2, 4)), mx.array([[3, -100]]))
        >>> f"{loss.total.item():.4f} {loss.weight.item()}"
        '1.3863 1.0'
    """
    mask = labels != IGNORED
    # -100 must never reach the gather: an index outside [0, V) is memory-unsafe.
    safe_labels = mx.where(mask, labels, 0)
    logits = logits.astype(mx.float32)
    normalizer = _log_sum_exp(logits) if device_kind() == "cpu" else mx.logsumexp(logits, axis=-1)
    picked = mx.take_along_axis(logits, safe_labels[..., None], axis=-1).squeeze(-1)
    loss = normalizer - picked
    if label_smoothing:
        uniform = normalizer - mx.mean(logits, axis=-1)
        loss = (1.0 - label_smoothing) * loss + label_smoothing * uniform
    # where, not a product: a position without a label may hold inf, and inf * 0 is NaN.
    total = mx.sum(mx.where(mask, loss, 0.0))
    return Weighted(total, mx.sum(mask).astype(mx.float32))


def _log_sum_exp(logits: mx.array) -> mx.array:
    """Return ``log sum exp`` over the last axis of fp32 [..., V], as operations that compile.

    ``mx.logsumexp`` takes an exponential at a time on a CPU, and its gradient takes them all
    again; here they are vectorised, and the gradient is what the sum was made of. A GPU has a
    kernel for it, which reads the logits less often.
    """
    peak = mx.stop_gradient(mx.max(logits, axis=-1, keepdims=True))
    # A row of -inf, or with an inf in it: inf - inf is NaN, where inf itself is the answer.
    peak = mx.where(mx.isfinite(peak), peak, 0.0)
    total = mx.sum(mx.exp(logits - peak), axis=-1, keepdims=True)
    return (mx.log(total) + peak).squeeze(-1)
