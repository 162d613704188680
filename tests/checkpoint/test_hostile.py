"""Checkpoints made by hand to do harm: each is sealed with a right digest, and each is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import pytest

from mlxfn.checkpoint import npz
from mlxfn.checkpoint.codec import decode, encode, inspect, snapshot
from mlxfn.checkpoint.manifest import compose
from mlxfn.checkpoint.npz import Spec
from mlxfn.errors import CheckpointError
from mlxfn.state import RunState, TrainState
from tests.support.states import small_state

TEMPLATE = RunState(
    TrainState({"w": mx.zeros(2)}, {}, mx.zeros(2, mx.uint32), mx.array(1), mx.array(0))
)
HOST = snapshot(TEMPLATE)
GOOD = encode(HOST)
KINDS = {name: (array.dtype, array.data.shape) for name, array in HOST.arrays.items()}
MANIFEST: dict[str, Any] = json.loads(compose(HOST.step, KINDS, HOST.run, {}))
DESCRS = {"float32": "<f4", "uint32": "<u4", "int32": "<i4"}


def text(manifest: Any) -> bytes:
    """Return a manifest as the codec writes it."""
    return json.dumps(manifest, separators=(",", ":")).encode()


def forge(manifest: bytes, extra: tuple[Spec, bytes] | None = None) -> bytes:
    """Seal any manifest with the arrays of the good file."""
    arrays = [
        (Spec(name, DESCRS[array.dtype], array.data.shape), memoryview(array.data.tobytes()))
        for name, array in HOST.arrays.items()
    ]
    if extra:
        arrays.append((extra[0], memoryview(extra[1])))
    return b"".join(npz.write(manifest, arrays))


def with_(**changes: Any) -> bytes:
    """Seal the good manifest with some of its fields changed."""
    return forge(text(MANIFEST | changes))


def with_array(name: Any = "params.w", dtype: Any = "float32", shape: Any = (2,)) -> bytes:
    """Seal a manifest whose last array is described like this."""
    entry = {"name": name, "dtype": dtype, "shape": list(shape) if shape is not None else None}
    arrays = [entry if e["name"] == "params.w" else e for e in MANIFEST["arrays"]]
    return with_(arrays=arrays)


def with_run(**changes: Any) -> bytes:
    """Seal a manifest with other fields of the run state."""
    return with_(run=MANIFEST["run"] | changes)


def duplicate_key() -> bytes:
    """Name the step twice, with two values."""
    return forge(text(MANIFEST).replace(b'"step":1', b'"step":1,"step":1'))


def pickled() -> bytes:
    """Put a pickle where numpy would look for an array of objects."""
    harm = pickle.dumps(print)
    body = bytearray(forge(text(MANIFEST), (Spec("params.v", "|u1", (len(harm),)), harm)))
    at = body.rindex(b"'descr': '|u1'")
    body[at : at + 14] = b"'descr': '|O' "
    return bytes(body)


def overlapping() -> bytes:
    """Let the directory's last entry point at the first member."""
    body = bytearray(GOOD)
    at = body.rindex(b"PK\1\2")
    name_length = struct.unpack_from("<H", body, at + 28)[0]
    struct.pack_into("<Q", body, at + 46 + name_length + 20, 0)
    return bytes(body)


