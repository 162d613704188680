"""Facts about adapters as values: frozen base, pure apply, seeds, targets, errors."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlxfn.errors import ConfigError
from mlxfn.losses import causal_lm_loss
from mlxfn.models.dropout import KeyedDropout
from mlxfn.models.lora import dora, full, lora
from mlxfn.models.model import Model
from mlxfn.tree import flatten, same_bits, unflatten
from tests.support.models import LAYERS, random_batch, shaken

BATCH = random_batch()
KEY = mx.random.key(5)


def gradients(adapter, params, key=None):
    loss_fn = causal_lm_loss(adapter.apply)
    return mx.grad(lambda p: loss_fn(p, BATCH, key).mean())(params)


@pytest.mark.parametrize("build", [lora, dora, full])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "mixtral"])
def test_a_fresh_adapter_is_the_base_model(model_of, build, kind):
    """Training has to start from the model as it is."""
    model = model_of(kind)
    adapter = build(model)
    logits = adapter.apply(adapter.params, BATCH, None)
    if build is dora:
        assert mx.allclose(logits, model.module(BATCH.tokens), atol=1e-4)
    else:
        assert same_bits(logits, model.module(BATCH.tokens))


@pytest.mark.parametrize("build", [lora, dora, full])
def test_the_base_is_never_changed(llama, build):
    """Adapting, running and differentiating: the user's module keeps classes, arrays and flags."""
    names, weights = repr(llama.module), flatten(llama.module.parameters())
    adapter = build(llama)
    params = shaken(adapter.params)
    mx.eval(adapter.apply(params, BATCH, KEY), gradients(adapter, params, KEY))
    now = flatten(llama.module.parameters())
    assert repr(llama.module) == names
    assert all(now[name] is weights[name] for name in weights)
    assert flatten(llama.module.trainable_parameters()) == {}


def test_only_the_adapter_is_trainable(llama):
    """Forgetting to freeze the base is the classic mistake; here there is nothing to forget."""
    llama.module.unfreeze()
    try:
        adapter = lora(llama, rank=3, target_modules=["q_proj"])
    finally:
        llama.module.freeze()
    expected = {
        f"model.layers.{n}.self_attn.q_proj.{leaf}"
        for n in range(LAYERS)
        for leaf in ("lora_a", "lora_b")
    }
    assert flatten(adapter.params).keys() == expected
    assert flatten(gradients(adapter, adapter.params)).keys() == expected
    assert adapter.target_modules == tuple(sorted({name.rsplit(".", 1)[0] for name in expected}))
    assert adapter.parameter_count() == LAYERS * 3 * (32 + 32)


def test_full_trains_embeddings_norms_and_head(llama, qwen3):
    """mlx-lm's full fine-tuning leaves all three as they were."""
    for model, head in ((llama, {"lm_head.weight"}), (qwen3, set())):
        adapter = full(model)
        found = flatten(gradients(adapter, adapter.params))
        assert found.keys() == flatten(model.module.parameters()).keys()
        moved = {name for name, leaf in found.items() if mx.any(leaf != 0)}
        assert moved == found.keys()
        assert {"model.embed_tokens.weight", "model.norm.weight"} | head <= moved


def test_full_of_the_last_layers_keeps_the_earlier_ones(llama):
    """num_layers counts decoder layers; what is outside of them trains in any case."""
    names = flatten(full(llama, num_layers=1).params).keys()
    layers = {name.split(".")[2] for name in names if ".layers." in name}
    assert layers == {"2"}
    assert {"model.embed_tokens.weight", "lm_head.weight"} <= names


def test_initial_values_depend_on_seed_and_path_alone(llama):
    """One more target module must not change how the others start."""
    few = flatten(lora(llama, target_modules=["v_proj"], seed=3).params)
    many = flatten(lora(llama, target_modules="all-linear", seed=3).params)
    other = flatten(lora(llama, target_modules=["v_proj"], seed=4).params)
    assert all(same_bits(few[name], many[name]) for name in few)
    a = [name for name in few if name.endswith("lora_a")]
    assert not any(same_bits(few[name], other[name]) for name in a)
    assert not same_bits(few[a[0]], few[a[1]])


def test_initial_values_are_those_of_peft_and_mlx_lm(llama):
    """Uniform within 1 / sqrt(inputs), and zeros: the update starts at nothing."""
    flat = flatten(lora(llama, rank=64, target_modules=["down_proj"]).params)
    a, b = (flat[f"model.layers.0.mlp.down_proj.{leaf}"] for leaf in ("lora_a", "lora_b"))
    assert a.shape == (64, 64)
    assert mx.max(mx.abs(a)) <= 1 / 8
    assert abs(mx.std(a).item() - 1 / 8 / 3**0.5) < 2e-3
    assert not mx.any(b)


def test_building_an_adapter_draws_nothing_from_the_global_state(llama):
    """Two runs in one process must not see each other."""
    mx.random.seed(1)
    expected = mx.random.uniform(shape=(3,))
    mx.random.seed(1)
    lora(llama, dropout=0.1)
    assert same_bits(mx.random.uniform(shape=(3,)), expected)


def test_dropout_of_a_module_does_not_depend_on_the_other_targets(llama):
    """Masks belong to paths, so an ablation over targets compares like with like."""
    few = lora(llama, rank=4, dropout=0.5, target_modules=["q_proj"])
    many = lora(llama, rank=4, dropout=0.5, target_modules=["q_proj", "up_proj"])
    moved = shaken(few.params)
    # The update of up_proj is still zero, so the two adapters are one function.
    also_moved = unflatten(flatten(many.params) | flatten(moved))
    assert same_bits(few.apply(moved, BATCH, KEY), many.apply(also_moved, BATCH, KEY))


