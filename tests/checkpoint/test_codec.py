"""The codec: exact to the bit on the way out, and deaf to anything but its own bytes."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import subprocess
import zipfile

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxfn import tree
from mlxfn.checkpoint.codec import (
    decode,
    encode,
    inspect,
    peek,
    pieces,
    read_manifest,
    snapshot,
)
from mlxfn.errors import CheckpointError
from mlxfn.state import RunState, TrainState
from tests.support.states import json_tables, run_states, same_state, small_state

SMALL = encode(snapshot(small_state()), {"note": "small"})


def seal(body: bytes) -> bytes:
    """Put a right digest behind a wrong body, as somebody would who means harm."""
    return body + hashlib.sha256(body).hexdigest().encode()


@settings(max_examples=150)
@given(run_states(), json_tables)
def test_every_run_state_comes_back_as_it_was(state, meta):
    """A bit lost in a checkpoint is a resumed run that differs from one never stopped."""
    again, manifest = decode(encode(snapshot(state), meta), state)
    assert same_state(again, state)
    assert manifest["step"] == state.train.step.item()
    assert json.dumps(manifest["meta"]) == json.dumps(meta)


@settings(max_examples=30)
@given(run_states())
def test_numpy_opens_a_checkpoint_without_pickle(state):
    """Nobody should need mlxfn to look into their own weights."""
    flat = tree.flatten(tree.lower(state.train))
    with np.load(io.BytesIO(encode(snapshot(state))), allow_pickle=False) as file:
        assert set(file) == {"manifest.json", *flat}
        assert json.loads(file["manifest.json"])["format"] == "mlxfn checkpoint"
        for name, leaf in flat.items():
            bits = leaf.view(mx.uint16) if leaf.dtype == mx.bfloat16 else leaf
            expected = np.array(bits)
            assert file[name].dtype == expected.dtype
            assert file[name].shape == expected.shape
            assert file[name].tobytes() == expected.tobytes()


def test_zip_tools_find_nothing_wrong(tmp_path):
    """The container is a plain zip: every member stored, every checksum right."""
    path = tmp_path / "state.npz"
    path.write_bytes(SMALL)
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert {info.compress_type for info in file.infolist()} == {zipfile.ZIP_STORED}
    if unzip := shutil.which("unzip"):
        done = subprocess.run([unzip, "-t", path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


def test_arrays_lie_at_multiples_of_64_bytes():
    """They can be mapped into memory and read by any processor."""
    with zipfile.ZipFile(io.BytesIO(SMALL)) as file:
        members = file.infolist()[1:]
    assert members
    for info in members:
        header = SMALL.index(b"\x93NUMPY", info.header_offset)
        data = SMALL.index(b"\n", header) + 1
        assert header % 64 == data % 64 == 0


def test_the_same_state_gives_the_same_bytes_in_any_order_of_names():
    """A checkpoint of a resumed run can be compared byte for byte with one of a run never stopped."""

    def state(names):
        params = {name: mx.array([ord(name)]) for name in names}
        return RunState(TrainState(params, {}, mx.zeros(2, mx.uint32), mx.array(1), mx.array(0)))

    assert encode(snapshot(state("abc"))) == encode(snapshot(state("cba")))


def test_streaming_gives_the_same_bytes_as_encoding_at_once():
    """The store streams what the tests of this file check in one piece."""
    assert b"".join(pieces(snapshot(small_state()), {"note": "small"})) == SMALL


def test_every_single_bit_flip_is_rejected():
    """Disks and memory do flip bits, and MLX's own loader takes most of them for weights."""
    for bit in range(len(SMALL) * 8):
        flipped = bytearray(SMALL)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CheckpointError):
            inspect(bytes(flipped))


def test_every_truncation_is_rejected():
    """A file cut short by a crash must never be taken for the latest state."""
    for length in range(len(SMALL)):
        with pytest.raises(CheckpointError):
            inspect(SMALL[:length])


@pytest.mark.parametrize("extra", [b"\0", b"PK", SMALL])
def test_anything_behind_or_before_the_end_is_rejected(extra):
    """A zip reader would look past both; two readers must not see two different files."""
    for data in (SMALL + extra, extra + SMALL, seal(SMALL + extra), seal(extra + SMALL[:-64])):
        with pytest.raises(CheckpointError):
            inspect(data)