CASES: dict[str, bytes | Callable[[], bytes]] = {
    "nothing": b"",
    "a digest of nothing": b"",
    "a zip of nothing": b"PK\5\6" + bytes(18),
    "a manifest of 2**64 - 1 bytes": GOOD[:47] + b"\xff" * 16 + GOOD[63:],
    "no JSON": forge(b"{"),
    "JSON in UTF-16": forge(json.dumps(MANIFEST).encode("utf-16")),
    "JSON with spaces": forge(json.dumps(MANIFEST).encode()),
    "a list": forge(b"[]"),
    "a number": forge(b"1"),
    "deep lists": forge(b"[" * 100_000 + b"]" * 100_000),
    "deep tables": forge(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "a million lists": forge(b"[" + b"[]," * 1_000_000 + b"[]]"),
    "a million tables": forge(b"[" + b"{}," * 1_000_000 + b"{}]"),
    "a number of 100,000 digits": forge(b"1" * 100_000),
    "a float beyond all floats": forge(text(MANIFEST).replace(b'"epoch_total":0.0', b'"epoch_total":1e999')),
    "a duplicate key": duplicate_key,
    "another format": with_(format="safetensors"),
    "a newer version": with_(version=2),
    "a version that is true": with_(version=True),
    "a step that is no integer": with_(step=1.0),
    "a negative step": with_(step=-1),
    "another step than the arrays": with_(step=2),
    "no arrays": with_(arrays=[]),
    "arrays that are a table": with_(arrays={}),
    "an array too many": with_(arrays=[*MANIFEST["arrays"], {"name": "x", "dtype": "int8", "shape": [1]}]),
    "an array twice": with_(arrays=[*MANIFEST["arrays"], MANIFEST["arrays"][0]]),
    "an unknown key": with_(more=1),
    "a missing key": forge(text({k: v for k, v in MANIFEST.items() if k != "meta"})),
    "meta that is a list": with_(meta=[]),
    "an unknown dtype": with_array(dtype="object"),
    "a dtype that is a list": with_array(dtype=["float32"]),
    "a dtype of the same size": with_array(dtype="int32"),
    "an absurd shape": with_array(shape=(2**62, 2**62)),
    "a shape that wraps around": with_array(shape=(2**32, 2**32, 2)),
    "a shape beyond 64 bits": with_array(shape=(2**64 + 2,)),
    "a shape of a thousand dimensions": with_array(shape=(1,) * 1000),
    "a negative shape": with_array(shape=(-1, -2)),
    "a shape of booleans": with_array(shape=(True, 2)),
    "a shape of floats": with_array(shape=(2.0,)),
    "no shape": with_array(shape=None),
    "another shape of the same size": with_array(shape=(1, 2)),
    "a name that climbs": with_array(name="../../w"),
    "an absolute name": with_array(name="/etc/passwd"),
    "a name with a zero byte": with_array(name="params.w\0"),
    "a name that is no text": with_array(name=3),
    "a very long name": with_array(name="w" * 70_000),
    "another name": with_array(name="params.W"),
    "a run without fields": with_(run={}),
    "a run with a field too many": with_run(more=1),
    "an epoch that is a text": with_run(epoch="1"),
    "a negative position": with_run(position=-1),
    "a history of numbers": with_run(history=[1]),
    "monitors that are a list": with_run(monitors=[]),
    "a best loss that is a table": with_run(best_loss={}),
    "a pickle": pickled,
    "members that overlap": overlapping,
}  # fmt: skip


def sealed(case: bytes | Callable[[], bytes]) -> bytes:
    """Return a hostile file under a right digest."""
    data = case() if callable(case) else case
    body = data[:-64] if len(data) >= 64 else data
    return body + hashlib.sha256(body).hexdigest().encode()


def test_the_good_file_is_good():
    """The forger's tools themselves make files that are accepted."""
    assert forge(text(MANIFEST)) == GOOD == sealed(GOOD)
    assert decode(GOOD, TEMPLATE)[1]["step"] == 1


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_hostile_checkpoint_is_refused(case):
    """A checkpoint may come from anywhere: no crash, no code run, no memory beyond its size."""
    data = sealed(case)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError):
            decode(data, TEMPLATE)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 2 * len(data) + (64 << 20)


def layout(*entries: tuple[str, str, tuple[int, ...], bytes]) -> bytes:
    """Seal a file whose manifest and layout agree on these arrays, whatever they are."""
    arrays = [{"name": name, "dtype": dtype, "shape": shape} for name, dtype, shape, _ in entries]
    contents = [
        (Spec(name, DESCRS[dtype], shape), memoryview(data)) for name, dtype, shape, data in entries
    ]
    return b"".join(npz.write(text(MANIFEST | {"arrays": arrays}), contents))


def test_a_file_that_agrees_with_itself_passes_the_first_gate():
    """Without this the next test could pass for any reason."""
    assert set(inspect(layout(("w", "float32", (1, 1), bytes(4)))).arrays) == {"w"}


@pytest.mark.parametrize(
    "entries",
    [
        [("w", "float32", (1,), bytes(4))] * 2,
        [("../w", "float32", (1,), bytes(4))],
        [("/w", "float32", (1,), bytes(4))],
        [("w\n", "float32", (1,), bytes(4))],
        [("w" * 1001, "float32", (1,), bytes(4))],
        [("w", "float32", (0, 2**63), b"")],
        [("w", "float32", (1,) * 33, bytes(4))],
    ],
    ids=["twice", "climbs", "absolute", "newline", "long", "beyond int64", "33 dimensions"],
)
def test_a_file_that_agrees_with_itself_is_refused_for_what_it_says(entries):
    """`mlxfn checkpoints --verify` has no template to compare with."""
    with pytest.raises(CheckpointError, match="malformed"):
        inspect(layout(*entries))


def test_sizes_are_compared_with_the_file_before_anything_is_made_of_them():
    """An array of 2**62 elements is an arithmetic problem and not an allocation."""
    with pytest.raises(CheckpointError, match="shorter than its arrays"):
        inspect(with_array(shape=(2**62, 2**62)))


def test_bytes_that_are_neither_true_nor_false_are_refused():
    """C++ may do anything with a bool that is 2."""
    train = TrainState(
        {"b": mx.array([True])}, {}, mx.zeros(2, mx.uint32), mx.array(1), mx.array(0)
    )
    host = snapshot(RunState(train))
    host.arrays["params.b"].data.view("u1")[0] = 2
    with pytest.raises(CheckpointError, match="neither true nor false"):
        decode(encode(host), RunState(train))


def test_a_history_too_long_to_be_read_back_is_refused_when_saving():
    """What is written can be read: the limit is the same on both sides."""
    entry = {"a": 0, "b": 0}
    state = RunState(small_state().train, history=(entry,) * 400_000)
    with pytest.raises(CheckpointError, match="too long"):
        encode(snapshot(state))


def test_a_long_history_of_a_real_run_is_no_hostile_file():
    """A hundred thousand logged updates fit into a checkpoint."""
    entry = {"event": "step", "loss": 2.123456789012345, "grad_norm": 0.123456789012345,
             "learning_rate": 0.0001999999, "tokens": 4096, "rows": 8, "update": 100_000,
             "epoch": 3}  # fmt: skip
    state = RunState(TEMPLATE.train, history=(entry,) * 100_000)
    again, _ = decode(encode(snapshot(state)), TEMPLATE)
    assert again.history == state.history
