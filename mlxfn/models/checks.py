"""What is verified once, on the model itself, before a run relies on it."""

from __future__ import annotations

import mlx.core as mx

from mlxfn.errors import ConfigError
from mlxfn.models.adapter import Adapter
from mlxfn.state import Batch

# The largest share of the logits' range that two orders of the same sums may differ by.
TOLERANCE = {mx.float32: 1e-3, mx.float16: 2e-2, mx.bfloat16: 1e-1}
# Only rounding may leak between documents, whatever the precision: masked terms are zeros.
_LEAK = 1e-6


def check_packing(adapter: Adapter, *, length: int = 12) -> None:
    """Verify on random tokens that packed documents get the logits they get alone.

    Two things have to hold: other tokens in one document leave the other document's logits
    as they are, and the logits equal those of the document in a row of its own.

    Args:
        adapter: An adapter with ``packed=True``.
        length: Tokens in each document.

    Raises:
        ConfigError: The model does not keep documents apart.
    """
    try:
        leak, error, dtype = _measure(adapter, length)
    except (TypeError, AttributeError, ValueError, IndexError, NotImplementedError) as problem:
        # A state-space model, for one, asks its cache for things that no mask can stand for.
        raise _refusal(
            adapter, f"its layers do not take an attention mask ({problem})"
        ) from problem
    if not leak <= _LEAK:
        raise _refusal(adapter, f"one document changes another's logits by {leak:.1e}")
    if not error <= TOLERANCE[dtype]:
        raise _refusal(adapter, f"packed and separate logits differ by {error:.1e} of their range")


def _measure(adapter: Adapter, length: int) -> tuple[float, float, mx.Dtype]:
    """Return the leak and the error, as shares of the logits' range, and their dtype."""
    draw = [
        mx.random.randint(0, adapter.model.vocab_size, (1, length), key=mx.random.key(n))
        for n in range(3)
    ]
    first, other, second = draw
    packed = _logits(adapter, first, second)[:, length:]
    beside = _logits(adapter, other, second)[:, length:]
    alone = _logits(adapter, second)
    scale = mx.maximum(mx.max(mx.abs(alone)), 1e-6)
    leak = mx.max(mx.abs(packed - beside)) / scale
    error = mx.max(mx.abs(packed - alone)) / scale
    return leak.item(), error.item(), alone.dtype  # type: ignore[return-value]


def _logits(adapter: Adapter, *documents: mx.array) -> mx.array:
    """Return the logits of a row of documents, run beside a row that is one long document."""
    tokens = mx.concatenate(list(documents), axis=1)
    numbers = [mx.full(doc.shape, n, mx.int32) for n, doc in enumerate(documents, 1)]
    segments = mx.concatenate(numbers, axis=1)
    # With one row, or two cut alike, a model that gives rows each other's masks would pass.
    rows = [mx.concatenate([tokens] * 2), mx.concatenate([segments, mx.ones_like(segments)])]
    return adapter.apply(adapter.params, Batch(rows[0], rows[0], rows[1]), None)[:1]


def _refusal(adapter: Adapter, why: str) -> ConfigError:
    kind = adapter.model.config.get("model_type", type(adapter.model.module).__name__)
    return ConfigError(
        "packing is not exact for this model",
        where="data.packing",
        got=f"{kind}: {why}",
        expected="attention that stays within documents",
        remedy="data.packing = false; length buckets keep the padding small",
    )
