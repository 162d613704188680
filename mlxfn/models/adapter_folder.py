"""Adapter folders as mlx-lm and PEFT write them, read and matched to an adapter."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx

from mlxfn.errors import ConfigError
from mlxfn.files import expand
from mlxfn.models.safetensors import read_safetensors

_PEFT_PREFIX = "base_model.model."
# PEFT's leaf, ours, and whether PEFT keeps it transposed.
_PEFT_LEAVES = (
    (r"lora_A(?:\.\w+)?\.weight", "lora_a", True),
    (r"lora_B(?:\.\w+)?\.weight", "lora_b", True),
    (r"lora_embedding_A(?:\.\w+)?", "lora_a", True),
    (r"lora_embedding_B(?:\.\w+)?", "lora_b", True),
    (r"lora_magnitude_vector(?:\.\w+)?(?:\.weight)?", "m", False),
)
_SHOWN = 3


@attrs.frozen(eq=False)
class AdapterFolder:
    """What an adapter folder holds.

    Args:
        arrays: The tensors by mlx-lm's names, in mlx-lm's orientation.
        scale: Factor of the update; None for a folder with full weights.
    """

    arrays: dict[str, mx.array]
    scale: float | None


def read_adapter(folder: str | Path) -> AdapterFolder:
    """Read an adapter folder in mlx-lm's or PEFT's layout.

    Args:
        folder: Holds ``adapter_config.json`` and ``adapters.safetensors`` (mlx-lm) or
            ``adapter_model.safetensors`` (PEFT).

    Raises:
        ConfigError: A file is missing or broken, or the adapter is of a kind that has no
            counterpart here.
    """
    try:
        folder = expand(folder)
        config = _read_config(folder)
    except OSError as error:
        raise _not_an_adapter(Path(folder), f"it cannot be read: {error}") from error
    if "peft_type" in config:
        return _from_peft(folder, config)
    if "fine_tune_type" not in config and "lora_parameters" not in config:
        raise _not_an_adapter(folder, "adapter_config.json has neither layout's keys")
    arrays = _read_tensors(folder / "adapters.safetensors")
    if config.get("fine_tune_type", "lora") == "full":
        return AdapterFolder(arrays, None)
    parameters = config.get("lora_parameters")
    if not isinstance(parameters, dict) or not isinstance(parameters.get("scale"), int | float):
        raise _not_an_adapter(folder, "adapter_config.json has no lora_parameters.scale")
    return AdapterFolder(arrays, float(parameters["scale"]))


def start_from(
    folder: str | Path, template: Mapping[str, mx.array], *, scale: float
) -> dict[str, mx.array]:
    """Return an adapter folder's tensors as the initial values of an adapter.

    Where the folder's scale differs from the adapter's, ``lora_b`` is multiplied by their
    ratio, so that the start is the same function.

    Args:
        folder: As in :func:`read_adapter`.
        template: The adapter's own initial values, flat; names and shapes have to match.
        scale: The adapter's scale.

    Returns:
        fp32 arrays by the template's names.

    Raises:
        ConfigError: The folder cannot be read, or belongs to another model or other settings.
    """
    found = read_adapter(folder)
    if differing := _differences(found.arrays, template):
        raise ConfigError(
            "the adapter folder is for another model or other adapter settings",
            where=f"adapter.init_from = {folder}",
            got="; ".join(differing[:_SHOWN]),
            expected=f"the {len(template)} tensors of this model's adapter",
            remedy="use the base model, kind, rank, target_modules and num_layers it was made with",
        )
    ratio = 1.0 if found.scale is None else found.scale / scale
    return {name: _scaled(found.arrays[name].astype(mx.float32), name, ratio) for name in template}


def _scaled(array: mx.array, name: str, ratio: float) -> mx.array:
    return array * ratio if name.endswith(".lora_b") and ratio != 1 else array


def _differences(found: Mapping[str, mx.array], template: Mapping[str, mx.array]) -> list[str]:
    """Return a line for every tensor that does not match, shapes first."""
    shapes = [
        f"{name} has shape {list(found[name].shape)} instead of {list(leaf.shape)}"
        for name, leaf in template.items()
        if name in found and found[name].shape != leaf.shape
    ]
    missing = [f"{name} is missing" for name in template if name not in found]
    unknown = [f"{name} has no place in the model" for name in found if name not in template]
    return [*shapes, *missing, *unknown]


def _from_peft(folder: Path, config: dict[str, Any]) -> AdapterFolder:
    if config["peft_type"] != "LORA":
        raise _not_an_adapter(folder, f"PEFT type {config['peft_type']}, expected LORA")
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise _not_an_adapter(folder, "ranks or alphas that differ between modules")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not (isinstance(rank, int) and rank > 0 and isinstance(alpha, int | float)):
        raise _not_an_adapter(folder, "adapter_config.json has no r or lora_alpha")
    tensors = _read_tensors(folder / "adapter_model.safetensors")
    arrays = dict(_rename(name, array, folder) for name, array in tensors.items())
    return AdapterFolder(arrays, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _rename(name: str, array: mx.array, folder: Path) -> tuple[str, mx.array]:
    """Return a PEFT tensor under mlx-lm's name and in its orientation."""
    path = name.removeprefix(_PEFT_PREFIX)
    for pattern, leaf, transposed in _PEFT_LEAVES:
        if found := re.fullmatch(rf"(.+)\.{pattern}", path):
            turned = mx.contiguous(array.T) if transposed else array
            return f"{found[1]}.{leaf}", turned
    raise _not_an_adapter(folder, f"a tensor that is no part of a LoRA or DoRA adapter: {name}")


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise _not_an_adapter(folder, "no such folder")
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _not_an_adapter(folder, "no adapter_config.json in it") from None
    except (OSError, ValueError) as error:
        raise _not_an_adapter(folder, f"adapter_config.json cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise _not_an_adapter(folder, "adapter_config.json is not an object")
    return config


def _read_tensors(file: Path) -> dict[str, mx.array]:
    if not file.is_file():
        raise _not_an_adapter(file.parent, f"no {file.name} in it")
    try:
        return read_safetensors(file)
    except (OSError, ValueError, RuntimeError) as error:
        raise _not_an_adapter(file.parent, f"{file.name} cannot be read: {error}") from error


def _not_an_adapter(folder: Path, why: str) -> ConfigError:
    return ConfigError(
        "the adapter folder cannot be used",
        where=f"adapter.init_from = {folder}",
        got=why,
        expected="adapter_config.json with adapters.safetensors (mlx-lm) "
        "or adapter_model.safetensors (PEFT)",
    )
