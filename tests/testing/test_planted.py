"""Errors that people make in their own pieces, planted one by one: each of them is found."""

from __future__ import annotations

import attrs
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

from mlxfn.assemble import assemble
from mlxfn.data.cursor import Loader
from mlxfn.data.encode import EncodedRow
from mlxfn.data.rows import EncodedRows
from mlxfn.losses import causal_lm_loss, cross_entropy
from mlxfn.models.clone import clone_module
from mlxfn.models.export import export_mlx_lm
from mlxfn.state import IGNORED, Batch, Weighted
from mlxfn.step import init_state, make_step
from mlxfn.testing import LawError, laws
from mlxfn.testing import verify as verification
from mlxfn.testing.pieces import Pieces, verify_pieces
from mlxfn.testing.toys import bigrams, context, context_params, table
from mlxfn.testing.verify import verify, verify_masks
from mlxfn.transforms import adamw, chain, clip_by_global_norm
from mlxfn.tree import flatten
from tests.laws.families import tiny_model
from tests.support.runs import small_config

IDS = mx.array([[1, 2, 3, 4, 5], [2, 4, 6, 1, 0], [3, 1, 0, 0, 0], [5, 0, 0, 0, 0]])
LENGTHS = mx.array([5, 4, 3, 1])[:, None]
INSIDE = mx.arange(5)[None] < LENGTHS
RAGGED = Batch(
    mx.where(INSIDE, IDS, 0), mx.where(INSIDE, (3 * IDS + 1) % 7, IGNORED), INSIDE.astype(mx.int32)
)
TX = chain(clip_by_global_norm(1.0), adamw(1e-2))


def broken(facts):
    return {fact.name for fact in facts if not fact.holds}


def test_pieces_without_an_error_pass():
    """What follows would mean nothing if everything were found."""
    pieces = Pieces(
        causal_lm_loss(context(dropout=0.3)),
        context_params(7),
        RAGGED,
        TX,
        drops=True,
        bitwise=True,
    )
    assert broken(verify_pieces(pieces)) == set()


def test_a_loss_that_averages_per_micro_batch_is_found():
    """The most common bug of all: rows are weighted by the company they keep."""

    def mean_loss(params, batch, key):
        loss = cross_entropy(bigrams(params, batch, key), batch.labels)
        return Weighted(loss.mean(), mx.array(1.0))

    facts = list(verify_pieces(Pieces(mean_loss, table(7), RAGGED)))
    assert broken(facts) == {
        "any split into micro-batches gives the same update",
        "a batch without labels has no loss",  # its weight is 1 for ever
    }
    found = next(f for f in facts if f.name.startswith("any split"))
    assert found.figure > 0.01
    assert "micro-batches" in found.detail


def test_padding_that_is_a_target_is_found():
    """One pad token a row was a target in a trainer that many use."""

    def careless(params, batch, key):
        labels = mx.where(batch.labels == IGNORED, 0, batch.labels)
        return cross_entropy(bigrams(params, batch, key), labels)

    assert "padding changes nothing" in broken(verify_pieces(Pieces(careless, table(7), RAGGED)))


def dropping_by_global_state(*, recompute):
    """A model as people write it: nn.Dropout's global random state, and a checkpointed layer."""

    def layer(hidden, w):
        kept = mx.random.bernoulli(0.7, hidden.shape)
        return mx.tanh(mx.where(kept, hidden / 0.7, 0.0)) @ w

    run = mx.checkpoint(layer) if recompute else layer

    def apply(params, batch, key):
        return run(params["embed"][batch.tokens], params["head"][0]["w"])

    return apply


def test_dropout_on_global_state_under_recompute_is_found():
    """The recompute draws another mask, so the gradient belongs to no loss at all."""
    ours, plain = (causal_lm_loss(dropping_by_global_state(recompute=r)) for r in (True, False))
    pieces = Pieces(ours, context_params(7), RAGGED, plain_loss=plain, drops=True)
    assert broken(verify_pieces(pieces)) >= {
        "dropout is a function of its key",
        "recompute changes nothing",
        "the gradient is the slope of the loss",
    }


def test_a_recompute_that_redraws_from_its_key_is_found_by_the_gradient():
    """Nothing global is touched and every call repeats: only the slope of the loss tells."""

    def apply(params, batch, key):
        @mx.custom_function
        def layer(hidden, w):
            kept = mx.random.bernoulli(0.7, hidden.shape, key=key)
            return mx.where(kept, hidden, 0.0) @ w

        @layer.vjp
        def backward(primals, cotangent, _):
            other = mx.random.split(key)[0]  # not the key of the forward pass

            def again(hidden, w):
                kept = mx.random.bernoulli(0.7, hidden.shape, key=other)
                return mx.where(kept, hidden, 0.0) @ w

            return tuple(mx.vjp(again, list(primals), [cotangent])[1])

        if key is None:
            return params["embed"][batch.tokens] @ params["head"][0]["w"]
        return layer(params["embed"][batch.tokens], params["head"][0]["w"])

    pieces = Pieces(causal_lm_loss(apply), context_params(7), RAGGED, drops=True)
    assert broken(verify_pieces(pieces)) == {"the gradient is the slope of the loss"}


