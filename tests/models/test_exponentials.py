"""Facts about softmax and sigmoid spelled out: the bits of MLX's own, in kernels that compile."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models import activations, base

from mlxfn.device import device_kind
from mlxfn.losses import causal_lm_loss
from mlxfn.models import exponentials
from mlxfn.models.exponentials import spell_out
from mlxfn.models.lora import full, lora
from mlxfn.tree import leaves, same_bits
from tests.models.test_remat import value_and_grad
from tests.support.models import random_batch, shaken

on_cpu = pytest.mark.skipif(device_kind() != "cpu", reason="elsewhere MLX's own kernels are used")
EXTREME = [0.0, -0.0, 1e-40, 88.0, -88.5, 200.0, -200.0, 3e38, -3e38]


def left_alone(_clone, **_options):
    """Stand in for ``spell_out``."""


def together(function):
    """Return the function's value and its gradients, weighted unevenly, as one list of arrays."""

    def both(*arrays):
        def total(*arrays):
            out = function(*arrays)
            return mx.sum(out * mx.cos(mx.arange(out.size)).reshape(out.shape)), out

        numbers = tuple(range(len(arrays)))
        (_, out), grads = mx.value_and_grad(total, argnums=numbers)(*arrays)
        return [out, *grads]

    return both


def assert_same_bits(ours, theirs, arrays, *, compiled=True):
    both = [together(ours), together(theirs)]
    for functions in (both, [mx.compile(f) for f in both] if compiled else both):
        assert same_bits(functions[0](*arrays), functions[1](*arrays))


