"""What a run will need, by arithmetic, and what the device says it uses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import attrs
import mlx.core as mx

from mlxfn import cgroup

GB = 1e9  # bytes; decimal, as drives and mlx-lm count
_MASTER = 4  # bytes of a trainable value, its gradient, and each optimizer moment: fp32


@attrs.frozen
class Readings:
    """Device memory, in GB (1e9 bytes).

    Args:
        active_gb: Held by arrays now.
        peak_gb: Most that was held at once; the cache is not part of it.
        cache_gb: Freed by arrays and kept for the next ones.
    """

    active_gb: float
    peak_gb: float
    cache_gb: float


def readings() -> Readings:
    """Return what the device says now.

    Example:
        >>> readings().peak_gb >= 0
        True
    """
    return Readings(
        mx.get_active_memory() / GB, mx.get_peak_memory() / GB, mx.get_cache_memory() / GB
    )


@attrs.frozen
class Shape:
    """The sizes of a decoder that its memory follows from; counts of values, not bytes."""

    hidden: int  # width of the residual stream
    layers: int
    intermediate: int  # width of the MLP, times the experts a token goes through
    heads: int  # query heads
    kv_heads: int
    head_dim: int
    vocab: int


def shape_of(config: Mapping[str, Any], vocab_size: int) -> Shape:
    """Return the sizes that a model's ``config.json`` gives.

    Args:
        config: Hugging Face names; those of a multimodal model's text part are read too.
        vocab_size: Rows of the embedding.

    Example:
        >>> shape_of({"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}, 100)
        Shape(hidden=64, layers=2, intermediate=256, heads=4, kv_heads=4, head_dim=16, vocab=100)
    """
    text = {**config, **(config.get("text_config") or {})}
    hidden = text.get("hidden_size") or text.get("n_embd") or 0
    heads = text.get("num_attention_heads") or text.get("n_head") or 1
    experts = text.get("num_experts_per_tok") or 1
    width = text.get("moe_intermediate_size") or text.get("intermediate_size") or 4 * hidden
    return Shape(
        hidden=hidden,
        layers=text.get("num_hidden_layers") or text.get("n_layer") or 0,
        intermediate=width * experts,
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or hidden // heads,
        vocab=vocab_size,
    )


@attrs.frozen
class Table:
    """Memory of one update by what it is for, in bytes."""

    base: int  # frozen weights
    adapter: int  # trainable values
    optimizer: int  # moments of the trainable values
    gradients: int  # of the trainable values, and their sum over micro-batches
    activations: int  # kept from the forward pass for the backward pass
    logits: int  # logits, their fp32 copy, and its gradient
    data: int  # token ids and labels on the host
    overhead: int  # the runtime, its compiled kernels, and what the scheduler runs ahead

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return sum(attrs.astuple(self))


def estimate(
    shape: Shape,
    *,
    base_bytes: int,
    trainable: int,
    batch_size: int,
    length: int,
    dtype_bytes: int,
    moments: int = 2,
    accumulation: int = 1,
    remat_layers: int = 0,
    data_tokens: int = 0,
) -> Table:
    """Return what one update takes, by counting the arrays that have to be there at once.

    Args:
        shape: Sizes of the decoder.
        base_bytes: Bytes of the frozen weights.
        trainable: Number of trainable values.
        batch_size: Rows in a micro-batch.
        length: Tokens in a row.
        dtype_bytes: Bytes of a value in the forward pass: 4 for fp32, 2 for bf16 and fp16.
        moments: Values the optimizer keeps for each trainable one: 2 for Adam, 1 for Lion.
        accumulation: Micro-batches in an update.
        remat_layers: Layers that recompute their activations.
        data_tokens: Tokens of the data set.

    Example:
        >>> llama = Shape(4096, 32, 14336, 32, 8, 128, 32768)
        >>> common = dict(base_bytes=4 * 10**9, trainable=10**7, batch_size=1, length=2048)
        >>> whole = estimate(llama, **common, dtype_bytes=2)
        >>> less = estimate(llama, **common, dtype_bytes=2, remat_layers=32)
        >>> less.activations < whole.activations / 10
        True
    """
    tokens = batch_size * length
    held = {
        "base": base_bytes,
        "adapter": trainable * _MASTER,
        "optimizer": trainable * _MASTER * moments,
        "gradients": trainable * _MASTER * (2 if accumulation > 1 else 1),
        "activations": tokens * activation_values(shape, remat_layers) * dtype_bytes,
        "logits": tokens * shape.vocab * (dtype_bytes + 2 * _MASTER),
        "data": data_tokens * 2 * 4,  # ids and labels, int32
    }
    # Chosen so that the totals fit a 6-layer model on a CPU: 11% above the measured peak and 7%
    # below it (LoRA on two modules, on all); 42% above where every layer recomputes, because
    # the fixed part weighs more there.
    return Table(**held, overhead=(64 << 20) + sum(held.values()) // 20)


def activation_values(shape: Shape, remat_layers: int = 0) -> int:
    """Return how many values a token leaves behind in the forward pass for the backward pass.

    Of a layer: the residual stream before and after attention, both norms' outputs, queries,
    keys and values before and after rotation, attention's output, and in the MLP gate, up, the
    activation and the product. A layer that recomputes leaves its input; while the backward
    pass is in one such layer, all of that layer is there.

    Args:
        shape: Sizes of the decoder.
        remat_layers: Layers that recompute.
    """
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = 4 * shape.hidden + 3 * queries + 3 * keys + 4 * shape.intermediate
    recomputed = min(remat_layers, shape.layers)
    inside = layer if recomputed else 0
    return (shape.layers - recomputed) * layer + recomputed * shape.hidden + inside


SHARE = 0.67
"""Share of the device's memory that a run takes at most, unless it is given a budget."""


def device_memory_gb() -> float:
    """Return the memory of the device, or where it is the CPU, what a container leaves of the machine's.

    Example:
        >>> device_memory_gb() > 0
        True
    """
    info = mx.device_info() if mx.default_device().type == mx.gpu else {}
    size = info.get("memory_size") or info.get("total_memory")  # Metal's name, and CUDA's
    if size:
        return int(size) / GB
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(machine, cgroup.memory_limit() or machine) / GB


def budget_gb(setting: float | str) -> float:
    """Return the budget that a setting means: the number, or a share of the device's memory.

    Args:
        setting: GB (1e9 bytes), or ``"auto"``.

    Example:
        >>> budget_gb(8.0)
        8.0
    """
    return float(setting) if setting != "auto" else SHARE * device_memory_gb()
