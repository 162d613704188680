"""A run state as bytes and back: pure, exact to the bit, and strict about what it reads.

Saving has two halves. :func:`snapshot` copies the state to host memory and is the only one that
touches MLX; :func:`pieces` (or :func:`encode`) turns that copy into a file and may run on another
thread. Reading has two halves as well: :func:`inspect` proves that the bytes are what was once
written, and :func:`rebuild` puts them into the structure of a template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import mlx.core as mx
import numpy as np

from mlxfn.checkpoint import npz
from mlxfn.checkpoint.manifest import DESCR, RUN_FIELDS, compose, fits, good_name, parse, plain
from mlxfn.checkpoint.npz import Spec, damaged
from mlxfn.errors import CheckpointError
from mlxfn.state import RunState, TrainState
from mlxfn.tree import flatten, lift, lower, restore

_DTYPES = {name: getattr(mx, "bool_" if name == "bool" else name) for name in DESCR}


@attrs.frozen(eq=False)
class HostArray:
    """One array in host memory."""

    dtype: str  # MLX's name of the dtype
    data: np.ndarray  # C order; bfloat16 as uint16


@attrs.frozen(eq=False)
class HostState:
    """A run state in host memory: numpy arrays and JSON values, owned by nobody else."""

    step: int  # updates applied
    arrays: dict[str, HostArray]  # by dotted path, sorted
    run: dict[str, Any]  # every other field of RunState


@attrs.frozen(eq=False)
class Contents:
    """A file that was proven to be what was once written."""

    manifest: dict[str, Any]
    arrays: dict[str, tuple[Spec, str, memoryview]]  # by name: description, MLX dtype, content


def snapshot(state: RunState) -> HostState:
    """Copy a run state to host memory; the arrays are evaluated on the way.

    Args:
        state: The state. Its values besides the arrays are JSON values: a tuple or a number of
            another library would come back as something else, so it is refused.

    Raises:
        TypeError: A value is no JSON value, or not of the field's type.
        ValueError: The name of an array cannot be stored.

    Example:
        >>> from mlxfn.state import RunState, TrainState
        >>> train = TrainState({"w": mx.ones(2)}, {}, mx.zeros(2, mx.uint32), mx.array(7), mx.array(0))
        >>> host = snapshot(RunState(train, epoch=1))
        >>> host.step, host.run["epoch"], host.arrays["params.w"].data
        (7, 1, array([1., 1.], dtype=float32))
    """
    flat = flatten(lower(state.train))
    for name in flat:
        if not good_name(name):
            raise ValueError(f"an array cannot be stored under the name {name!r}")
    run = {
        name: plain(list(value) if isinstance(value, tuple) else value, name)
        for name, value in lower(state).items()
        if name != "train"
    }
    for name, hint in RUN_FIELDS.items():
        if not fits(run[name], hint):
            raise TypeError(f"RunState.{name} is {run[name]!r}")
    return HostState(
        step=int(np.array(state.train.step)),
        arrays={name: _to_host(flat[name]) for name in sorted(flat)},
        run=run,
    )


def pieces(host: HostState, meta: Mapping[str, Any] | None = None) -> Iterator[memoryview]:
    """Yield the file of a host state piece by piece, without copying the arrays again.

    Args:
        host: What :func:`snapshot` returned.
        meta: JSON values to keep in the manifest: configuration, fingerprints, environment.

    Raises:
        TypeError: ``meta`` holds something that is no JSON value.
        CheckpointError: The history is so long that reading it back would be refused.
    """
    kinds = {name: (array.dtype, array.data.shape) for name, array in host.arrays.items()}
    manifest = compose(host.step, kinds, host.run, plain(dict(meta or {}), "meta", tuples=True))
    arrays = [
        (Spec(name, DESCR[array.dtype], array.data.shape), _bytes_of(array.data))
        for name, array in host.arrays.items()
    ]
    return npz.write(manifest, arrays)


def encode(host: HostState, meta: Mapping[str, Any] | None = None) -> bytes:
    """Return the file of a host state; see :func:`pieces`."""
    return b"".join(pieces(host, meta))


def decode(data: bytes, template: RunState) -> tuple[RunState, dict[str, Any]]:
    """Return the run state in a file, and the file's manifest.

    Args:
        data: The whole file.
        template: A state with the names, shapes and dtypes that are expected, such as the
            initial state of the same run.

    Raises:
        CheckpointError: The file is damaged, or holds other arrays than the template.

    Example:
        >>> from mlxfn.state import RunState, TrainState
        >>> train = TrainState({"w": mx.ones(2)}, {}, mx.zeros(2, mx.uint32), mx.array(7), mx.array(0))
        >>> state = RunState(train, history=({"update": 1, "loss": float("inf")},))
        >>> again, manifest = decode(encode(snapshot(state), {"note": "first"}), state)
        >>> again.train.params, again.history, manifest["meta"]
        ({'w': array([1, 1], dtype=float32)}, ({'update': 1, 'loss': inf},), {'note': 'first'})
    """
    contents = inspect(data)
    return rebuild(contents, template), contents.manifest


def read_manifest(data: bytes) -> dict[str, Any]:
    """Return the manifest of a file after checking all of the file.

    Returns:
        ``format``, ``version``, ``step``, ``arrays`` (name, dtype, shape), ``run`` (the fields of
        RunState besides the arrays) and ``meta``.

    Raises:
        CheckpointError: The file is damaged.
    """
    return inspect(data).manifest


def peek(head: bytes) -> dict[str, Any]:
    """Return the manifest at the beginning of a file, without any check of the rest.

    Raises:
        CheckpointError: The beginning is not one of ours.
    """
    return parse(npz.manifest_of(head))


def inspect(data: bytes) -> Contents:
    """Prove that a file is, byte for byte, one that :func:`encode` made, and take it apart.

    Raises:
        CheckpointError: It is damaged, or of another format.
    """
    npz.check_digest(data)
    raw = npz.manifest_of(data)
    manifest = parse(raw)
    specs = [
        (Spec(entry["name"], DESCR[entry["dtype"]], tuple(entry["shape"])), entry["dtype"])
        for entry in manifest["arrays"]
    ]
    contents = npz.read(data, raw, [spec for spec, _ in specs])
    return Contents(
        manifest, {spec.name: (spec, dtype, contents[spec.name]) for spec, dtype in specs}
    )


def rebuild(contents: Contents, template: RunState) -> RunState:
    """Return the run state of a file in the structure of a template, evaluated.

    Args:
        contents: What :func:`inspect` returned.
        template: A state with the names, shapes and dtypes that are expected.

    Raises:
        CheckpointError: The file holds other arrays than the template.
    """
    expected = flatten(lower(template.train))
    if problems := _mismatches(contents, expected):
        raise CheckpointError(
            "the checkpoint belongs to another configuration",
            got="; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" * (len(problems) > 3)),
            remedy="resume with the settings of the run that wrote it",
        )
    flat = {name: _to_device(*found) for name, found in contents.arrays.items()}
    mx.eval(flat)
    train = lift(TrainState, restore(lower(template.train), flat))
    if train.step.item() != contents.manifest["step"]:
        raise damaged("its manifest names another update than its arrays")
    run = dict(contents.manifest["run"])
    run["history"] = tuple(run["history"])
    return RunState(train, **run)


def _mismatches(contents: Contents, expected: Mapping[str, mx.array]) -> list[str]:
    found = {
        name: f"{dtype} {list(spec.shape)}" for name, (spec, dtype, _) in contents.arrays.items()
    }
    wanted = {name: f"{_name(leaf)} {list(leaf.shape)}" for name, leaf in expected.items()}
    return [
        f"{name}: {found.get(name, 'missing')}, expected {wanted.get(name, 'nothing')}"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]


# Arrays


def _name(array: mx.array) -> str:
    return str(array.dtype).rpartition(".")[2]


def _to_host(array: mx.array) -> HostArray:
    bits = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    name = _name(array)
    data = np.array(bits, order="C", copy=True)
    return HostArray(name, data.astype(DESCR[name], copy=False))  # a big-endian host swaps


def _bytes_of(data: np.ndarray) -> memoryview:
    return data.reshape(-1).view(np.uint8).data


def _to_device(spec: Spec, dtype: str, content: memoryview) -> mx.array:
    if dtype == "bool" and content.nbytes and max(content) > 1:
        raise damaged(f"{spec.name} holds bytes that are neither true nor false")
    data = np.frombuffer(content, dtype=spec.descr).reshape(spec.shape)
    if dtype == "bfloat16":
        return mx.array(data).view(mx.bfloat16)
    return mx.array(data, dtype=_DTYPES[dtype])