@st.composite
def attentions(draw):
    """Queries, keys, values and a mask of any kind; key heads shared or not."""
    b, groups, shared, d = (draw(st.integers(1, 3)) for _ in range(4))
    t, s = draw(st.integers(1, 9)), draw(st.integers(0, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    heads = groups * shared
    shapes = [(b, heads, t, d), (b, groups, t + s, d), (b, groups, t + s, d)]
    arrays = [mx.array(rng.normal(size=shape).astype(np.float32)) for shape in shapes]
    lead = draw(st.sampled_from([(), (b, 1), (1, 1), (b, heads)]))
    seen = rng.random((*lead, t, t + s)) < 0.7
    kind = draw(st.sampled_from(["none", "causal", "bool", "added"]))
    masks = {
        "none": None,
        "causal": "causal",
        "bool": mx.array(seen),
        "added": mx.array(np.where(seen, 0.5, -1e9).astype(np.float32)),
    }
    return arrays, masks[kind]


@on_cpu
@given(attentions())
@settings(max_examples=60)
def test_attention_has_the_bits_of_mlx_in_value_and_gradient(case):
    """Then no run can differ by it: a resumed one, a fresh adapter, one that recomputes."""
    arrays, mask = case

    def ours(q, k, v):
        return exponentials.attention(q, k, v, None, scale=0.3, mask=mask)

    def theirs(q, k, v):
        return base.scaled_dot_product_attention(q, k, v, None, scale=0.3, mask=mask)

    assert_same_bits(ours, theirs, arrays, compiled=False)


@on_cpu
def test_compiled_attention_and_swiglu_have_them_too():
    """The kernels are other ones then; also for rows that share their heads under a causal mask."""
    draw = [mx.random.normal((2, n, 9, 8), key=mx.random.key(n)) for n in (4, 2, 3)]
    q, k, v = draw[0], draw[1], draw[2][:, :2]
    assert_same_bits(
        lambda q, k, v: exponentials.attention(q, k, v, None, 0.3, "causal"),
        lambda q, k, v: base.scaled_dot_product_attention(q, k, v, None, 0.3, "causal"),
        (q, k, v),
    )
    gate = mx.concatenate([9.0 * mx.random.normal((999,), key=mx.random.key(0)), mx.array(EXTREME)])
    x = mx.random.normal(gate.shape, key=mx.random.key(1))
    assert_same_bits(exponentials.swiglu, activations.swiglu, (gate, x))


def test_the_sigmoid_of_a_large_number_has_a_gradient():
    """1 / (1 + exp(-x)) differentiated as it stands is inf / inf from -89 on."""
    slope = mx.grad(lambda x: mx.sum(exponentials.sigmoid(x)))(mx.array(EXTREME))
    assert mx.all(mx.isfinite(slope)).item()


def test_what_is_not_fp32_goes_to_mlx_lm():
    """It rounds between the operations, so spelled out it would be something else."""
    q, k, v = (mx.random.normal((1, 2, 5, 4), key=mx.random.key(i)) for i in range(3))
    half = [a.astype(mx.bfloat16) for a in (q, k, v)]
    ours = exponentials.attention(*half, None, 0.5, "causal")
    assert same_bits(ours, base.scaled_dot_product_attention(*half, None, 0.5, "causal"))
    assert same_bits(exponentials.swiglu(half[0], half[1]), activations.swiglu(half[0], half[1]))
    sinks = mx.zeros(2)
    ours = exponentials.attention(q, k, v, None, 0.5, "causal", sinks)
    assert same_bits(ours, base.scaled_dot_product_attention(q, k, v, None, 0.5, "causal", sinks))


@on_cpu
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mixtral", "gemma2"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_model_has_the_same_bits_with_and_without(model_of, kind, packed, monkeypatch):
    """Every kind of block that is changed, with a mask of its own for packed rows."""
    ours = full(model_of(kind), packed=packed)
    monkeypatch.setattr("mlxfn.models.execution.spell_out", left_alone)
    theirs = full(model_of(kind), packed=packed)
    params = shaken(ours.params)
    assert same_bits(value_and_grad(ours, params), value_and_grad(theirs, params))


def primitives(adapter, tmp_path):
    """Return the graph of a compiled update's gradient, as text."""
    batch = random_batch(2, 12)
    loss_fn = causal_lm_loss(adapter.apply)
    grads = mx.compile(mx.grad(lambda p: loss_fn(p, batch, None).mean()))(adapter.params)
    mx.export_to_dot(str(tmp_path / "graph.dot"), *[leaf for _, leaf in leaves(grads)])
    return (tmp_path / "graph.dot").read_text()


@on_cpu
def test_no_exponential_of_a_training_step_is_taken_one_at_a_time(llama, tmp_path, monkeypatch):
    """Softmax, sigmoid and log-sum-exp of MLX's own are a third of a small model's update."""
    slow = ("Softmax", "Sigmoid", "LogSumExp")
    assert not [name for name in slow if name in primitives(lora(llama), tmp_path)]
    monkeypatch.setattr("mlxfn.models.execution.spell_out", left_alone)
    assert all(name in primitives(lora(llama), tmp_path) for name in slow[:2])


@on_cpu
@pytest.mark.parametrize("sparing", [{"lean": "all"}, {"remat": "all"}])
def test_attention_stays_where_memory_is_what_is_scarce(llama, tmp_path, sparing):
    """MLX's softmax works in place; spelled out, it has two more arrays of the scores' size."""
    text = primitives(lora(llama, **sparing), tmp_path)
    assert "Softmax" in text
    assert "Sigmoid" not in text


def test_mlx_lm_and_other_models_stay_as_they_are(llama):
    """The names are replaced for a copy of the code; a module of mlx-lm serves every model."""
    import mlx_lm.models.llama as module

    before = dict(vars(module))
    layer = lora(llama).module.layers[0]
    spell_out(layer)
    assert vars(module) == before
    assert type(llama.module.layers[0].mlp) is module.MLP
    assert isinstance(layer.mlp, module.MLP)


def test_outside_of_a_functional_pass_the_block_runs_its_own_code(llama, monkeypatch):
    """Generation goes on as mlx-lm does it, caches and all."""
    adapter = lora(llama)
    spell_out(adapter.module)

    def raises(*_args, **_kwargs):
        raise AssertionError("spelled out")

    monkeypatch.setattr(exponentials, "softmax", raises)
    adapter.module(mx.array([[1, 2, 3]]))
    with pytest.raises(AssertionError, match="spelled out"):
        adapter.apply(adapter.params, random_batch(1, 4), None)
