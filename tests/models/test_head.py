"""Facts about the split of a model into hidden states and head."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx import nn

from mlxfn.losses import causal_lm_loss, chunked_causal_lm_loss, chunked_cross_entropy
from mlxfn.models.head import read_by_head, split_head
from mlxfn.models.lora import full, lora
from mlxfn.models.model import Model
from mlxfn.tree import flatten, same_bits
from tests.support.models import HIDDEN, random_batch, shaken

BATCH = random_batch()
KEY = mx.random.key(5)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "mixtral"])
@pytest.mark.parametrize("packed", [False, True])
def test_head_of_hidden_is_the_model(model_of, kind, packed):
    """Tied heads, soft-capped logits, dropout and packing included."""
    adapter = lora(model_of(kind), dropout=0.3, target_modules="all-linear", packed=packed)
    split, params = split_head(adapter), shaken(adapter.params)
    for key in (None, KEY):
        hidden = split.hidden_apply(params, BATCH, key)
        assert hidden.shape == (2, 9, HIDDEN)
        logits = adapter.apply(params, BATCH, key)
        assert mx.allclose(split.head(params, hidden), logits, atol=1e-5)
        assert mx.allclose(split.head(params, hidden[1]), logits[1], atol=1e-5)


def test_a_chunked_loss_over_the_split_has_the_same_gradients(model_of):
    """That is what the split is for."""
    adapter = lora(model_of("gemma2"), rank=4)
    split, params = split_head(adapter), shaken(adapter.params)

    def chunked(p):
        hidden = split.hidden_apply(p, BATCH, None)
        return chunked_cross_entropy(
            hidden, BATCH.labels, lambda rows: split.head(p, rows), chunk_size=5
        ).mean()

    ours = flatten(mx.grad(chunked)(params))
    whole = causal_lm_loss(adapter.apply)
    theirs = flatten(mx.grad(lambda p: whole(p, BATCH, None).mean())(params))
    for name, leaf in ours.items():
        assert mx.allclose(leaf, theirs[name], atol=1e-5), name


@pytest.mark.parametrize(
    ("build", "kind", "options", "read"),
    [
        (lora, "llama", {}, 0),
        (lora, "llama", {"target_modules": ["q_proj", "lm_head"]}, 2),
        (lora, "qwen3", {"target_modules": ["embed_tokens"]}, 2),  # tied
        (full, "llama", {}, 1),
        (full, "qwen3", {}, 1),
        (full, "gemma2", {}, 1),
    ],
)
def test_a_trained_head_gets_its_gradient_chunk_by_chunk(model_of, build, kind, options, read):
    """Tied or not, adapted or trained in full, with soft-capped logits."""
    adapter = build(model_of(kind), **options)
    split, params = split_head(adapter), shaken(adapter.params)
    paths = read_by_head(split, adapter)
    assert len(paths) == read
    chunks = chunked_causal_lm_loss(split.hidden_apply, split.head, trained=paths, chunk_size=5)
    whole = causal_lm_loss(adapter.apply)
    ours, theirs = (
        flatten(mx.grad(lambda p, f=loss: f(p, BATCH, KEY).mean())(params))
        for loss in (chunks, whole)
    )
    for name, leaf in theirs.items():
        assert mx.allclose(ours[name], leaf, atol=1e-5, rtol=1e-4), name


def test_a_loss_that_is_only_evaluated_has_the_same_value(llama):
    """Validation asks for no gradient, and should not pay for one."""
    adapter = lora(llama)
    split, params = split_head(adapter), shaken(adapter.params)
    both = [
        chunked_causal_lm_loss(split.hidden_apply, split.head, chunk_size=5, gradient=wanted)
        for wanted in (True, False)
    ]
    trained, evaluated = (loss(params, BATCH, None) for loss in both)
    assert same_bits(trained.total, evaluated.total)
    assert same_bits(trained.weight, evaluated.weight)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_the_head_sees_the_parameters_it_is_given(model_of, kind):
    """In a full adapter the head itself is trained."""
    adapter = full(model_of(kind))
    split, params = split_head(adapter), shaken(adapter.params)
    hidden = split.hidden_apply(params, BATCH, None)
    logits = adapter.apply(params, BATCH, None)
    assert mx.allclose(split.head(params, hidden), logits, atol=1e-5)
    assert not mx.allclose(split.head(adapter.params, hidden), logits, atol=1e-2)


def test_splitting_leaves_the_adapter_as_it_was(llama):
    """Stand-ins and shells must not stay in the model."""
    adapter = lora(llama)
    before = repr(adapter.module), adapter.apply(adapter.params, BATCH, None)
    split = split_head(adapter)
    split.head(adapter.params, split.hidden_apply(adapter.params, BATCH, KEY))
    assert repr(adapter.module) == before[0]
    assert same_bits(adapter.apply(adapter.params, BATCH, None), before[1])


class Toy(nn.Module):
    """A model with a body whose head looks at more than its hidden states."""

    def __init__(self, head):
        super().__init__()
        self.model = nn.Embedding(400, 8)
        self.q_proj = nn.Linear(8, 400)
        vars(self)["head"] = head

    def __call__(self, tokens):
        return vars(self)["head"](self, tokens, self.model(tokens))


@pytest.mark.parametrize(
    ("head", "splits"),
    [
        (lambda self, _, hidden: self.q_proj(hidden), True),
        (lambda self, tokens, hidden: self.q_proj(hidden) + tokens[..., None], False),
        (lambda self, _, hidden: self.q_proj(mx.cumsum(hidden, axis=1)), False),
        (lambda *given: given[-1], False),
    ],
    ids=["plain", "uses tokens", "mixes positions", "no head"],
)
def test_a_model_that_does_not_come_apart_gives_none(head, splits):
    """A chunked loss would be a wrong loss there."""
    model = Model(Toy(head), vocab_size=400)
    assert (split_head(lora(model, target_modules=["q_proj"])) is not None) == splits


def test_a_model_without_a_body_gives_none(llama):
    """The whole is then computed with full logits."""
    bare = lora(Model(llama.module.model, vocab_size=400))
    assert split_head(bare) is None


def test_the_head_of_some_rows_copies_no_logits(llama, tmp_path):
    """An index into them would gather all, and scatter their gradient."""
    split = split_head(adapter := lora(llama))
    path = tmp_path / "head.dot"
    with path.open("w") as file:
        mx.export_to_dot(file, split.head(adapter.params, mx.ones((3, HIDDEN))))
    assert "Matmul" in path.read_text()
    assert "Gather" not in path.read_text()
