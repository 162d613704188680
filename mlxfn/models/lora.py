"""Adapters for a model: low-rank, weight-decomposed, or every parameter."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
from mlx import nn

from mlxfn.errors import ConfigError
from mlxfn.models.adapter import Adapter, Kind, functional
from mlxfn.models.adapter_folder import start_from
from mlxfn.models.checks import check_packing
from mlxfn.models.clone import clone_module
from mlxfn.models.dora import DoRAEmbedding, DoRALinear
from mlxfn.models.dropout import KeyedDropout, stream_of
from mlxfn.models.execution import Execution, Lean, carry_out
from mlxfn.models.layers import LoRAEmbedding, LoRALinear, LoRASwitchLinear
from mlxfn.models.model import Model
from mlxfn.models.quantized import is_quantized, linear_types, switch_types
from mlxfn.models.slots import Site, trainable_slots, walk
from mlxfn.models.targets import decoder_layers, num_layers_to_adapt, resolve_targets
from mlxfn.models.unpack import Route
from mlxfn.tree import unflatten


def lora(
    model: Model,
    *,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    rslora: bool = False,
    target_modules: str | Sequence[str] = ("q_proj", "v_proj"),
    num_layers: int = -1,
    seed: int = 0,
    init_from: str | Path | None = None,
    packed: bool = False,
    remat: str | int = "none",
    lean: Lean = "none",
    quantized: Route = "packed",
) -> Adapter:
    """Return a LoRA adapter: ``W + scale * a @ b`` for the chosen modules, the rest frozen.

    The initial values depend on (seed, module path) alone, so one more target module leaves
    those of the others as they were. The update starts at zero.

    Args:
        model: The base; its module stays as it is.
        rank: Inner size of the update.
        alpha: ``scale = alpha / rank``, or ``alpha / sqrt(rank)`` with ``rslora``.
        dropout: Probability of dropout on the update's input.
        rslora: Rank-stabilised scale (Kalajdzievski, 2023).
        target_modules: As in :func:`mlxfn.models.targets.resolve_targets`.
        num_layers: Adapt the last n decoder layers; -1 is all.
        seed: Seed of the initial values.
        init_from: Adapter folder in mlx-lm's or PEFT's layout to start from.
        packed: Rows may hold several documents; attention stays within each.
        remat: ``"none"``, ``"mlp"``, ``"all"``, or n: layers that recompute their activations.
        lean: ``"none"``, ``"mlp"`` or ``"all"``: blocks that keep only what their first linear
            layers give.
        quantized: Multiply by quantized weights as they are ``"packed"``, or ``"unpacked"``.

    Returns:
        The adapter.

    Raises:
        ConfigError: A value out of range, a target that does not exist, an adapter folder
            for another model, or packing that is not exact for this model.

    Example:
        >>> class Toy(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed = nn.Embedding(8, 4)
        ...         self.q_proj = nn.Linear(4, 8)
        ...     def __call__(self, tokens):
        ...         return self.q_proj(self.embed(tokens))
        >>> adapter = lora(Model(Toy(), vocab_size=8), rank=2, target_modules=["q_proj"])
        >>> {name: leaf.shape for name, leaf in adapter.params["q_proj"].items()}
        {'lora_a': (4, 2), 'lora_b': (2, 8)}

    Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022.
    """
    spec = _Spec("lora", rank, alpha, dropout, rslora, num_layers, seed)
    execution = Execution(remat, lean, quantized)
    return _low_rank(model, spec, target_modules, init_from, packed, execution)


def dora(
    model: Model,
    *,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    rslora: bool = False,
    target_modules: str | Sequence[str] = ("q_proj", "v_proj"),
    num_layers: int = -1,
    seed: int = 0,
    init_from: str | Path | None = None,
    packed: bool = False,
    remat: str | int = "none",
    lean: Lean = "none",
    quantized: Route = "packed",
) -> Adapter:
    """Return a DoRA adapter: LoRA for the direction of every row, and its magnitude learned.

    Args:
        model: The base; its module stays as it is.
        rank: Inner size of the update.
        alpha: ``scale = alpha / rank``, or ``alpha / sqrt(rank)`` with ``rslora``.
        dropout: Probability of dropout on the update's input.
        rslora: Rank-stabilised scale.
        target_modules: As in :func:`mlxfn.models.targets.resolve_targets`.
        num_layers: Adapt the last n decoder layers; -1 is all.
        seed: Seed of the initial values.
        init_from: Adapter folder in mlx-lm's or PEFT's layout to start from.
        packed: Rows may hold several documents; attention stays within each.
        remat: ``"none"``, ``"mlp"``, ``"all"``, or n: layers that recompute their activations.
        lean: ``"none"``, ``"mlp"`` or ``"all"``: blocks that keep only what their first linear
            layers give.
        quantized: Multiply by quantized weights as they are ``"packed"``, or ``"unpacked"``.

    Returns:
        The adapter.

    Raises:
        ConfigError: As :func:`lora`; also for expert layers and packed embeddings, which
            mlx-lm could not load.

    Liu et al., "DoRA: weight-decomposed low-rank adaptation", ICML 2024.
    """
    spec = _Spec("dora", rank, alpha, dropout, rslora, num_layers, seed)
    execution = Execution(remat, lean, quantized)
    return _low_rank(model, spec, target_modules, init_from, packed, execution)


def full(
    model: Model,
    *,
    num_layers: int = -1,
    init_from: str | Path | None = None,
    packed: bool = False,
    remat: str | int = "none",
    lean: Lean = "none",
) -> Adapter:
    """Return an adapter that trains every parameter: embeddings, norms and head included.

    The parameters are fp32 masters; the forward pass casts each to the dtype it was loaded in.

    Args:
        model: The base; its module stays as it is.
        num_layers: Of the decoder layers train only the last n; -1 is all. What is outside of
            them trains in any case.
        init_from: Adapter folder with all parameters, in mlx-lm's layout, to start from.
        packed: Rows may hold several documents; attention stays within each.
        remat: ``"none"``, ``"mlp"``, ``"all"``, or n: layers that recompute their activations.
        lean: ``"none"``, ``"mlp"`` or ``"all"``: blocks that keep only what their first linear
            layers give.

    Returns:
        The adapter.

    Raises:
        ConfigError: The base is quantized, or as :func:`lora`.
    """
    packed_paths = [site.path for site in walk(model.module) if is_quantized(site.module)]
    if packed_paths:
        raise ConfigError(
            "a quantized base cannot be trained in full: its weights are packed integers",
            where="adapter.kind",
            got=f"full, with {len(packed_paths)} quantized layers ({packed_paths[0]}, ...)",
            remedy='adapter.kind = "lora" or "dora", or a base that is not quantized',
        )
    clone = clone_module(model.module).unfreeze()
    layers = decoder_layers(clone)
    for layer in layers[: -num_layers_to_adapt(layers, num_layers)]:
        layer.module.freeze()
    spec = _Spec("full", num_layers=num_layers)
    return _assemble(model, clone, spec, (), init_from, packed, Execution(remat, lean))


@attrs.frozen
class _Spec:
    kind: Kind
    rank: int = 0
    alpha: float = 0.0
    dropout: float = 0.0
    rslora: bool = False
    num_layers: int = -1
    seed: int = 0

    @property
    def scale(self) -> float:
        if self.kind == "full":
            return 1.0
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def _low_rank(
    model: Model,
    spec: _Spec,
    targets: str | Sequence[str],
    init_from: str | Path | None,
    packed: bool,
    execution: Execution,
) -> Adapter:
    _check(spec)
    clone = clone_module(model.module).freeze()
    sites = resolve_targets(clone, targets, spec.num_layers)
    for site in sites:
        site.container[site.key] = _adapted(site, spec)
    paths = tuple(site.path for site in sites)
    return _assemble(model, clone, spec, paths, init_from, packed, execution)


def _check(spec: _Spec) -> None:
    checks: list[tuple[str, Any, str, bool]] = [
        ("rank", spec.rank, "an integer >= 1", spec.rank >= 1),
        ("alpha", spec.alpha, "a number > 0", spec.alpha > 0),
        ("dropout", spec.dropout, "a number >= 0 and < 1", 0 <= spec.dropout < 1),
        ("seed", spec.seed, "an integer >= 0", spec.seed >= 0),
    ]
    for name, got, expected, holds in checks:
        if not holds:
            raise ConfigError(
                "a value is out of range", where=f"adapter.{name}", got=got, expected=expected
            )


def _adapted(site: Site, spec: _Spec) -> nn.Module:
    """Return the adapter layer that takes the place of a base layer."""
    if spec.kind == "dora":
        layer: type[Any] = _dora_layer(site)
    elif isinstance(site.module, switch_types()):
        layer = LoRASwitchLinear
    else:
        layer = LoRALinear if isinstance(site.module, linear_types()) else LoRAEmbedding
    dropout = KeyedDropout(spec.dropout, stream_of(site.path))
    key = _initial_key(spec.seed, site.path)
    return layer(site.module, spec.rank, spec.scale, dropout, key)


def _dora_layer(site: Site) -> type[nn.Module]:
    if isinstance(site.module, switch_types()):
        why = "mixture-of-experts layers"
    elif isinstance(site.module, linear_types()):
        return DoRALinear
    elif is_quantized(site.module):
        why = "quantized embeddings"
    else:
        return DoRAEmbedding
    raise ConfigError(
        f"DoRA does not exist for {why}, here or in mlx-lm",
        where="adapter.target_modules",
        got=site.path,
        remedy='leave it out, or adapter.kind = "lora"',
    )


def _initial_key(seed: int, path: str) -> mx.array:
    digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
    return mx.random.key(int.from_bytes(digest[:8], "little"))


def _assemble(
    model: Model,
    clone: nn.Module,
    spec: _Spec,
    paths: tuple[str, ...],
    init_from: str | Path | None,
    packed: bool,
    execution: Execution,
) -> Adapter:
    slots = trainable_slots(clone)
    dtypes = {name: slot.get().dtype for name, slot in slots.items()}
    flat = {name: slot.get().astype(mx.float32) for name, slot in slots.items()}
    if init_from is not None:
        flat = start_from(init_from, flat, scale=spec.scale)
    # Evaluated here: inside a compiled step an unevaluated constant would be computed anew
    # every time, and another thread could not read it.
    mx.eval(flat, clone)
    for name, slot in slots.items():
        slot.set(flat[name].astype(dtypes[name]))
    carry_out(execution, clone, slots)
    caches = _cache_count(model.module) if packed else 0
    adapter = Adapter(
        params=unflatten(flat),
        apply=functional(clone, slots, dtypes, caches),
        module=clone,
        model=model,
        kind=spec.kind,
        rank=spec.rank,
        alpha=spec.alpha,
        scale=spec.scale,
        dropout=spec.dropout,
        target_modules=paths,
        num_layers=spec.num_layers,
        caches=caches,
        slots=slots,
        dtypes=dtypes,
        execution=execution,
    )
    if packed:
        check_packing(adapter)
    return adapter


def _cache_count(module: nn.Module) -> int:
    """Return how many caches the model takes: one for each layer unless it says otherwise."""
    make = getattr(module, "make_cache", None)
    return len(make()) if make else max(len(decoder_layers(module)), 1)
