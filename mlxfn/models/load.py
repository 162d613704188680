"""Load a base model from a local folder or the Hugging Face hub, frozen."""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn

from mlxfn.device import device_kind
from mlxfn.errors import ConfigError
from mlxfn.files import expand
from mlxfn.models.gemma2 import complete_gemma2
from mlxfn.models.model import Model
from mlxfn.models.quantized import EMBEDDING_TYPES, is_quantized, sizes
from mlxfn.models.safetensors import check_safetensors
from mlxfn.models.slots import walk

__all__ = ["Model", "fingerprint", "load_model"]

_DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
_TRUST = "read that code, then model.trust_remote_code = true"
_EDGE = 1 << 16  # bytes of each end of a weight file that go into the fingerprint
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+|[\w-][\w.-]*")


def load_model(
    path: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    quantize_bits: int | None = None,
    quantize_group_size: int | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load a base model and its tokenizer; every parameter comes frozen.

    Args:
        path: A folder with ``config.json``, ``*.safetensors`` and tokenizer files, or a name
            on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"``: float32 on a CPU,
            which computes nothing faster than that, and the model's own elsewhere. Packed
            weights stay packed; it applies to their scales.
        quantize_bits: Pack the weights of a model that is not, into 2, 3, 4, 5, 6 or 8 bits.
        quantize_group_size: Weights that share a scale, 32, 64 or 128; 64 unless given.
        trust_remote_code: Run Python code that ships with the model or its tokenizer.

    Returns:
        The model.

    Raises:
        ConfigError: The model is not there, is damaged, or is of a kind mlx-lm has no code
            for; or it needs code of its own that is not trusted.
    """
    name = str(path)
    folder = _find(name, revision)
    config = _read_config(folder, name)
    _refuse_custom_code(config, name, trusted=trust_remote_code)
    weights = _check_weights(folder, name)
    module, config = _build(folder, name, trust_remote_code)
    complete_gemma2(module, config)
    _set_dtype(module, dtype)
    if quantize_bits is not None:
        config = _quantize(module, config, quantize_bits, quantize_group_size or 64)
    # A tokenizer of 150,000 entries takes a second, in which MLX reads the weights.
    with ThreadPoolExecutor(max_workers=1) as beside:
        loading = beside.submit(_load_tokenizer, folder, name, config, trust_remote_code)
        mx.eval(module.parameters())
        tokenizer = loading.result()
    module.freeze()
    return Model(
        module=module,
        tokenizer=tokenizer,
        config=config,
        path=name,
        folder=folder,
        vocab_size=_vocab_size(module, config),
        fingerprint=fingerprint(folder, weights),
    )


def load_skeleton(
    path: str | Path,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    quantize_bits: int | None = None,
    quantize_group_size: int | None = None,
) -> Model:
    """Return a model of which every size is known and no weight is in memory.

    MLX is lazy: its arrays say how large they would be, and none is ever to be evaluated. The
    weight files need not be there; of a model on the hub only ``config.json`` is fetched.

    Args:
        path: Folder or hub name.
        revision: Branch, tag or commit on the hub.
        dtype: As in :func:`load_model`.
        quantize_bits: As there.
        quantize_group_size: As there.

    Raises:
        ConfigError: There is no ``config.json``, or mlx-lm has no code for the model.
    """
    name = str(path)
    folder = _find(name, revision, only=["config.json"])
    config = _read_config(folder, name)
    _refuse_custom_code(config, name, trusted=False)
    there = any(folder.glob("model*.safetensors"))
    module, config = _build(folder, name, trusted=False, strict=there)
    if not there:
        packing = config.get("quantization")
        if isinstance(packing, dict):
            _quantize(module, {}, packing["bits"], packing["group_size"])
        kept = str(config.get("torch_dtype") or config.get("dtype"))
        module.set_dtype(_DTYPES.get(kept, mx.bfloat16))
    _set_dtype(module, dtype)
    if quantize_bits is not None:
        config = _quantize(module, config, quantize_bits, quantize_group_size or 64)
    module.freeze()
    return Model(module, config=config, path=name, vocab_size=_vocab_size(module, config))


def fingerprint(folder: Path, weights: list[Path]) -> str:
    """Return a SHA-256 that tells a model's files from others, without reading all of them.

    It covers ``config.json`` and of every weight file the name, the size, and the first and
    last 64 KiB (the header names every tensor). It does not cover where the folder is, and it
    would miss a change of values in the middle of a file.

    Args:
        folder: The model's folder.
        weights: Its weight files.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(weights):
        size = file.stat().st_size
        digest.update(f"\0{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_EDGE))
            stream.seek(max(size - _EDGE, 0))
            digest.update(stream.read(_EDGE))
    return digest.hexdigest()


def _mlx_lm() -> Any:
    """Return mlx_lm.utils; imported when it is needed, because it takes seconds."""
    quiet = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(quiet)
    # Only for the import: transformers would tell everyone that PyTorch is not installed.
    os.environ[quiet] = "1"
    try:
        return importlib.import_module("mlx_lm.utils")
    finally:
        del os.environ[quiet]
        if before is not None:
            os.environ[quiet] = before


def _not_there(name: str, why: str, remedy: str) -> ConfigError:
    return ConfigError(
        "a model that is not there",
        where=f"model.path = {name}",
        got=why,
        expected="a folder with config.json, *.safetensors and tokenizer files, or a hub name",
        remedy=remedy,
    )


def _unusable(name: str, why: str, remedy: str | None = None) -> ConfigError:
    return ConfigError(
        "the model cannot be loaded", where=f"model.path = {name}", got=why, remedy=remedy
    )


def _find(name: str, revision: str | None, only: list[str] | None = None) -> Path:
    """Return the local folder of a model, downloading it where it is a hub name."""
    try:
        folder = expand(name)
        if folder.is_dir():
            return folder
        taken = folder.exists()
    except OSError as error:
        raise _not_there(name, str(error), "check the path and its permissions") from error
    if taken:
        raise _not_there(name, "a file, not a folder", "give the folder that the file is in")
    if name.startswith(("/", ".", "~")) or not _HUB_NAME.fullmatch(name):
        raise _not_there(name, f"no folder {folder.absolute()}", "check the path")
    try:
        download = _mlx_lm()._download  # noqa: SLF001 - it has no other name
        return download(name, revision=revision, allow_patterns=only)
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _not_there(
            name,
            f"no such folder here, and the hub gave none: {first}",
            "check the name and the network, or give a local folder",
        ) from error


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _not_there(name, "no config.json in the folder", "check the path") from None
    except (OSError, ValueError) as error:
        raise _unusable(name, f"config.json cannot be read: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise _unusable(name, "config.json names no model_type")
    return config


def _refuse_custom_code(config: dict[str, Any], name: str, *, trusted: bool) -> None:
    if config.get("model_file") is not None and not trusted:
        raise _unusable(
            name,
            f"it runs Python code of its own ({config['model_file']})",
            _TRUST,
        )


def _check_weights(folder: Path, name: str) -> list[Path]:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise _not_there(
            name,
            "no model*.safetensors in the folder",
            "check the path; other formats have to be converted with mlx_lm.convert",
        )
    for file in files:
        try:
            check_safetensors(file)
        except (OSError, ValueError) as error:
            raise _unusable(name, f"{file.name}: {error}", "get the file again") from error
    return files


def _build(
    folder: Path, name: str, trusted: bool, *, strict: bool = True
) -> tuple[nn.Module, dict[str, Any]]:
    try:
        return _mlx_lm().load_model(folder, lazy=True, strict=strict, trust_remote_code=trusted)
    except Exception as error:
        raise _unusable(name, _why(error), "check config.json and the weights") from error


def _why(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:4])}"


def _set_dtype(module: nn.Module, dtype: str) -> None:
    if dtype == "auto":
        if device_kind() != "cpu":
            return
        dtype = "float32"
    if dtype not in _DTYPES:
        raise ConfigError(
            "no such dtype",
            where="model.dtype",
            got=repr(dtype),
            expected="auto, float32, bfloat16 or float16",
        )
    module.set_dtype(_DTYPES[dtype])


def _quantize(
    module: nn.Module, config: dict[str, Any], bits: int, group_size: int
) -> dict[str, Any]:
    """Pack the weights in place; return the config that says so."""
    _check_quantization(module, bits, group_size)
    settings: dict[str, Any] = {"group_size": group_size, "bits": bits, "mode": "affine"}
    choose = getattr(module, "quant_predicate", None)

    def predicate(path: str, layer: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(layer, "to_quantized") or layer["weight"].shape[-1] % group_size:
            return False
        chosen = choose(path, layer) if choose else True
        if isinstance(chosen, dict):
            settings[path] = chosen
        return chosen

    nn.quantize(module, group_size, bits, class_predicate=predicate)
    if not any(is_quantized(layer) for layer in module.modules()):
        raise ConfigError(
            "no layer of the model can be quantized",
            where="model.quantize_group_size",
            got=group_size,
            expected="a group size that divides the layers' input sizes",
        )
    config = copy.deepcopy(config)
    config["quantization"] = config["quantization_config"] = settings
    return config


def _check_quantization(module: nn.Module, bits: int, group_size: int) -> None:
    if bits not in {2, 3, 4, 5, 6, 8}:
        raise ConfigError(
            "no such quantization",
            where="model.quantize_bits",
            got=bits,
            expected="2, 3, 4, 5, 6 or 8",
        )
    if group_size not in {32, 64, 128}:
        raise ConfigError(
            "no such quantization group",
            where="model.quantize_group_size",
            got=group_size,
            expected="32, 64 or 128",
        )
    packed = [layer for layer in module.modules() if is_quantized(layer)]
    if packed:
        raise ConfigError(
            "the model is quantized already",
            where="model.quantize_bits",
            got=f"{bits} bits for a model that has {packed[0].bits}",
            remedy="leave quantize_bits out",
        )


def _load_tokenizer(folder: Path, name: str, config: dict[str, Any], trusted: bool) -> Any:
    # Said in so many words, because transformers asks on the terminal when it is left open.
    extra = {"trust_remote_code": trusted}
    try:
        return _mlx_lm().load_tokenizer(folder, extra, eos_token_ids=_eos_ids(config))
    except Exception as error:
        custom = "trust_remote_code" in str(error)
        raise _unusable(
            name,
            f"its tokenizer: {_why(error)}",
            _TRUST if custom else "check the tokenizer files in the folder",
        ) from error


def _eos_ids(config: dict[str, Any]) -> list[int] | None:
    ids = config.get("eos_token_id")
    return [ids] if isinstance(ids, int) else ids


def _vocab_size(module: nn.Module, config: dict[str, Any]) -> int:
    """Return how many ids have both an embedding and a logit."""
    embeddings = [s for s in walk(module) if isinstance(s.module, EMBEDDING_TYPES)]
    heads = [s for s in walk(module) if s.path.rsplit(".", 1)[-1] in {"lm_head", "embed_out"}]
    rows = [max(sizes(site.module)[1] for site in embeddings)] if embeddings else []
    rows += [sizes(site.module)[1] for site in heads if "weight" in site.module]
    return min(rows) if rows else int(config.get("vocab_size", 0))
