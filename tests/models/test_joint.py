"""Facts about linear layers with one input, computed together."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx import nn

from mlxfn.models.dropout import KeyedDropout, keyed
from mlxfn.models.joint import joint_outputs
from mlxfn.models.layers import LoRALinear
from mlxfn.models.slots import swapped, trainable_slots
from mlxfn.models.unpack import unpack_first

X = mx.random.normal((2, 3, 64), key=mx.random.key(0))
SIZES = (64, 32, 96)
KINDS = ["adapted", "plain", "mixed", "packed", "unpacked", "biased"]


def layers_of(kind, dropout=0.0):
    """Three layers with one input, of which some are adapted and some packed."""
    found = []
    for i, size in enumerate(SIZES):
        key = mx.random.key(i + 1)
        base = nn.Linear(64, size, bias=kind == "biased")
        if kind in ("packed", "unpacked"):
            base = nn.QuantizedLinear.from_linear(base, 32, 4)
        base.freeze()
        if kind == "plain" or (kind == "mixed" and i == 1):
            found.append(base)
            continue
        layer = LoRALinear(base, 4, 2.0, KeyedDropout(dropout, i), key)
        layer.lora_b = mx.random.normal(layer.lora_b.shape, key=key)
        found.append(layer)
    if kind == "unpacked":
        unpack_first(nn.Sequential(*found))
    return found


def gradients(call, layers, key=None):
    """Outputs, and the gradients of the input and of every trainable array."""
    holder = nn.Sequential(*layers)
    slots = trainable_slots(holder)

    def outputs(x, *leaves):
        values = dict(zip(slots, leaves, strict=True))
        with swapped(slots, values), keyed(key):
            return call(x, layers)

    primals = [X, *(slot.get() for slot in slots.values())]
    cotangents = [mx.random.normal((2, 3, size), key=mx.random.key(size)) for size in SIZES]
    outs, grads = mx.vjp(outputs, primals, cotangents)
    return [*outs, *grads]


def one_by_one(x, layers):
    return [layer(x) for layer in layers]


def assert_near(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert mx.max(mx.abs(a - b)).item() <= 2e-6 * mx.max(mx.abs(b)).item()


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_the_layers(kind):
    """The backward pass is written by hand: automatic differentiation is its reference."""
    layers = layers_of(kind)
    assert_near(gradients(joint_outputs, layers), gradients(one_by_one, layers))


def test_layers_that_drop_out_are_called_one_by_one():
    """Each has a mask of its own, so their inputs differ."""
    layers, key = layers_of("adapted", dropout=0.5), mx.random.key(7)
    ours, theirs = gradients(joint_outputs, layers, key), gradients(one_by_one, layers, key)
    assert all(bool(mx.array_equal(a, b)) for a, b in zip(ours, theirs, strict=True))


def test_a_layer_that_is_trained_itself_keeps_its_gradient():
    """The joint products take the weights for constants."""
    layers = [nn.Linear(64, size) for size in SIZES]
    assert len(trainable_slots(nn.Sequential(*layers))) == 6
    assert_near(gradients(joint_outputs, layers), gradients(one_by_one, layers))


def test_the_backward_pass_unpacks_too(monkeypatch):
    """It runs after the functional pass has ended, where layers multiply as they are packed."""
    layers = layers_of("unpacked")

    def refuse(*_, **__):
        raise AssertionError("a packed product")

    monkeypatch.setattr(mx, "quantized_matmul", refuse)
    assert gradients(joint_outputs, layers)


def products(call, layers, tmp_path):
    """How many matrix products a pass and its gradients take."""
    path = tmp_path / "graph.dot"
    with path.open("w") as file:
        mx.export_to_dot(file, *gradients(call, layers))
    graph = path.read_text()
    return graph.count('label ="Matmul"') + graph.count('label ="AddMM"')


def test_the_input_is_read_once_for_all_low_rank_parts(tmp_path):
    """Of three layers, each part of x @ a, of its gradient and of the input's becomes one."""
    layers = layers_of("adapted")
    apart = products(one_by_one, layers, tmp_path)
    assert products(joint_outputs, layers, tmp_path) == apart - 3 * 2


@pytest.mark.parametrize("kind", ["plain", "adapted"])
def test_a_single_layer_is_joint_with_none(kind):
    """Models that keep queries, keys and values in one matrix have one layer to their input."""
    layers = layers_of(kind)[:1]
    cotangent = [mx.random.normal((2, 3, SIZES[0]), key=mx.random.key(1))]
    ours, theirs = (
        mx.vjp(lambda x, call=call: call(x, layers), [X], cotangent)
        for call in (joint_outputs, one_by_one)
    )
    assert_near([*ours[0], *ours[1]], [*theirs[0], *theirs[1]])