def test_every_changed_byte_is_rejected_even_under_a_right_digest():
    """The digest keeps out accidents; the canonical layout keeps out files made by hand."""
    body, rng = SMALL[:-64], random.Random(0)
    assert inspect(seal(body)).manifest["step"] == 7
    for at in range(len(body)):
        changed = bytearray(body)
        changed[at] ^= rng.randrange(1, 256)
        with pytest.raises(CheckpointError):
            inspect(seal(bytes(changed)))


@settings(max_examples=300)
@given(st.data())
def test_no_mutation_raises_anything_but_its_own_error(data):
    """A hostile file may only ever be refused: no other exception, no crash, no other state."""
    body = bytearray(SMALL[:-64])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(body)))
        end = data.draw(st.integers(start, min(len(body), start + 40)))
        body[start:end] = data.draw(st.binary(max_size=40) | st.just(SMALL[end:start]))
    sealed = seal(bytes(body))
    if sealed == SMALL:
        return
    with pytest.raises(CheckpointError):
        decode(sealed, small_state())


def test_a_later_change_of_the_state_does_not_reach_what_is_written():
    """The loop goes on while a worker writes: what it writes is the moment of the snapshot."""
    state = small_state()
    host = snapshot(state)
    before = encode(host)
    state.monitors["early_stopping"]["seen"].append(3)
    state.history[0]["loss"] = 0.0
    assert encode(host) == before
    assert all(array.data.flags.owndata for array in host.arrays.values())


@pytest.mark.parametrize(
    "change",
    [
        {"monitors": {"window": (1, 2)}},
        {"monitors": {"loss": np.float64(1.0)}},
        {"monitors": {3: 1}},
        {"history": ({"loss": mx.array(1.0)},)},
        {"history": (3,)},
        {"best_step": True},
        {"epoch": -1},
        {"best_loss": 1},
    ],
    ids=str,
)
def test_a_value_that_would_come_back_as_another_is_refused_when_saving(change):
    """A tuple that returns as a list is a state that differs after a resume."""
    state = RunState(small_state().train, **change)
    with pytest.raises(TypeError):
        snapshot(state)


@pytest.mark.parametrize("name", ["../up", "a/b", "a\\b", "a\0b", "c:d", "\ud800", "x" * 1001])
def test_a_name_that_could_be_taken_for_a_path_is_refused_when_saving(name):
    """Somebody will unzip a checkpoint; no member of it may land outside that folder."""
    train = TrainState({name: mx.zeros(1)}, {}, mx.zeros(2, mx.uint32), mx.array(1), mx.array(0))
    with pytest.raises(ValueError, match="cannot be stored"):
        snapshot(RunState(train))


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "params.w: float32 [2], expected nothing"),
        ({"w": mx.zeros(2), "v": mx.zeros(1)}, "params.v: missing, expected float32 [1]"),
        ({"w": mx.zeros(3)}, "params.w: float32 [2], expected float32 [3]"),
        ({"w": mx.zeros((2, 1))}, "params.w: float32 [2], expected float32 [2, 1]"),
        ({"w": mx.zeros(2, mx.bfloat16)}, "params.w: float32 [2], expected bfloat16 [2]"),
    ],
    ids=["extra", "missing", "size", "rank", "dtype"],
)
def test_another_configuration_is_refused_with_the_difference(params, said):
    """MLX's own update takes wrong shapes silently; a resumed run must not."""

    def state(params):
        return RunState(TrainState(params, {}, mx.zeros(2, mx.uint32), mx.array(1), mx.array(0)))

    with pytest.raises(CheckpointError) as error:
        decode(encode(snapshot(state({"w": mx.zeros(2)}))), state(params))
    assert said in str(error.value)
    assert "another configuration" in error.value.what
    assert error.value.exit_code == 4


def test_the_manifest_can_be_read_from_the_head_alone():
    """A list of checkpoints does not read gigabytes of weights."""
    head = SMALL[: SMALL.index(b"\x93NUMPY")]
    assert peek(head) == read_manifest(SMALL)
    assert peek(head)["meta"] == {"note": "small"}
    with pytest.raises(CheckpointError):
        peek(head[:100])
