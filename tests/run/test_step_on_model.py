"""The step on a real model with a real adapter: compiled, eager, and split."""

import mlx.core as mx
import pytest

import mlxfn as mf
from mlxfn import tree
from tests.support.models import VOCAB, load, random_batch
from tests.support.runs import model_folder

TX = mf.chain(mf.clip_by_global_norm(1.0), mf.adamw(mf.warmup_cosine(1e-2, warmup=3, total=20)))


def adapter_of(kind, **options):
    return mf.lora(
        load(model_folder(kind)), rank=4, alpha=8.0, target_modules="all-linear", **options
    )


def ragged(rows, length, seed):
    """Rows of random ids of which each has another number of labels."""
    batch = random_batch(rows, length, seed=seed, vocab=VOCAB)
    ends = mx.random.randint(1, length + 1, (rows, 1), key=mx.random.key(seed + 1))
    inside = mx.arange(length)[None] < ends
    return batch._replace(labels=mx.where(inside, batch.labels, mf.IGNORED))


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_compiled_and_eager_are_bitwise_equal_over_twenty_updates_with_dropout(kind):
    """Two micro-batches, smoothing and clipping on: every bit of the state, after every part."""
    adapter = adapter_of(kind, dropout=0.2)
    loss_fn = mf.causal_lm_loss(adapter.apply, label_smoothing=0.1)
    states = [mf.init_state(adapter.params, TX, seed=3) for _ in range(2)]
    steps = [mf.make_step(loss_fn, TX, accumulate=2, compiled=c) for c in (True, False)]
    for i in range(20):
        states = [
            step(state, ragged(4, 9, seed=i))[0] for step, state in zip(steps, states, strict=True)
        ]
        mx.eval([tree.lower(state) for state in states])
    assert tree.same_bits(*map(tree.lower, states))


def test_each_bucket_shape_is_traced_exactly_once():
    """Over two epochs of batches in several lengths, with short windows at their ends."""
    adapter, traced = adapter_of("llama", dropout=0.1), []

    def counting(params, batch, key):
        traced.append(batch.tokens.shape)
        return adapter.apply(params, batch, key)

    mx.eval(mx.ones(1) + 1)
    step = mf.make_step(mf.causal_lm_loss(counting), TX, accumulate=2)
    state = mf.init_state(adapter.params, TX)
    for _ in range(2):
        for lengths in ((8, 16), (16, 8), (8,)):
            state, _ = step(state, [ragged(2, length, seed=length) for length in lengths])
            mx.eval(tree.lower(state))
    assert sorted(traced) == [(2, 8), (2, 16)]


@pytest.mark.parametrize("micro_batches", [2, 4, 8])
def test_one_batch_of_eight_rows_and_its_splits_give_the_same_update(micro_batches):
    """1 x 8, 2 x 4, 4 x 2 and 8 x 1 rows of unequal lengths, on a model with an adapter."""
    adapter = adapter_of("qwen3")
    params = tree.tree_map(lambda leaf: leaf + 0.05, adapter.params)
    loss_fn, tx = mf.causal_lm_loss(adapter.apply), mf.sgd(0.1)
    state, batch = mf.init_state(params, tx), ragged(8, 9, seed=5)
    whole, _ = mf.make_step(loss_fn, tx, compiled=False)(state, batch)
    split, _ = mf.make_step(loss_fn, tx, accumulate=micro_batches, compiled=False)(state, batch)
    other = tree.flatten(split.params)
    for name, leaf in tree.leaves(whole.params):
        assert mx.max(mx.abs(leaf - other[name])).item() <= 1e-6
