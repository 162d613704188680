"""Facts about quantized layers that unpack their weight for each product."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx import nn

from mlxfn.models.dropout import keyed
from mlxfn.models.lora import dora, lora
from mlxfn.models.model import Model
from mlxfn.models.unpack import can_unpack, faster_route, unpack_first
from mlxfn.tree import same_bits
from tests.models.test_remat import assert_same, value_and_grad
from tests.support.models import shaken

PACKINGS = [
    *[(bits, group, "affine") for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)],
    (4, 32, "mxfp4"),
    (8, 32, "mxfp8"),
    (4, 16, "nvfp4"),
]
X = mx.random.normal((2, 3, 128), key=mx.random.key(0))


def near(a, b, share=1e-5):
    return mx.max(mx.abs(a - b)).item() <= share * mx.max(mx.abs(b)).item()


@pytest.mark.parametrize(("bits", "group", "mode"), PACKINGS)
def test_every_packing_gives_the_packed_product_and_gradient(bits, group, mode):
    """All bit widths and modes that MLX has."""
    linear = nn.Linear(128, 64, bias=mode == "affine")
    layer = nn.QuantizedLinear.from_linear(linear, group, bits, mode=mode)
    cotangent = mx.random.normal((2, 3, 64), key=mx.random.key(1))
    holder = nn.Sequential(layer)
    assert unpack_first(holder) == 1

    def inside(x):
        with keyed(None):
            return holder(x)

    ours = mx.vjp(inside, [X], [cotangent])
    packed = mx.vjp(holder, [X], [cotangent])  # outside of a functional pass nothing changes
    assert all(near(a[0], b[0]) for a, b in zip(ours, packed, strict=True))


def test_the_product_is_in_the_dtype_of_its_input():
    """Scales kept in fp32 would promote a bf16 model."""
    layer = nn.QuantizedLinear(128, 64, bias=False)
    unpack_first(holder := nn.Sequential(layer))
    with keyed(None):
        assert holder(X.astype(mx.bfloat16)).dtype == mx.bfloat16


def quantized(model):
    module = type(model.module)(model.module.args)
    module.update(model.module.parameters())
    nn.quantize(module, 32, 4)
    return Model(module.freeze(), config=model.config, vocab_size=model.vocab_size)


@pytest.mark.parametrize("build", [lora, dora])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_an_adapter_on_unpacked_weights_trains_alike(model_of, kind, build):
    """The head, tied to a packed embedding or not, takes the same way."""
    base = quantized(model_of(kind))
    options = {"rank": 4, "dropout": 0.3, "target_modules": "all-linear"}
    plain = build(base, **options)
    ours = build(base, **options, quantized="unpacked", lean="all")
    assert {type(layer.mlp).__name__ for layer in ours.module.layers} == {"LeanMLP"}
    assert not any(type(m).__name__.startswith("Unpacking") for m in plain.module.modules())
    assert any(type(m).__name__.startswith("Unpacking") for m in ours.module.modules())
    params = shaken(plain.params)
    assert_same(value_and_grad(ours, params), value_and_grad(plain, params), 1e-5)


def test_dora_on_unpacked_weights_unpacks(llama):
    """It multiplies by its weight without calling the layer."""
    base = quantized(llama)
    adapter = dora(base, rank=4, quantized="unpacked")
    layer = adapter.module.layers[0].self_attn.q_proj
    x = mx.random.normal((1, 2, 32), key=mx.random.key(0))
    plain = layer(x)
    with keyed(None):
        unpacked = layer(x)
    assert near(unpacked, plain)
    assert not same_bits(unpacked, plain)


def test_dense_layers_are_not_unpacked():
    """There is nothing to unpack."""
    assert not can_unpack(nn.Linear(64, 8))
    assert unpack_first(nn.Sequential(nn.Linear(64, 8))) == 0


def test_the_faster_route_is_one_of_the_two():
    """On a model with packed layers there is an answer, on another there is none."""
    module = nn.Sequential(nn.QuantizedLinear(128, 64), nn.QuantizedLinear(64, 64))
    assert faster_route(module, tokens=16, dtype=mx.float32) in {"packed", "unpacked"}
    assert faster_route(nn.Sequential(nn.Linear(8, 8)), tokens=16, dtype=mx.float32) is None
