"""Facts about the arithmetic of adapter layers, against plain formulas in float64."""

from __future__ import annotations

import mlx.core as mx
import mlx_lm.tuner.dora as theirs_dora
import mlx_lm.tuner.lora as theirs_lora
import numpy as np
import pytest
from mlx import nn
from mlx_lm.models.switch_layers import SwitchLinear

from mlxfn.models.dora import DoRAEmbedding, DoRALinear
from mlxfn.models.dropout import KeyedDropout, keyed
from mlxfn.models.layers import LoRAEmbedding, LoRALinear, LoRASwitchLinear, low_rank
from mlxfn.models.quantized import dense_weight, sizes
from mlxfn.tree import flatten, same_bits

BITS = [2, 3, 4, 5, 6, 8]
KEY = mx.random.key(0)
IDS = mx.array([[3, 0, 7], [7, 7, 1]])


def draw(shape, seed):
    return mx.random.normal(shape, key=mx.random.key(seed))


def linear(inputs=64, outputs=24, *, bias=True):
    layer = nn.Linear(inputs, outputs, bias=bias)
    layer.weight = 0.3 * draw((outputs, inputs), 1)
    if bias:
        layer.bias = draw((outputs,), 2)
    return layer


def embedding(rows=8, size=64):
    layer = nn.Embedding(rows, size)
    layer.weight = draw((rows, size), 3)
    return layer


def experts():
    layer = SwitchLinear(64, 24, 4, bias=True)
    layer.weight, layer.bias = draw((4, 24, 64), 4), draw((4, 24), 5)
    return layer


def adapted(kind, base, *, scale=1.7, dropout=0.0, rank=5):
    """Return an adapter layer whose leaves have all moved from their initial values."""
    layer = kind(base, rank, scale, KeyedDropout(dropout, 1), KEY)
    for seed, leaf in enumerate(kind.leaves):
        layer[leaf] = layer[leaf] + 0.1 * draw(layer[leaf].shape, 10 + seed)
    return layer


def f64(array):
    return np.array(array.astype(mx.float32)).astype(np.float64)


def merged(layer, base):
    """Return the adapted weight [out, in] by the definition, in float64."""
    w, a, b = f64(dense_weight(base)), f64(layer.lora_a), f64(layer.lora_b)
    update = layer.scale * (a @ b)
    w = w + (update if isinstance(base, nn.Embedding | nn.QuantizedEmbedding) else update.T)
    if "m" in layer:
        w = f64(layer.m)[:, None] * w / np.linalg.norm(w, axis=1, keepdims=True)
    return w


@pytest.mark.parametrize("kind", [LoRALinear, DoRALinear])
@pytest.mark.parametrize("bits", [None, *BITS])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_follow_their_formula(kind, bits, bias):
    """For 3, 5 and 6 bits too, where multiplying out the packed width gives a wrong size."""
    base = linear(bias=bias)
    base = base if bits is None else base.to_quantized(group_size=32, bits=bits)
    layer, x = adapted(kind, base), draw((2, 3, 64), 6)
    expected = f64(x) @ merged(layer, base).T + (f64(base.bias) if bias else 0)
    assert sizes(base) == (64, 24)
    np.testing.assert_allclose(f64(layer(x)), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "bits"),
    [(LoRAEmbedding, None), (LoRAEmbedding, 3), (LoRAEmbedding, 4), (DoRAEmbedding, None)],
)
def test_embeddings_follow_their_formula(kind, bits):
    """As a table and as the tied head that reads the same table."""
    base = embedding()
    base = base if bits is None else base.to_quantized(group_size=32, bits=bits)
    layer, x = adapted(kind, base), draw((2, 3, 64), 6)
    table = merged(layer, base)
    np.testing.assert_allclose(f64(layer(IDS)), table[np.array(IDS)], atol=2e-5)
    np.testing.assert_allclose(f64(layer.as_linear(x)), f64(x) @ table.T, atol=2e-5)


