"""Write an adapter in the layout of PEFT, the library of the PyTorch world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxfn.errors import ConfigError
from mlxfn.models.adapter import Adapter
from mlxfn.models.folders import publish_folder, write_json
from mlxfn.models.quantized import EMBEDDING_TYPES, switch_types
from mlxfn.models.safetensors import write_safetensors
from mlxfn.models.slots import walk
from mlxfn.tree import Params, flatten

_LINEAR = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
_EMBEDDING = {
    "lora_a": "lora_embedding_A",
    "lora_b": "lora_embedding_B",
    "m": "lora_magnitude_vector",
}


def export_peft(adapter: Adapter, params: Params, folder: str | Path) -> Path:
    """Write an adapter folder in PEFT's layout.

    Args:
        adapter: A LoRA or DoRA adapter of linear and embedding layers.
        params: Trained values.
        folder: Where to; an adapter folder that is there is replaced.

    Returns:
        The folder.

    Raises:
        ConfigError: PEFT has no counterpart: a full adapter, expert layers, or an embedding
            that is the output head too (PEFT would adapt the input side alone).
        RunDirError: The folder cannot be written, or something else is in its place.
    """
    embeddings = _embeddings(adapter)
    arrays: dict[str, mx.array] = {}
    for name, leaf in flatten(params).items():
        path, own = name.rsplit(".", 1)
        theirs = (_EMBEDDING if path in embeddings else _LINEAR)[own]
        arrays[f"base_model.model.{path}.{theirs}"] = leaf if own == "m" else mx.contiguous(leaf.T)
    mx.eval(arrays)

    def fill(target: Path) -> None:
        write_safetensors(target / "adapter_model.safetensors", arrays, {"format": "pt"})
        write_json(target / "adapter_config.json", _config(adapter))

    return publish_folder(folder, fill, what="the adapter folder", marker="adapter_config.json")


def _embeddings(adapter: Adapter) -> set[str]:
    """Return the paths of adapted embeddings, after refusing what PEFT cannot express."""
    if adapter.kind == "full":
        raise _no_counterpart("every parameter is trained", "export a fused model instead")
    base = {site.path: site.module for site in walk(adapter.model.module)}
    targets = {path: base[path] for path in adapter.target_modules}
    if experts := [p for p, module in targets.items() if isinstance(module, switch_types())]:
        raise _no_counterpart(
            f"expert layers ({experts[0]}, ...)", "export an mlx-lm adapter or a fused model"
        )
    embeddings = {p for p, module in targets.items() if isinstance(module, EMBEDDING_TYPES)}
    if embeddings and adapter.model.config.get("tie_word_embeddings", "lm_head" not in base):
        raise _no_counterpart(
            "an embedding that is the output head too", "export an mlx-lm adapter or a fused model"
        )
    return embeddings


def _no_counterpart(what: str, remedy: str) -> ConfigError:
    return ConfigError("PEFT has no such adapter", where="export", got=what, remedy=remedy)


def _config(adapter: Adapter) -> dict[str, Any]:
    alpha = adapter.scale * adapter.rank
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.model.path,
        "inference_mode": True,
        "r": adapter.rank,
        # The scale is written out as alpha / r, whichever way it was chosen.
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "use_rslora": False,
        "lora_dropout": adapter.dropout,
        "target_modules": list(adapter.target_modules),
        "use_dora": adapter.kind == "dora",
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }
