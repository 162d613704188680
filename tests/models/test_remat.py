"""Facts about recomputed activations: the same gradients, less memory, no trace elsewhere."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx import nn

from mlxfn.errors import ConfigError
from mlxfn.losses import causal_lm_loss
from mlxfn.models.dropout import keyed
from mlxfn.models.generate import generate
from mlxfn.models.lora import dora, full, lora
from mlxfn.models.remat import recompute
from mlxfn.tree import flatten, same_bits
from tests.support.models import load, random_batch, shaken

BATCH = random_batch(2, 12)
KEY = mx.random.key(5)


def value_and_grad(adapter, params, key=KEY, batch=BATCH):
    loss_fn = causal_lm_loss(adapter.apply)
    return mx.value_and_grad(lambda p: loss_fn(p, batch, key).mean())(params)


def assert_same(ours, theirs, tolerance=1e-6):
    assert abs(ours[0].item() - theirs[0].item()) <= tolerance
    ours, theirs = flatten(ours[1]), flatten(theirs[1])
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        scale = max(mx.max(mx.abs(theirs[name])).item(), 1.0)
        assert mx.max(mx.abs(leaf - theirs[name])).item() <= tolerance * scale, name


@pytest.mark.parametrize("build", [lora, dora])
@pytest.mark.parametrize("key", [KEY, None], ids=["dropout", "no dropout"])
@pytest.mark.parametrize("remat", ["all", 2])
@pytest.mark.parametrize("packed", [False, True])
def test_gradients_are_the_same_with_and_without(llama, build, key, remat, packed):
    """mlx-lm draws new masks in the recompute: its gradients are off by half and more."""
    options = {"rank": 4, "dropout": 0.3, "target_modules": "all-linear", "packed": packed}
    plain, ours = build(llama, **options), build(llama, **options, remat=remat)
    params = shaken(plain.params)
    assert_same(value_and_grad(ours, params, key), value_and_grad(plain, params, key))


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "mixtral", "qwen3_moe", "gpt2"])
def test_every_architecture_recomputes(model_of, kind):
    """Layers differ in what they take and return."""
    options = {"rank": 4, "dropout": 0.3, "target_modules": "all-linear"}
    plain, ours = lora(model_of(kind), **options), lora(model_of(kind), **options, remat="all")
    params = shaken(plain.params)
    assert_same(value_and_grad(ours, params), value_and_grad(plain, params), 5e-6)


def test_a_full_adapter_recomputes(qwen3):
    """Norms and biases inside the layers get their gradients through the recompute."""
    plain, ours = full(qwen3), full(qwen3, remat="all")
    assert_same(value_and_grad(ours, plain.params), value_and_grad(plain, plain.params), 5e-6)


def test_a_trainable_embedding_gets_its_gradient_through_recomputed_layers(llama):
    """The first layer's input carries a gradient then."""
    options = {"rank": 4, "target_modules": ["embed_tokens"]}
    plain, ours = lora(llama, **options), lora(llama, **options, remat="all")
    params = shaken(plain.params)
    assert_same(value_and_grad(ours, params), value_and_grad(plain, params))


def test_compiled_gradients_are_the_same(llama):
    """Compile may merge and reorder; the values have to survive it."""
    adapter = lora(llama, rank=4, dropout=0.3, remat="all")
    params = shaken(adapter.params)
    compiled = mx.compile(lambda p, key: value_and_grad(adapter, p, key))
    assert_same(compiled(params, KEY), value_and_grad(adapter, params))


class Counting(nn.Module):
    """A layer that counts how often it runs."""

    calls = 0

    def __init__(self):
        super().__init__()
        self.weight = mx.ones((4, 4))

    def __call__(self, x, mask=None, cache=None):
        Counting.calls += 1
        return mx.tanh(x @ self.weight) if mask is None else mask * x


def test_the_layer_runs_again_in_the_backward_pass():
    """Others set it on the instance, where Python does not look: it says enabled and does nothing."""
    layer = Counting()
    recompute(layer)

    def loss(x):
        with keyed(None):
            return mx.sum(layer(x))

    Counting.calls = 0
    mx.eval(mx.grad(loss)(mx.ones((2, 4))))
    assert Counting.calls == 2
    mx.eval(mx.grad(lambda x: mx.sum(layer(x)))(mx.ones((2, 4))))
    assert Counting.calls == 3


def test_no_class_is_patched_and_no_other_layer_changes(llama):
    """mlx-lm patches the class for the whole process, once more with every call."""
    layer_class = type(llama.module.model.layers[0])
    call = layer_class.__call__
    adapter = lora(llama, remat=1)
    again = lora(llama, remat="all")
    assert layer_class.__call__ is call
    kinds = [type(layer) for layer in adapter.module.model.layers]
    assert kinds[1:] == [layer_class, layer_class]
    assert issubclass(kinds[0], layer_class)
    assert type(again.module.model.layers[0]).__mro__[1] is layer_class
    assert all(type(layer) is layer_class for layer in llama.module.model.layers)


def test_masks_and_caches_pass_through():
    """Decoder layers take more than hidden states, by position and by name."""
    layer, x = Counting(), mx.ones((2, 4))
    mask = mx.array([[1.0, 2.0, 0.0, 1.0]])
    plain = [mx.grad(lambda x: mx.sum(mx.sin(layer(x, mask))))(x), layer(x, mask=mask)]
    recompute(layer)
    with keyed(None):
        ours = [mx.grad(lambda x: mx.sum(mx.sin(layer(x, mask))))(x), layer(x, mask=mask)]
    assert all(same_bits(a, b) for a, b in zip(ours, plain, strict=True))


def test_generation_runs_without_recompute(llama):
    """A key-value cache that is written twice would repeat every token."""
    plain, ours = lora(llama), lora(llama, remat="all")
    params = shaken(plain.params)
    answers = [
        generate(llama, adapter, params, "Hello", max_tokens=12) for adapter in (plain, ours)
    ]
    assert answers[0] == answers[1]


def test_the_last_layers_alone_are_worth_recomputing(llama):
    """Below the first adapted layer nothing is kept, so recomputing there saves nothing."""
    adapter = lora(llama, num_layers=2, remat=1)
    names = [type(layer).__name__ for layer in adapter.module.model.layers]
    assert names == ["TransformerBlock", "RecomputingTransformerBlock", "TransformerBlock"]


def test_a_layer_that_returns_something_else_is_refused():
    """A silent fallback would leave the memory as it was."""

    class Strange(nn.Module):
        def __call__(self, x):
            return {"hidden": x}

    layer = Strange()
    recompute(layer)
    with keyed(None), pytest.raises(ConfigError, match="Strange"):
        layer(mx.ones(2))


def test_memory_falls(folder_of):
    """What it is for: the activations of one layer instead of all of them."""
    model = load(folder_of("llama", num_hidden_layers=12))
    batch, peaks = random_batch(4, 128), {}
    for remat in ("none", "all"):
        adapter = lora(model, rank=4, remat=remat)
        mx.eval(value_and_grad(adapter, adapter.params, batch=batch))
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(value_and_grad(adapter, adapter.params, batch=batch))
        peaks[remat] = mx.get_peak_memory() - before
    assert peaks["all"] < 0.5 * peaks["none"], peaks
