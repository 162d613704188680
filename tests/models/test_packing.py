"""Facts about packed rows: a document sees what it would see alone."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlxfn.errors import ConfigError
from mlxfn.losses import causal_lm_loss
from mlxfn.models.lora import dora, full, lora
from mlxfn.models.packing import DocumentCache
from mlxfn.state import Batch
from mlxfn.tree import flatten
from tests.support.models import random_batch, shaken

LENGTHS = (5, 1, 7, 3)
DOCUMENTS = [random_batch(1, length, seed) for seed, length in enumerate(LENGTHS)]
EXACT = ["llama", "qwen3", "qwen2", "gemma2", "mixtral", "qwen3_moe"]


def packed_row(documents=DOCUMENTS, padding=2):
    """Return the documents in one row, numbered from 1, and padding numbered 0."""
    pad = mx.zeros((1, padding), mx.int32)
    segments = [mx.full(doc.tokens.shape, n, mx.int32) for n, doc in enumerate(documents, 1)]
    return Batch(
        mx.concatenate([*(doc.tokens for doc in documents), pad], axis=1),
        mx.concatenate([*(doc.labels for doc in documents), pad - 100], axis=1),
        mx.concatenate([*segments, pad], axis=1),
    )


def difference(adapter):
    """Return the largest difference of logits between two rows, packed differently, and alone."""
    params = shaken(adapter.params)
    orders = [DOCUMENTS, DOCUMENTS[::-1]]
    rows = [packed_row(documents) for documents in orders]
    together = adapter.apply(params, Batch(*map(mx.concatenate, zip(*rows, strict=True))), None)
    alone = [
        mx.concatenate([adapter.apply(params, doc, None) for doc in documents], axis=1)
        for documents in orders
    ]
    return mx.max(mx.abs(together[:, :-2] - mx.concatenate(alone))).item()


@pytest.mark.parametrize("kind", EXACT)
def test_packed_documents_get_the_logits_they_get_alone(model_of, kind):
    """Masking the loss alone, as others do, trains on attention across documents."""
    assert difference(lora(model_of(kind), packed=True)) < 5e-5


@pytest.mark.parametrize("kind", EXACT)
def test_a_plain_concatenation_is_something_else(model_of, kind):
    """Without the mask the same comparison fails, so the one above can."""
    assert difference(lora(model_of(kind))) > 0.1


def test_gradients_of_a_packed_row_are_those_of_its_documents(llama):
    """What matters in the end: the update is the same."""
    adapter = lora(llama, packed=True, target_modules="all-linear")
    loss_fn, params = causal_lm_loss(adapter.apply), shaken(adapter.params)
    packed = mx.grad(lambda p: loss_fn(p, packed_row(), None).total)(params)
    alone = mx.grad(lambda p: sum(loss_fn(p, doc, None).total for doc in DOCUMENTS))(params)
    for name, leaf in flatten(packed).items():
        assert mx.allclose(leaf, flatten(alone)[name], atol=1e-4), name


def test_padding_never_yields_nan(llama):
    """A query with nothing to look at would be a softmax over nothing."""
    adapter = lora(llama, packed=True)
    empty = Batch(*(mx.zeros((2, 4), mx.int32) for _ in range(3)))
    assert bool(mx.all(mx.isfinite(adapter.apply(adapter.params, empty, None))))


@pytest.mark.parametrize(
    ("kind", "why"), [("mamba", "do not take an attention mask"), ("gpt2", "differ by")]
)
def test_models_that_cannot_be_packed_exactly_are_refused(model_of, kind, why):
    """A state runs across documents, and learned positions do not start anew."""
    with pytest.raises(ConfigError, match="packing is not exact") as caught:
        lora(model_of(kind), target_modules="all-linear", packed=True)
    assert why in str(caught.value)
    assert "packing = false" in str(caught.value)


def test_a_leak_between_documents_is_refused(llama, monkeypatch):
    """A mask that is only causal has to be noticed by the check itself."""
    causal = lambda _, N, **__: mx.tril(mx.ones((N, N))) > 0
    monkeypatch.setattr(DocumentCache, "make_mask", causal)
    with pytest.raises(ConfigError, match="changes another's logits"):
        lora(llama, packed=True)


@pytest.mark.parametrize("build", [dora, full])
def test_every_kind_of_adapter_can_be_packed(llama, build):
    """Packing is a property of the forward pass, not of what is trained."""
    assert difference(build(llama, packed=True)) < 5e-5


def test_a_packed_bf16_model_passes_the_check(model_of):
    """Rounding must not be mistaken for a leak."""
    assert lora(model_of("llama", dtype="bfloat16"), packed=True).packed


def test_a_sliding_window_counts_within_documents():
    """Models with local attention ask for a second mask."""
    cache = DocumentCache(mx.array([[1, 1, 1, 2, 2]]))
    mask = cache.make_mask(5, window_size=2)[0, 0].astype(mx.int32).tolist()
    assert mask == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert cache.make_mask(5) is cache.make_mask(5)
    assert cache.make_mask(5) is not cache.make_mask(5, window_size=2)