@pytest.mark.parametrize("bits", [None, 3, 4])
def test_expert_layers_follow_their_formula(bits):
    """Every token goes through its own expert's update."""
    base = experts()
    base = base if bits is None else base.to_quantized(group_size=32, bits=bits)
    layer, x, indices = (
        adapted(LoRASwitchLinear, base),
        draw((6, 1, 64), 6),
        mx.array([0, 3, 1, 1, 2, 0]),
    )
    w = f64(dense_weight(base)) + layer.scale * f64(layer.lora_b) @ f64(layer.lora_a)
    expected = [f64(x)[i] @ w[e].T + f64(base.bias)[e] for i, e in enumerate(indices.tolist())]
    np.testing.assert_allclose(f64(layer(x, indices)), np.stack(expected), atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "base", "theirs"),
    [
        (LoRALinear, linear(), theirs_lora.LoRALinear),
        (LoRAEmbedding, embedding(), theirs_lora.LoRAEmbedding),
        (LoRASwitchLinear, experts(), theirs_lora.LoRASwitchLinear),
        (DoRALinear, linear(), theirs_dora.DoRALinear),
        (DoRAEmbedding, embedding(), theirs_dora.DoRAEmbedding),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_names_shapes_and_gradients_are_mlx_lms(kind, base, theirs):
    """An export loads only if names and shapes agree; gradients show that no term is missing."""
    ours = adapted(kind, base.freeze())
    other = theirs.from_base(base, r=5, scale=1.7)
    other.update({leaf: ours[leaf] for leaf in kind.leaves})
    shapes = {name: leaf.shape for name, leaf in flatten(other.parameters()).items()}
    assert {name: leaf.shape for name, leaf in flatten(ours.parameters()).items()} == shapes
    x = draw((2, 1, 64), 6)
    args = {SwitchLinear: (x, mx.array([1, 2])), nn.Embedding: (IDS,)}.get(type(base), (x,))

    def gradients(layer):
        loss = nn.value_and_grad(layer, lambda *a: mx.sum(mx.sin(layer(*a))))
        return flatten(loss(*args)[1])

    mine, hers = gradients(ours), gradients(other)
    assert mine.keys() == hers.keys() == set(kind.leaves)
    for name in mine:
        assert mx.allclose(mine[name], hers[name], atol=2e-5), name


@pytest.mark.parametrize("kind", [LoRALinear, DoRALinear])
def test_a_fresh_layer_is_its_base(kind):
    """Training has to start from the model as it is; for LoRA bit for bit."""
    base, x = linear(), draw((2, 64), 6)
    layer = kind(base, 5, 2.0, KeyedDropout(0.0, 1), KEY)
    if kind is LoRALinear:
        assert same_bits(layer(x), base(x))
    assert mx.allclose(layer(x), base(x), atol=1e-5)


@pytest.mark.parametrize("kind", [LoRALinear, DoRALinear, LoRAEmbedding, DoRAEmbedding])
@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_the_forward_pass_keeps_the_bases_dtype(kind, dtype):
    """mlx-lm's fp32 adapters promote every activation after them to fp32."""
    base = embedding() if "Embedding" in kind.__name__ else linear()
    base.set_dtype(dtype)
    layer = adapted(kind, base)
    x = draw((2, 64), 6).astype(dtype)
    assert layer.lora_a.dtype == mx.float32
    assert layer(IDS if "Embedding" in kind.__name__ else x).dtype == dtype
    assert "Embedding" not in kind.__name__ or layer.as_linear(x).dtype == dtype


def test_the_update_is_computed_in_the_bases_dtype():
    """Not in the masters' fp32 and cast afterwards, which would cost the time of fp32."""
    x, a, b = draw((2, 8), 1).astype(mx.bfloat16), draw((8, 3), 2), draw((3, 4), 3)
    expected = (x @ a.astype(mx.bfloat16)) @ b.astype(mx.bfloat16)
    assert same_bits(low_rank(x, a, b, 1.0), expected)


def test_dropout_reaches_the_update_alone():
    """A dropped base would be another model."""
    base, x = linear(), draw((8, 64), 6)
    layer = adapted(LoRALinear, base, dropout=0.5)
    update = layer(x) - base(x)
    with keyed(KEY):
        dropped = layer(x) - base(x)
        expected = layer.scale * (layer.dropout(x) @ layer.lora_a) @ layer.lora_b
    assert not mx.allclose(dropped, update, atol=1e-2)
    assert mx.allclose(dropped, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (LoRALinear, linear()),
        (LoRALinear, linear().to_quantized(32, 3)),
        (DoRALinear, linear().to_quantized(32, 4)),
        (LoRAEmbedding, embedding().to_quantized(32, 6)),
        (DoRAEmbedding, embedding()),
        (LoRASwitchLinear, experts().to_quantized(32, 4)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_fused_layer_computes_the_same(kind, base):
    """Exactly as floating point; packed again, it has the base's packing."""
    layer, x = adapted(kind, base), draw((2, 1, 64), 6)
    args = {"Switch": (x, mx.array([1, 2])), "Embedd": (IDS,)}.get(kind.__name__[4:10], (x,))
    fused = layer.fuse(dequantize=True)
    assert mx.allclose(fused(*args), layer(*args), atol=2e-5)
    again = layer.fuse()
    assert type(again) is type(base)
    assert getattr(again, "bits", None) == getattr(base, "bits", None)
    assert flatten(again.parameters()).keys() == flatten(base.parameters()).keys()


def test_a_dora_row_that_vanishes_stays_finite():
    """Weight and update that cancel give a norm of zero, and rounding one below it."""
    base = linear(2, 2, bias=False)
    base.weight = mx.array([[1.0, 0.1], [0.3, 0.7]])
    layer = DoRALinear(base, 2, 1.0, KeyedDropout(0.0, 1), KEY)
    layer.lora_a, layer.lora_b = mx.eye(2), -base.weight.T
    assert bool(mx.all(mx.isfinite(layer(mx.ones((1, 2))))))
