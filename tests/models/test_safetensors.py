"""Facts about safetensors files: readable by others, refused when damaged, whole or not there."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxfn.models.safetensors import check_safetensors, read_safetensors, write_safetensors
from mlxfn.tree import same_bits

DTYPES = [mx.float32, mx.float16, mx.bfloat16, mx.uint32, mx.int8, mx.bool_, mx.int64]
ARRAYS = {
    **{str(dtype): mx.arange(6).reshape(2, 3).astype(dtype) for dtype in DTYPES},
    "turned": mx.arange(6).reshape(2, 3).T,
    "scalar": mx.array(3.5),
    "empty": mx.zeros((0, 4)),
}


def test_what_is_written_is_read_bit_for_bit(tmp_path):
    """By this module and by mlx itself; 16-bit, turned, scalar and empty arrays included."""
    file = tmp_path / "a.safetensors"
    write_safetensors(file, ARRAYS)
    assert same_bits(read_safetensors(file), ARRAYS)
    assert same_bits(mx.load(str(file)), ARRAYS)


def test_the_safetensors_library_reads_it(tmp_path):
    """PyTorch users load exports with it, and it is strict about the layout."""
    file = tmp_path / "a.safetensors"
    arrays = {name: array for name, array in ARRAYS.items() if array.dtype != mx.bfloat16}
    write_safetensors(file, arrays, {"format": "pt"})
    for name, array in safetensors.numpy.load_file(file).items():
        np.testing.assert_array_equal(array, np.array(arrays[name]))
    with safetensors.safe_open(file, "np") as opened:
        assert opened.metadata() == {"format": "pt"}


@settings(max_examples=60)
@given(data=st.data())
def test_a_cut_file_is_always_noticed(tmp_path_factory, data):
    """A download can break off anywhere."""
    file = tmp_path_factory.mktemp("cut") / "a.safetensors"
    write_safetensors(file, {"a": mx.ones((3, 5)), "b": mx.ones(2)})
    content = file.read_bytes()
    keep = data.draw(st.integers(0, len(content) - 1))
    file.write_bytes(content[:keep])
    with pytest.raises(ValueError, match=r"safetensors|damaged|bytes"):
        check_safetensors(file)


@pytest.mark.parametrize(
    "header",
    [b"[]", b'{"a": 3}', b'{"a": {"data_offsets": 4}}', b'{"a": {}}', b"not json", b"\xff\xff"],
)
def test_a_wrong_header_is_a_value_error(tmp_path, header):
    """Crafted or corrupted, it must not reach MLX's own reader, which can crash."""
    file = tmp_path / "a.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="damaged"):
        check_safetensors(file)


def test_the_file_may_be_replaced_after_reading(tmp_path):
    """MLX reads lazily: what was not evaluated would be read from the new file."""
    file = tmp_path / "a.safetensors"
    write_safetensors(file, {"a": mx.zeros(1000)})
    arrays = read_safetensors(file)
    file.write_bytes(b"\1" * file.stat().st_size)  # in place, as mlx saves
    assert not mx.any(arrays["a"])


def test_a_failed_write_leaves_the_old_file(tmp_path):
    """And no temporary file."""
    file = tmp_path / "a.safetensors"
    write_safetensors(file, {"a": mx.zeros(2)})
    before = file.read_bytes()
    with pytest.raises(KeyError):
        write_safetensors(file, {"a": mx.zeros(2, mx.complex64)})
    assert file.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_header_is_padded_so_that_the_data_is_aligned(tmp_path):
    """Readers map the file and expect numbers on their own boundaries."""
    file = tmp_path / "a.safetensors"
    for name in ("a", "ab", "abc"):
        write_safetensors(file, {name: mx.zeros(2)})
        length = int.from_bytes(file.read_bytes()[:8], "little")
        assert length % 8 == 0
        assert json.loads(file.read_bytes()[8 : 8 + length])[name]["data_offsets"] == [0, 8]
