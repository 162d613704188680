"""The laws of adapters, for every row of the table, on a Llama of two narrow layers."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import mkdtemp

import attrs
import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx import nn

from mlxfn.losses import causal_lm_loss, chunked_causal_lm_loss
from mlxfn.models.head import split_head
from mlxfn.models.lora import lora
from mlxfn.testing import laws
from mlxfn.testing.strategies import documents, keys, seeds
from mlxfn.testing.toys import context, context_params
from mlxfn.tree import flatten
from tests.laws.families import (
    ADAPTERS,
    many,
    small_batches,
    tiny_adapter,
    tiny_model,
)
from tests.support.models import load, shaken, write_model

each = pytest.mark.parametrize("name", ADAPTERS)
batches = small_batches(labelled=True)


@functools.cache
def quantized_model(bits, dtype):
    """A small model with quantized weights, computing in a dtype."""
    model = load(write_model(Path(mkdtemp(prefix="mlxfn-tiny-")), "llama"))
    module = model.module
    module.set_dtype(dtype)
    nn.quantize(module, 32, bits)
    mx.eval(module.parameters())
    return attrs.evolve(model, module=module.freeze())


def options(name, **others):
    """Dropout where the kind has it."""
    return others if name == "full" else {"dropout": 0.3, **others}


@each
@many
@given(batch=batches, key=keys)
def test_dropout_is_a_function_of_its_key(name, batch, key):
    """Evaluation that draws from the training stream changes the training."""
    adapter = tiny_adapter(name, **options(name))
    params = shaken(adapter.params)
    drops = name != "full"
    laws.dropout_is_a_function_of_its_key(adapter.apply, params, batch, key, drops=drops)


@each
@many
@given(batch=batches, key=keys)
def test_recompute_is_exact_with_dropout_on(name, batch, key):
    """mlx-lm draws new masks in the recompute: its gradients are off by half and more."""
    plain, again = (tiny_adapter(name, **options(name), remat=r) for r in ("none", "all"))
    params = shaken(plain.params)
    ours, theirs = causal_lm_loss(again.apply), causal_lm_loss(plain.apply)
    laws.recompute_equals_plain(ours, theirs, params, batch, key)


WAYS = [{"remat": "mlp"}, {"remat": 1}, {"lean": "mlp"}, {"lean": "all"}]


@pytest.mark.parametrize("way", [*WAYS, {"remat": "all", "lean": "all"}], ids=str)
@each
@many
@given(batch=batches, key=keys)
def test_every_way_to_run_is_exact_with_dropout_on(name, way, batch, key):
    """The plan chooses between them by what fits: no choice may be another training."""
    plain, ours = tiny_adapter(name, **options(name)), tiny_adapter(name, **options(name, **way))
    params = shaken(plain.params)
    losses = causal_lm_loss(ours.apply), causal_lm_loss(plain.apply)
    laws.recompute_equals_plain(*losses, params, batch, key)


@pytest.mark.parametrize("way", [*WAYS, {"quantized": "unpacked", "lean": "all"}], ids=str)
@pytest.mark.parametrize("bits", [4, 8])
@many
@given(batch=batches)
def test_in_bf16_every_way_differs_by_roundings_at_most(way, bits, batch):
    """Less than what bf16 itself costs: the distance to the same model in fp32."""
    exact, rounded = quantized_model(bits, mx.float32), quantized_model(bits, mx.bfloat16)
    build = {"rank": 4, "target_modules": "all-linear"}
    adapters = [lora(exact, **build), lora(rounded, **build), lora(rounded, **build, **way)]
    params = shaken(adapters[0].params)
    fp32, plain, ours = (
        causal_lm_loss(adapter.apply)(params, batch, None).mean().item() for adapter in adapters
    )
    # Unpacked weights are rounded to bf16 themselves; MLX's packed product on a CPU rounds none.
    share = 0.05 if "quantized" in way else 0.01
    assert abs(ours - plain) <= max(2 * abs(plain - fp32), share * abs(fp32))


@pytest.mark.parametrize("name", ["lora", "dora"])
@many
@given(batch=batches, chunk=st.integers(1, 12))
def test_the_chunked_loss_of_a_model_is_the_full_one(name, batch, chunk):
    """The head is the model's own code, taken a few positions at a time."""
    adapter = tiny_adapter(name)
    split = split_head(adapter)
    chunked = chunked_causal_lm_loss(split.hidden_apply, split.head, chunk_size=chunk)
    full = causal_lm_loss(adapter.apply)
    laws.chunked_equals_full(chunked, full, shaken(adapter.params), batch)


@each
@many
@given(texts=documents(vocab=400))
def test_packed_documents_are_alone(name, texts):
    """Attention across documents teaches a model to read its neighbour's mail."""
    packed, alone = tiny_adapter(name, packed=True), tiny_adapter(name)
    params = shaken(packed.params)
    laws.packed_equals_separate(packed.apply, params, texts, alone=alone.apply)


@each
@many
@given(batch=batches, columns=st.integers(0, 3), rows=st.integers(0, 1))
def test_padding_changes_nothing_in_a_model(name, batch, columns, rows):
    """Causal attention never looks to the right, where the padding is."""
    adapter = tiny_adapter(name)
    loss_fn, params = causal_lm_loss(adapter.apply), shaken(adapter.params)
    laws.loss_is_invariant_to_padding(loss_fn, params, batch, columns=columns, rows=rows)


@many
@given(seed=seeds, batch=batches, key=keys)
def test_the_gradient_is_the_slope_with_dropout_and_recompute_on(seed, batch, key):
    """What all else rests on, against the loss itself."""
    adapter = tiny_adapter("lora", dropout=0.3, remat="all")
    params = shaken(adapter.params, size=0.1, seed=seed)
    laws.gradient_is_right(
        causal_lm_loss(adapter.apply), params, batch, key, directions=2, tolerance=0.05
    )


@many
@given(seed=seeds, batch=batches, key=keys)
def test_the_toys_of_the_docs_obey_the_laws_too(seed, batch, key):
    """What examples are made of must be right."""
    params = context_params(400, seed=seed)
    whole = batch._replace(segments=mx.ones_like(batch.tokens))
    laws.dropout_is_a_function_of_its_key(context(dropout=0.5), params, whole, key, drops=False)


@pytest.mark.parametrize("name", ["lora", "dora"])
@many
@given(seed=st.integers(0, 2**31))
def test_nothing_of_the_base_is_trained(name, seed):
    """Forgetting to freeze the base trains everything, and quietly."""
    adapter = ADAPTERS[name](tiny_model(), seed=seed)
    laws.base_is_frozen(adapter.params, flatten(tiny_model().module.parameters()))
