"""Safetensors files, checked before they are read and written with every error noticed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlxfn.files import atomic_write

_NAMES = {
    mx.bool_: "BOOL",
    mx.uint8: "U8",
    mx.int8: "I8",
    mx.uint16: "U16",
    mx.int16: "I16",
    mx.uint32: "U32",
    mx.int32: "I32",
    mx.uint64: "U64",
    mx.int64: "I64",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.float32: "F32",
}
_HEADER_LIMIT = 100_000_000  # bytes; the format's own limit


def check_safetensors(file: Path) -> dict[str, Any]:
    """Verify that a file is whole: a readable header, and exactly the bytes it announces.

    A download that broke off passes for a file until something reads past its end.

    Args:
        file: A safetensors file.

    Returns:
        The header: name -> ``{dtype, shape, data_offsets}``.

    Raises:
        ValueError: It is damaged or something else.
        OSError: It cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
            raise ValueError("not a safetensors file, or cut off in its header")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise ValueError(f"its header is damaged ({error})") from error
    end = max((entry["data_offsets"][1] for entry in _tensors(header)), default=0)
    if size != 8 + length + end:
        raise ValueError(f"it has {size} bytes instead of {8 + length + end}")
    return header


def _tensors(header: Any) -> Iterator[dict[str, Any]]:
    """Yield the tensor entries of a header, each verified to have one."""
    if not isinstance(header, dict):
        raise ValueError("its header is damaged")  # noqa: TRY004 - a file's content, not a type
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not (isinstance(offsets, list) and len(offsets) == 2):
            raise ValueError(f"its header is damaged at {name!r}")
        yield entry


def read_safetensors(file: Path) -> dict[str, mx.array]:
    """Return a file's tensors in its own order, read completely: the file may be replaced then.

    Raises:
        ValueError: It is damaged.
        OSError: It cannot be read.
    """
    header = check_safetensors(file)
    arrays: Any = mx.load(str(file))
    mx.eval(arrays)
    return {name: arrays[name] for name in header if name != "__metadata__"}


def write_safetensors(
    file: Path, arrays: Mapping[str, mx.array], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors so that the file is either whole and on the medium, or not there.

    Args:
        file: Where to; its folder exists.
        arrays: Tensors by name.
        metadata: Strings for the header.

    Raises:
        OSError: The disk is full, or another system error.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "a.safetensors"
        >>> write_safetensors(file, {"x": mx.array([1.0, 2.0], mx.bfloat16)})
        >>> read_safetensors(file)
        {'x': array([1, 2], dtype=bfloat16)}
    """
    header: dict[str, Any] = {"__metadata__": {"format": "mlx", **(metadata or {})}}
    offset = 0
    for name, array in arrays.items():
        ends = [offset, offset + array.nbytes]
        header[name] = {"dtype": _NAMES[array.dtype], "shape": array.shape, "data_offsets": ends}
        offset = ends[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts on a multiple of 8 bytes
    atomic_write(file, _pieces(text, arrays.values()))


def _pieces(header: bytes, arrays: Iterable[mx.array]) -> Iterator[bytes | memoryview]:
    yield len(header).to_bytes(8, "little")
    yield header
    for array in arrays:
        if array.size == 0:
            continue
        plain = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
        yield np.ascontiguousarray(np.array(plain)).reshape(-1).data.cast("B")