def test_every_module_drops_its_own_elements(llama):
    """Queries and values read the same input; one mask for both would tie them together."""
    adapter = lora(llama, dropout=0.5, target_modules="all-linear")
    streams = [m.index for m in adapter.module.modules() if isinstance(m, KeyedDropout)]
    assert len(set(streams)) == len(streams) == len(adapter.target_modules)


def test_apply_is_pure_when_the_trace_raises(llama):
    """After an error the same call gives the same bits, and no tracer is left inside."""
    adapter = lora(llama, target_modules=["q_proj"])
    before = adapter.apply(adapter.params, BATCH, None)
    broken = {name: mx.ones((3, 3)) for name in flatten(adapter.params)}
    with pytest.raises(ValueError, match=r"multiply|matmul|shape|broadcast"):
        mx.compile(adapter.apply)(broken, BATCH, KEY)
    assert same_bits(adapter.apply(adapter.params, BATCH, None), before)
    mx.eval(adapter.module.parameters())


def test_compiled_and_eager_are_the_same_bits(llama):
    """The loop runs compiled; what is tested eagerly has to hold for it."""
    adapter = lora(llama, dropout=0.3)
    params = shaken(adapter.params)
    assert same_bits(
        mx.compile(adapter.apply)(params, BATCH, KEY), adapter.apply(params, BATCH, KEY)
    )


def test_dropout_acts_with_a_key_and_repeats_with_the_same(llama):
    """With a key the step trains, without one it evaluates."""
    adapter = lora(llama, dropout=0.5)
    params = shaken(adapter.params)
    first, again, none = (adapter.apply(params, BATCH, key) for key in (KEY, KEY, None))
    assert same_bits(first, again)
    assert not mx.allclose(first, none, atol=1e-3)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 8.0)])
def test_the_scale_is_alpha_over_rank_or_its_root(llama, rslora, scale):
    """A wrong scale trains, only worse."""
    adapter = lora(llama, rank=16, alpha=32.0, rslora=rslora)
    assert adapter.scale == scale
    assert adapter.module.model.layers[0].self_attn.q_proj.scale == scale


@pytest.mark.parametrize("bits", [3, 4, 6])
@pytest.mark.parametrize("build", [lora, dora])
def test_a_quantized_base_is_adapted(model_of, bits, build):
    """QLoRA, also for the widths that others compute wrong sizes for."""
    model = model_of("llama", quantize_bits=bits, quantize_group_size=32)
    adapter = build(model, rank=4)
    found = flatten(gradients(adapter, shaken(adapter.params)))
    assert all(bool(mx.any(leaf != 0)) for leaf in found.values())
    # 1e-4: a packed product and the norm's own path round differently
    assert mx.allclose(
        adapter.apply(adapter.params, BATCH, None), model.module(BATCH.tokens), atol=1e-4
    )


def test_experts_are_adapted(model_of):
    """Each expert has an update of its own, and all that tokens reach get gradients."""
    adapter = lora(model_of("qwen3_moe"), rank=4, target_modules=["switch_mlp.down_proj"])
    flat = flatten(shaken(adapter.params))
    assert flat["model.layers.0.mlp.switch_mlp.down_proj.lora_a"].shape == (4, 4, 32)
    found = flatten(gradients(adapter, shaken(adapter.params)))
    assert all(bool(mx.any(leaf != 0)) for leaf in found.values())


def test_a_bf16_base_computes_in_bf16_with_fp32_masters(model_of):
    """Small updates vanish in bf16 parameters; fp32 activations would double the memory."""
    model = model_of("llama", dtype="bfloat16")
    for adapter in (lora(model), dora(model), full(model)):
        assert all(leaf.dtype == mx.float32 for leaf in flatten(adapter.params).values())
        assert adapter.apply(adapter.params, BATCH, KEY).dtype == mx.bfloat16


def test_full_of_a_quantized_base_is_refused(model_of):
    """Integers have no gradient; the scales alone would be trained, unnoticed."""
    with pytest.raises(ConfigError, match="quantized") as caught:
        full(model_of("llama", quantize_bits=4, quantize_group_size=32))
    assert "lora" in str(caught.value)


def test_dora_of_experts_and_packed_embeddings_is_refused(model_of):
    """mlx-lm has no such layers, so nothing could load the result."""
    with pytest.raises(ConfigError, match="mixture-of-experts"):
        dora(model_of("mixtral"), target_modules=["switch_mlp.up_proj"])
    with pytest.raises(ConfigError, match="quantized embeddings"):
        dora(
            model_of("llama", quantize_bits=4, quantize_group_size=32),
            target_modules=["embed_tokens"],
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"rank": -1},
        {"alpha": 0.0},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"seed": -1},
        {"remat": "some"},
        {"remat": -1},
        {"remat": True},
    ],
)
def test_values_out_of_range_are_errors(llama, wrong):
    """Rank 0 trains nothing in mlx-lm, and says nothing."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        lora(llama, **wrong)


def test_a_model_made_by_hand_is_adapted(llama):
    """The library takes any module that maps tokens to logits."""
    adapter = lora(Model(llama.module, vocab_size=400))
    assert adapter.describe()["parameters"] == adapter.parameter_count()
    assert adapter.describe()["target_modules"] == {"q_proj": LAYERS, "v_proj": LAYERS}
