"""What a run will need, by arithmetic, and what the device says it uses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import attrs
import mlx.core as mx

from mlxfn import cgroup
from mlxfn.device import device_kind

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
    experts: int = 1  # a token goes through

    @property
    def queries(self) -> int:
        """Width of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all keys of a token, and of all values."""
        return self.kv_heads * self.head_dim

    @property
    def layer_weights(self) -> int:
        """Weights that a token is multiplied by in one layer."""
        attention = self.hidden * (2 * self.queries + 2 * self.keys)
        return attention + 3 * self.hidden * self.intermediate


def shape_of(config: Mapping[str, Any], vocab_size: int) -> Shape:
    """Return the sizes that a model's ``config.json`` gives.

    Args:
        config: Hugging Face names; those of a multimodal model's text part are read too.
        vocab_size: Rows of the embedding.

    Example:
        >>> shape_of({"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}, 100)
        Shape(hidden=64, layers=2, intermediate=256, heads=4, kv_heads=4, head_dim=16, vocab=100, experts=1)
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
        experts=experts,
    )


@attrs.frozen
class Workload:
    """One update, as far as its memory and time depend on it.

    Args:
        base_bytes: Of the frozen weights, as they are held.
        trainable: Number of trainable values.
        batch_size: Rows in a micro-batch.
        length: Tokens in a row.
        dtype_bytes: Bytes of a value in the forward pass: 4 for fp32, 2 for bf16 and fp16.
        inputs: Layers whose input a gradient needs: ``"attention"`` (queries, keys, values),
            ``"output"``, ``"mlp"`` (gate and up), ``"down"``.
        moments: Values the optimizer keeps for each trainable one: 2 for Adam, 1 for Lion.
        accumulation: Micro-batches in an update.
        chunk: Positions whose logits exist at a time; 0 for all.
        fused_attention: Whether the device has an attention kernel with a gradient, which
            keeps no probabilities.
        unpacked: Whether quantized weights are unpacked for their products.
        run_ahead: Bytes of arrays that the CPU makes before the device is done with others.
        data_tokens: Tokens of the data set, on the host.
        low_rank: Inputs and outputs of all layers with a low-rank update, added up.
    """

    base_bytes: int
    trainable: int
    batch_size: int
    length: int
    dtype_bytes: int
    inputs: frozenset[str] = frozenset({"attention"})
    moments: int = 2
    accumulation: int = 1
    chunk: int = 0
    fused_attention: bool = False
    unpacked: bool = False
    run_ahead: int = 0
    data_tokens: int = 0
    low_rank: int = 0

    @property
    def tokens(self) -> int:
        """Positions of a micro-batch."""
        return self.batch_size * self.length


@attrs.frozen
class Table:
    """Memory of one update by what it is for, in bytes."""

    base: int  # frozen weights
    adapter: int  # trainable values
    optimizer: int  # moments of the trainable values
    gradients: int  # of the trainable values, and their sum over micro-batches
    activations: int  # kept from the forward pass for the backward pass
    working: int  # what the backward pass of one layer holds besides
    logits: int  # logits, what the loss makes of them in fp32, and the gradient of both
    run_ahead: int  # of the CPU before the device
    data: int  # token ids and labels on the host

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return sum(attrs.astuple(self))


def estimate(
    shape: Shape, work: Workload, *, remat: str | int = "none", lean: str = "none"
) -> Table:
    """Return what one update takes, by counting the arrays that have to be there at once.

    Args:
        shape: Sizes of the decoder.
        work: What an update is.
        remat: ``"none"``, ``"mlp"``, ``"all"`` or n layers: what recomputes its activations.
        lean: ``"none"``, ``"mlp"`` or ``"all"``: blocks that keep their first layers' outputs.

    Example:
        >>> llama = Shape(4096, 32, 14336, 32, 8, 128, 32768)
        >>> work = Workload(4 * 10**9, 10**7, 1, 2048, dtype_bytes=2, fused_attention=True)
        >>> whole, less = estimate(llama, work), estimate(llama, work, remat="all")
        >>> less.activations < whole.activations / 10
        True
    """
    value = work.dtype_bytes
    recomputed = recomputed_layers(shape, remat)
    kept = layer_values(shape, work, lean=lean, mlp=remat != "mlp")
    inside = layer_values(shape, work, lean=lean)
    activations = (shape.layers - recomputed) * kept + recomputed * shape.hidden
    working = backward_values(shape, work)
    if remat == "mlp":
        working += inside - kept
    elif recomputed:
        working += inside
    positions = min(work.chunk, work.tokens) if work.chunk else work.tokens
    dense = 2 * shape.hidden * shape.intermediate // max(shape.experts, 1) * value
    return Table(
        base=work.base_bytes,
        adapter=work.trainable * _MASTER,
        optimizer=work.trainable * _MASTER * work.moments,
        gradients=work.trainable * _MASTER * (2 if work.accumulation > 1 else 1),
        activations=work.tokens * activations * value,
        working=work.tokens * working * value + (dense if work.unpacked else 0),
        logits=positions * shape.vocab * (2 * value + 4 * _MASTER),
        run_ahead=work.run_ahead,
        data=work.data_tokens * 2 * 4,  # ids and labels, int32
    )


def recomputed_layers(shape: Shape, remat: str | int) -> int:
    """Return how many whole layers a ``remat`` setting recomputes.

    Example:
        >>> recomputed_layers(Shape(8, 4, 16, 2, 2, 4, 100), "all")
        4
    """
    return min({"none": 0, "mlp": 0, "all": shape.layers}.get(str(remat), remat), shape.layers)  # type: ignore[type-var]


def layer_values(shape: Shape, work: Workload, *, lean: str = "none", mlp: bool = True) -> int:
    """Return how many values a token leaves behind in a layer for the backward pass.

    The residual stream before attention and before the MLP; the normed inputs of layers that
    are adapted; rotated queries and keys, values, and what attention gives (with a fused
    gradient) or its probabilities (without); gate, up, the sigmoid and the activation. Lean
    blocks keep queries, keys and values as projected, and gate and up.

    Args:
        shape: Sizes of the decoder.
        work: What an update is.
        lean: As in :func:`estimate`.
        mlp: Whether the MLP keeps its activations.
    """
    projected = shape.queries + 2 * shape.keys
    attended = shape.queries if work.fused_attention else shape.heads * work.length
    attention = projected if lean == "all" else projected + attended
    values = 2 * shape.hidden + attention
    values += shape.hidden * len(work.inputs & {"attention", "mlp"})
    if "output" in work.inputs and lean != "all":
        values += shape.queries
    if not mlp:
        return values
    sparse = shape.experts > 1  # experts are not made lean
    values += (4 if lean == "none" or sparse else 2) * shape.intermediate
    return values + (shape.intermediate if "down" in work.inputs and lean == "none" else 0)


def backward_values(shape: Shape, work: Workload) -> int:
    """Return how many values of a token one layer's backward pass holds besides what was kept."""
    scores = 0 if work.fused_attention else 3 * shape.heads * work.length
    wide = (5 if "down" in work.inputs else 3) * shape.intermediate
    return 2 * shape.hidden + max(wide, scores + 2 * shape.queries)


SHARE = 0.67
"""Share of the device's memory that a run takes at most, unless it is given a budget."""


def device_memory_gb() -> float:
    """Return the memory of the device, or where it is the CPU, what a container leaves of the machine's.

    Example:
        >>> device_memory_gb() > 0
        True
    """
    info = mx.device_info() if device_kind() != "cpu" else {}
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
