"""Facts about lean blocks: the same values and gradients, and only the first layers' outputs kept."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx import nn

from mlxfn.errors import ConfigError
from mlxfn.losses import causal_lm_loss
from mlxfn.models.lean import lean
from mlxfn.models.lora import dora, full, lora
from mlxfn.tree import flatten
from tests.models.test_remat import assert_same, value_and_grad
from tests.support.models import random_batch, shaken

BOTH = ["llama", "qwen2", "qwen3", "gemma2"]  # silu and gelu, biases, norms of queries and keys


def names(adapter, block):
    return {type(layer[block]).__name__ for layer in adapter.module.layers}


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("build", [lora, dora])
@pytest.mark.parametrize("packed", [False, True])
def test_values_and_gradients_are_the_same(model_of, kind, build, packed):
    """With dropout, whose masks have to come out the same when a block runs again."""
    options = {"rank": 4, "dropout": 0.3, "target_modules": "all-linear", "packed": packed}
    plain, ours = build(model_of(kind), **options), build(model_of(kind), **options, lean="all")
    kinds = names(ours, "self_attn") | names(ours, "mlp")
    assert len(kinds) == 2
    assert all(name.startswith("Lean") for name in kinds)
    params = shaken(plain.params)
    assert_same(value_and_grad(ours, params), value_and_grad(plain, params), 2e-6)


def test_a_full_adapter_is_lean_too(qwen3):
    """Norms inside the attention get their gradients although it runs again."""
    plain, ours = full(qwen3), full(qwen3, lean="all")
    assert_same(value_and_grad(ours, plain.params), value_and_grad(plain, plain.params), 5e-6)


def test_lean_blocks_inside_recomputed_layers(llama):
    """While one layer's backward pass runs, its own activations count."""
    options = {"rank": 4, "dropout": 0.3, "target_modules": "all-linear"}
    plain, ours = lora(llama, **options), lora(llama, **options, lean="all", remat="all")
    params = shaken(plain.params)
    assert_same(value_and_grad(ours, params), value_and_grad(plain, params))


def test_experts_are_left_as_they_are(model_of):
    """They are fed sorted tokens, and a router sees the input beside them."""
    adapter = lora(model_of("mixtral"), lean="all")
    assert names(adapter, "block_sparse_moe") == {"MixtralSparseMoeBlock"}
    assert names(adapter, "self_attn") == {"LeanMixtralAttention"}


class Residual(nn.Module):
    """An MLP that adds its own input."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def __call__(self, x):
        return x + self.down(mx.tanh(self.up(x)))


def test_a_block_that_uses_its_input_itself_is_left_as_it_is():
    """Its gradient with respect to the input would lose a path."""
    block = Residual()
    assert not lean(block)
    assert type(block) is Residual


def test_neither_the_base_nor_its_class_changes(llama):
    """Other models of the process go on as before."""
    adapter = lora(llama, lean="all")
    assert names(adapter, "mlp") == {"LeanMLP"}
    assert {type(layer.mlp).__name__ for layer in llama.module.layers} == {"MLP"}


def test_a_setting_that_does_not_exist_is_refused(llama):
    """A typo that trained as before would go unnoticed."""
    with pytest.raises(ConfigError, match="no such setting"):
        lora(llama, lean="some")


def peak(adapter, batch):
    loss_fn = causal_lm_loss(adapter.apply)
    grad = mx.compile(mx.grad(lambda p: loss_fn(p, batch, None).mean()))
    mx.eval(grad(adapter.params))
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(flatten(grad(adapter.params)))
    return mx.get_peak_memory() - before


def test_a_lean_model_needs_less_memory_in_a_compiled_step(llama):
    """Compile merges what is computed twice: unordered, the recompute would save nothing."""
    batch = random_batch(2, 128)
    plain, ours = (lora(llama, target_modules="all-linear", lean=lean) for lean in ("none", "all"))
    assert peak(ours, batch) < 0.7 * peak(plain, batch)


def test_an_elementwise_activation_is_found_and_attention_is_none(model_of):
    """Only such a one may be computed again for each of its inputs: attention would cost twice."""
    for kind in BOTH:
        layer = lora(model_of(kind), lean="all").module.layers[0]
        behind = [vars(layer[name])["_mlxfn_last"] for name in ("mlp", "self_attn")]
        assert behind == ["down_proj", None], kind


class Mixing(nn.Module):
    """Positions see those before them between the first layers and the last."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 4)

    def __call__(self, x):
        return self.down(mx.cumsum(self.gate(x), axis=1) * self.up(x))


class Scaled(Mixing):
    """Something comes behind the last layer."""

    def __call__(self, x):
        return 2 * self.down(self.gate(x) * self.up(x))


@pytest.mark.parametrize("kind", [Mixing, Scaled])
def test_what_is_not_elementwise_up_to_the_last_layer_runs_again_as_a_whole(kind):
    """It is lean all the same; only its gradients are not taken apart."""
    block = kind()
    assert lean(block)
    assert vars(block)["_mlxfn_last"] is None
