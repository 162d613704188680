"""The JSON at the head of a checkpoint: written in one canonical form, read with every check."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from typing import Any, get_args, get_origin, get_type_hints

from mlxfn.checkpoint.npz import damaged
from mlxfn.errors import CheckpointError
from mlxfn.state import RunState

FORMAT = "mlxfn checkpoint"
VERSION = 1
RUN_FIELDS = {name: hint for name, hint in get_type_hints(RunState).items() if name != "train"}
"""The fields of a run state that travel as JSON, with their types."""

# How each MLX dtype lies in the file; numpy has no bfloat16, so its 16 bits go as integers.
DESCR = {
    "bool": "|b1",
    "uint8": "|u1",
    "int8": "|i1",
    "uint16": "<u2",
    "int16": "<i2",
    "uint32": "<u4",
    "int32": "<i4",
    "uint64": "<u8",
    "int64": "<i8",
    "float16": "<f2",
    "bfloat16": "<u2",
    "float32": "<f4",
    "float64": "<f8",
    "complex64": "<c8",
}
"""Numpy's type string for each MLX dtype, by MLX's name."""

_KEYS = ("format", "version", "step", "arrays", "run", "meta")
_MAX_NAME = 1000
_MAX_DIMENSIONS = 32
# Bytes that each of these characters can make Python allocate when the text is parsed.
_COST = {b"{": 190, b"[": 90, b",": 72}
_FREE_COST = 32 << 20
_SCALARS = frozenset({type(None), bool, int, float, str})


def compose(
    step: int,
    arrays: Mapping[str, tuple[str, tuple[int, ...]]],
    run: Mapping[str, Any],
    meta: Mapping[str, Any],
) -> bytes:
    """Return the text of a manifest.

    Args:
        step: Updates applied.
        arrays: MLX dtype and shape of every array, by name.
        run: The fields of the run state besides the arrays, as JSON values.
        meta: What else is to be kept, as JSON values.

    Raises:
        CheckpointError: The history is so long that reading it back would be refused.
    """
    entries = [
        {"name": name, "dtype": dtype, "shape": list(shape)}
        for name, (dtype, shape) in arrays.items()
    ]
    values = (FORMAT, VERSION, step, entries, run, meta)
    raw = _dump(dict(zip(_KEYS, values, strict=True)))
    if not _affordable(raw):
        raise CheckpointError(
            "the run's history is too long for a checkpoint",
            got=f"{len(raw)} bytes of text",
            remedy="log less often: raise log.logging_steps",
        )
    return raw


def parse(raw: bytes) -> dict[str, Any]:
    """Return a manifest after checking its form.

    Returns:
        ``format``, ``version``, ``step``, ``arrays`` (name, dtype, shape of each), ``run`` (the
        fields of RunState besides the arrays) and ``meta``.

    Raises:
        CheckpointError: It is not one that :func:`compose` returns.
    """
    if not _affordable(raw):
        raise damaged("its manifest is out of proportion")
    try:
        manifest = json.loads(raw)
        canonical = _dump(manifest) == raw
    except (ValueError, RecursionError) as error:
        raise damaged("its manifest is not JSON") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise damaged("it has no manifest of a checkpoint")
    if manifest.get("version") != VERSION:
        raise CheckpointError(
            "the checkpoint has a format that this version of mlxfn does not read",
            got=f"version {manifest.get('version')}",
            expected=f"version {VERSION}",
            remedy="use the version of mlxfn that wrote it",
        )
    if not canonical or not _well_formed(manifest):
        raise damaged("its manifest is malformed")
    return manifest


def good_name(name: object) -> bool:
    """Whether an array may have this name: never anything that a tool could take for a path."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= _MAX_NAME
        and name.isprintable()  # rules out control characters and lone surrogates
        and not set(name) & set("/\\:")
    )


def fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value can be the value of a field of RunState with this annotation."""
    if hint in {int, float}:
        return type(value) is hint and (hint is float or value >= 0)
    if get_origin(hint) is tuple:
        return isinstance(value, list) and all(fits(item, get_args(hint)[0]) for item in value)
    if isinstance(hint, types.UnionType):
        return value is None or fits(value, get_args(hint)[0])
    return isinstance(value, get_origin(hint))


def plain(value: Any, where: str, *, tuples: bool = False) -> Any:
    """Copy a JSON value, so that nothing that happens later can change what is written."""
    if type(value) in _SCALARS:
        return value
    if type(value) is dict and _SCALARS.issuperset(map(type, value.values())) and _named(value):
        return dict(value)  # most of a history, and most of a small save's pause
    if isinstance(value, list) or (tuples and isinstance(value, tuple)):
        return [plain(item, f"{where}[{i}]", tuples=tuples) for i, item in enumerate(value)]
    if isinstance(value, Mapping) and _named(value):
        return {name: plain(item, f"{where}.{name}", tuples=tuples) for name, item in value.items()}
    raise TypeError(f"{where} is {type(value).__name__} {value!r}, expected a JSON value")


def _named(value: Mapping[Any, Any]) -> bool:
    return all(type(name) is str for name in value)


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _affordable(raw: bytes) -> bool:
    """Whether parsing needs memory in proportion to the text; ``[[],[],..`` needs 20 times it."""
    cost = sum(raw.count(sign) * price for sign, price in _COST.items())
    return cost <= 6 * len(raw) + _FREE_COST


def _well_formed(manifest: dict[str, Any]) -> bool:
    arrays, run = manifest.get("arrays"), manifest.get("run")
    return (
        tuple(manifest) == _KEYS
        and fits(manifest["version"], int)  # not true, which equals 1
        and fits(manifest["step"], int)
        and isinstance(manifest["meta"], dict)
        and isinstance(arrays, list)
        and all(map(_good_entry, arrays))
        and len({entry["name"] for entry in arrays}) == len(arrays)
        and isinstance(run, dict)
        and run.keys() == RUN_FIELDS.keys()
        and all(fits(run[name], hint) for name, hint in RUN_FIELDS.items())
    )


def _good_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or tuple(entry) != ("name", "dtype", "shape"):
        return False
    shape = entry["shape"]
    return (
        good_name(entry["name"])
        and isinstance(entry["dtype"], str)
        and entry["dtype"] in DESCR
        and isinstance(shape, list)
        and len(shape) <= _MAX_DIMENSIONS
        and all(fits(size, int) and size < 2**63 for size in shape)
    )