def adapter_by_hand(*, freeze):
    """mlx-lm's LoRA layers put into a model by its user, who may forget to freeze it first."""
    from mlx_lm.tuner.lora import LoRALinear

    module = clone_module(tiny_model().module).unfreeze()
    if freeze:
        module.freeze()
    for layer in module.layers:
        layer.self_attn.q_proj = LoRALinear.from_base(layer.self_attn.q_proj, r=2)
    params = tree_unflatten(tree_flatten(module.trainable_parameters()))

    def apply(params, batch, key):
        before = module.parameters()
        try:
            module.update(params)
            return module(batch.tokens)
        finally:
            module.update(before)

    return params, apply


@pytest.mark.parametrize("freeze", [True, False])
def test_an_adapter_that_forgot_to_freeze_is_found(freeze):
    """It trains everything, quietly, and its export is as large as the model."""
    params, apply = adapter_by_hand(freeze=freeze)
    base = flatten(tiny_model().module.parameters())
    facts = list(verify_pieces(Pieces(causal_lm_loss(apply), params, RAGGED, base=base)))
    assert broken(facts) == (set() if freeze else {"only the adapter is trained"})
    if not freeze:
        assert "weights of the base are trained" in facts[0].detail


def test_a_model_that_keeps_its_tracers_after_an_error_is_found():
    """Whoever uses the model next crashes, far from the line that is to blame."""
    module = clone_module(tiny_model().module).unfreeze()

    def apply(params, batch, key):
        before = module.parameters()
        module.update(params)
        logits = module(batch.tokens)
        module.update(before)  # not in a finally
        return cross_entropy(logits, batch.labels)

    step = make_step(apply, TX, compiled=False)
    state = init_state(tree_unflatten(tree_flatten(module.parameters())), TX)
    with pytest.raises(LawError, match="tokens that are no ids left other arrays in the model"):
        laws.step_is_pure(step, state, [RAGGED], watched=module.parameters)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A run on a small model and prompts with completions, ready to begin."""
    return assemble(small_config(tmp_path_factory.mktemp("run") / "x"))


def shifted(rows, by):
    """Return rows whose masks begin and end one token early (-1) or late (1)."""

    def shift(row):
        ids = [*row.tokens.tolist(), int(row.labels[-1])]
        learned = np.roll(row.labels != IGNORED, by)
        learned[0 if by > 0 else -1] = False
        labels = [ids[t + 1] if on else IGNORED for t, on in enumerate(learned)]
        return EncodedRow(row.tokens, np.array(labels, np.int32))

    return EncodedRows.of((shift(rows.row(i)) for i in range(len(rows))), rows.places)


@pytest.mark.parametrize("by", [-1, 1])
def test_a_mask_shifted_by_one_is_found(job, by):
    """The model learns to write the end of its prompt, or never its first word."""
    rows, tokenizer = job.train.rows, job.model.tokenizer
    right, wrong = (verify_masks(job.config, tokenizer, r) for r in (rows, shifted(rows, by)))
    assert right.holds
    assert not wrong.holds
    assert "train.jsonl:" in wrong.detail


def test_of_a_whole_run_only_the_planted_error_is_broken(job):
    """A shifted mask in a run whose every other part is right."""
    rows = shifted(job.train.rows, -1)
    loader = Loader(rows, 2, vocab_size=job.model.vocab_size, max_seq_length=64)
    facts = list(verify(attrs.evolve(job, train=loader)))
    assert broken(facts) == {"the masks learn the answers"}


def test_a_base_that_is_written_into_is_found(job, monkeypatch):
    """The base is shared by every adapter: whatever writes into it changes them all."""

    def writing(adapter, params, folder):
        weight = adapter.model.module["model"]["norm"]["weight"]
        weight[0] = weight[0] + 1
        return export_mlx_lm(adapter, params, folder)

    monkeypatch.setattr(verification, "export_mlx_lm", writing)
    assert "the model is untouched" in broken(verify(job))


def test_an_export_with_a_wrong_scale_is_found(job, monkeypatch):
    """The file loads without a word, and the model answers something else."""

    def wrong(adapter, params, folder):
        return export_mlx_lm(attrs.evolve(adapter, scale=2 * adapter.scale), params, folder)

    monkeypatch.setattr(verification, "export_mlx_lm", wrong)
    assert broken(verify(job)) == {"mlx-lm runs the export with the same logits"}
