"""Write what was trained so that mlx-lm loads it: as an adapter folder, or as a whole model."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn

from mlxfn.errors import ConfigError
from mlxfn.models.adapter import Adapter
from mlxfn.models.clone import clone_module
from mlxfn.models.folders import publish_folder, write_json
from mlxfn.models.peft import export_peft
from mlxfn.models.quantized import dense_weight, is_quantized, like
from mlxfn.models.safetensors import write_safetensors
from mlxfn.models.slots import trainable_slots, walk
from mlxfn.tree import Params, flatten

__all__ = ["export_fused", "export_mlx_lm", "export_peft", "fused_module"]

SHARD_BYTES = 5 << 30  # largest weight file of a fused model, as on the hub
# What belongs to a model folder besides its weights and config.json.
_COMPANIONS = {".json", ".jinja", ".txt", ".model", ".tiktoken", ".py", ".jsonl"}


def export_mlx_lm(adapter: Adapter, params: Params, folder: str | Path) -> Path:
    """Write an adapter folder in mlx-lm's layout.

    ``mlx_lm.load(model, adapter_path=folder)`` and ``mlx_lm.generate --adapter-path`` take it.
    The modules are listed by full path, so an adapter on some layers only loads as it is.

    Args:
        adapter: The adapter the parameters belong to.
        params: Trained values; those of a full adapter are written in the dtype they compute in.
        folder: Where to; an adapter folder that is there is replaced.

    Returns:
        The folder.

    Raises:
        RunDirError: The folder cannot be written, or something else is in its place.
    """
    arrays = flatten(params)
    if adapter.kind == "full":
        arrays = {name: leaf.astype(adapter.dtypes[name]) for name, leaf in arrays.items()}
    mx.eval(arrays)

    def fill(target: Path) -> None:
        write_safetensors(target / "adapters.safetensors", arrays)
        write_json(target / "adapter_config.json", _mlx_lm_config(adapter))

    return publish_folder(folder, fill, what="the adapter folder", marker="adapter_config.json")


def _mlx_lm_config(adapter: Adapter) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model": adapter.model.path,
        "fine_tune_type": adapter.kind,
        "num_layers": adapter.num_layers,
    }
    if adapter.kind != "full":
        config["lora_parameters"] = {
            "rank": adapter.rank,
            "scale": adapter.scale,
            "dropout": adapter.dropout,
            "keys": list(adapter.target_modules),
        }
    return config


def export_fused(
    adapter: Adapter, params: Params, folder: str | Path, *, dequantize: bool = False
) -> Path:
    """Write a whole model with the adapter merged into its weights; ``mlx_lm.load`` takes it.

    The weights keep the dtype the model was loaded in. Merging into a quantized layer packs
    the sum again, which rounds; ``dequantize`` keeps it exact, at the size of the full weights.

    Args:
        adapter: The adapter the parameters belong to.
        params: Trained values.
        folder: Where to; a model folder that is there is replaced.
        dequantize: Write floating-point weights for a quantized base.

    Returns:
        The folder.

    Raises:
        ConfigError: The model has no folder to take the tokenizer from.
        RunDirError: The folder cannot be written, or something else is in its place.
    """
    source = adapter.model.folder
    if source is None:
        raise ConfigError(
            "only a model that was loaded from a folder can be written as one",
            remedy="export an adapter folder instead",
        )
    config = copy.deepcopy(adapter.model.config)
    if dequantize:
        for key in ("quantization", "quantization_config"):
            config.pop(key, None)
    weights = flatten(fused_module(adapter, params, dequantize=dequantize).parameters())
    mx.eval(weights)

    def fill(target: Path) -> None:
        _write_weights(target, weights)
        write_json(target / "config.json", config)
        for file in _companions(source):
            shutil.copyfile(file, target / file.name)

    return publish_folder(folder, fill, what="the model folder", marker="config.json")


def fused_module(adapter: Adapter, params: Params, *, dequantize: bool = False) -> nn.Module:
    """Return a copy of the base module with the adapter merged into its weights.

    Args:
        adapter: The adapter the parameters belong to.
        params: Trained values.
        dequantize: Unpack the weights of a quantized base.
    """
    module = clone_module(adapter.model.module)
    with adapter.inserted(params):
        if adapter.kind == "full":
            places = trainable_slots(module.unfreeze())
            for name, slot in adapter.slots.items():
                places[name].set(slot.get())
        else:
            _merge(adapter, module, dequantize)
    if dequantize:
        for site in list(walk(module)):
            if is_quantized(site.module):
                dense = dense_weight(site.module)
                site.container[site.key] = like(site.module, dense, dequantize=True)
    return module


def _merge(adapter: Adapter, module: nn.Module, dequantize: bool) -> None:
    adapted: dict[str, Any] = {site.path: site.module for site in walk(adapter.module)}
    for site in list(walk(module)):
        if site.path in adapter.target_modules:
            site.container[site.key] = adapted[site.path].fuse(dequantize=dequantize)


def _write_weights(folder: Path, weights: Mapping[str, mx.array]) -> None:
    shards = list(_shards(weights))
    names: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        last = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        file = f"model{last}.safetensors"
        write_safetensors(folder / file, shard)
        names |= dict.fromkeys(shard, file)
    total = sum(leaf.nbytes for leaf in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def _shards(weights: Mapping[str, mx.array]) -> Iterator[dict[str, mx.array]]:
    shard: dict[str, mx.array] = {}
    size = 0
    for name, leaf in weights.items():
        if shard and size + leaf.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = leaf
        size += leaf.nbytes
    yield shard


def _companions(folder: Path) -> list[Path]:
    """Return the tokenizer's files and the like: all that is small and not the weights."""
    own = {"config.json", "model.safetensors.index.json", "hf_quant_config.json"}
    return [
        file
        for file in sorted(folder.iterdir())
        if file.suffix in _COMPANIONS and file.name not in own and file.is_file()
    ]
