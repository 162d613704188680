"""The step: pure, exact under any split, compiled or not, and safe from what is not finite."""

from itertools import pairwise

import attrs
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxfn import tree
from mlxfn.losses import causal_lm_loss
from mlxfn.random import fold_in
from mlxfn.state import IGNORED, Batch, Weighted
from mlxfn.step import init_state, make_step, split_rows
from mlxfn.transforms import (
    adamw,
    adjustable_rate,
    chain,
    clip_by_global_norm,
    sgd,
    warmup_cosine,
    with_rate_factor,
)

V, D = 11, 6


def toy_params(seed=0):
    """A two-layer model, small enough to run eagerly hundreds of times."""
    a, b = mx.random.split(mx.random.key(seed))
    return {
        "embed": mx.random.normal((V, D), key=a),
        "layers": [{"w": mx.random.normal((D, V), key=b) * 0.3}],
    }


def apply(params, batch, key):
    """Logits with dropout on the embedding when there is a key."""
    hidden = params["embed"][batch.tokens]
    if key is not None:
        kept = mx.random.bernoulli(0.8, hidden.shape, key=fold_in(key, 3))
        hidden = mx.where(kept, hidden / 0.8, 0.0)
    return mx.tanh(hidden) @ params["layers"][0]["w"]


def plain(params, batch, _):
    return apply(params, batch, None)


def ragged_batch(rows=8, length=7, seed=0):
    """Rows of unequal lengths: each split has another number of label tokens per part."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, V, (rows, length)).astype(np.int32)
    labels = rng.integers(0, V, (rows, length)).astype(np.int32)
    lengths = rng.integers(1, length + 1, rows)
    inside = np.arange(length) < lengths[:, None]
    return Batch(
        mx.array(np.where(inside, tokens, 0)),
        mx.array(np.where(inside, labels, IGNORED)),
        mx.array(inside.astype(np.int32)),
    )


TX = chain(clip_by_global_norm(0.5), adamw(warmup_cosine(0.05, warmup=3, total=20)))


@pytest.mark.parametrize("split", [1, 2, 4, 8])
def test_any_split_into_micro_batches_gives_the_same_update(split):
    """Averaging the means of micro-batches weights rows by the company they keep."""
    batch = ragged_batch()
    whole = make_step(causal_lm_loss(plain), TX, compiled=False)
    parts = make_step(causal_lm_loss(plain), TX, accumulate=split, compiled=False)
    one, metrics = whole(init_state(toy_params(), TX), batch)
    two, split_metrics = parts(init_state(toy_params(), TX), batch)
    assert split_metrics.loss.item() == pytest.approx(metrics.loss.item(), rel=1e-6)
    for name, leaf in tree.leaves(one.params):
        assert mx.max(mx.abs(leaf - tree.flatten(two.params)[name])).item() <= 1e-6


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_a_short_window_of_any_cut_gives_the_same_update(seed, cuts):
    """The last window of an epoch has fewer micro-batches, and they need not be equal."""
    batch = ragged_batch(seed=seed)
    edges = sorted({0, 8, *cuts})
    parts = [Batch(*(f[a:b] for f in batch)) for a, b in pairwise(edges)]
    step = make_step(causal_lm_loss(plain), sgd(0.1), accumulate=8, compiled=False)
    one, _ = step(init_state(toy_params(), sgd(0.1)), [batch])
    two, _ = step(init_state(toy_params(), sgd(0.1)), parts)
    for name, leaf in tree.leaves(one.params):
        assert mx.allclose(leaf, tree.flatten(two.params)[name], atol=1e-6).item()


def test_compiled_and_eager_are_bitwise_equal_over_twenty_updates_with_dropout():
    """Compilation is an optimization, never another result; a frozen dropout mask would show."""
    loss_fn = causal_lm_loss(apply, label_smoothing=0.1)
    states = [init_state(toy_params(), TX, seed=5) for _ in range(2)]
    steps = [make_step(loss_fn, TX, accumulate=2, compiled=c) for c in (True, False)]
    losses = [[], []]
    for i in range(20):
        for j in range(2):
            states[j], metrics = steps[j](states[j], ragged_batch(seed=i))
            losses[j].append(metrics.loss.item())
    assert losses[0] == losses[1]
    assert tree.same_bits(tree.lower(states[0]), tree.lower(states[1]))


def test_each_shape_is_traced_exactly_once():
    """A retrace costs seconds; a changed step, key or short window must not cause one."""
    traced = []

    def counting(params, batch, key):
        traced.append(batch.tokens.shape)
        return apply(params, batch, key)

    mx.eval(mx.ones(1) + 1)
    step = make_step(causal_lm_loss(counting), TX, accumulate=4)
    state = init_state(toy_params(), TX)
    for i in range(3):
        for length in (4, 7):
            state, _ = step(state, ragged_batch(8, length, seed=i))
            state, _ = step(state, [ragged_batch(2, length, seed=i)])
    assert sorted(traced) == [(2, 4), (2, 7)]


def test_a_step_changes_nothing_it_was_given():
    """Two calls with one state are two equal results."""
    step = make_step(causal_lm_loss(apply), TX, compiled=False)
    state, batch = init_state(toy_params(), TX), ragged_batch()
    before = tree.tree_map(mx.array, tree.lower(state))
    first, second = step(state, batch)[0], step(state, batch)[0]
    assert tree.same_bits(tree.lower(state), before)
    assert tree.same_bits(tree.lower(first), tree.lower(second))


def test_dropout_differs_between_updates_and_between_micro_batches():
    """One mask repeated forever is what compiling a global random state gives."""
    drawn = []

    def spy(params, batch, key):
        drawn.append(tuple(key.tolist()))
        return apply(params, batch, key)

    step = make_step(causal_lm_loss(spy), TX, accumulate=2, compiled=False)
    state = init_state(toy_params(), TX)
    for _ in range(3):
        state, _ = step(state, ragged_batch())
    assert len(set(drawn)) == 6


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_nonfinite_update_leaves_the_state_bitwise_as_it_was(bad, compiled):
    """Only the counter of skipped updates moves; moments, step and parameters do not."""

    def loss_fn(params, batch, _):
        spoiled = mx.where(batch.tokens[0, 0] == 7, bad, 1.0)
        return Weighted(mx.sum(params["w"] * params["w"]) * spoiled, mx.array(2.0))

    step = make_step(loss_fn, TX, compiled=compiled)
    ids = mx.ones((1, 2), mx.int32)
    state = init_state({"w": mx.array([0.5, -0.0])}, TX)
    state, metrics = step(state, Batch(ids, ids, ids))
    assert metrics.finite.item()
    after, metrics = step(state, Batch(ids * 7, ids, ids))
    assert not metrics.finite.item()
    assert after.skipped.item() == 1
    for name in ("params", "opt", "step", "key"):
        assert tree.same_bits(getattr(after, name), getattr(state, name))


def test_an_update_without_a_label_changes_nothing():
    """Not even weight decay: there was nothing to learn from."""
    batch = ragged_batch()
    empty = batch._replace(labels=mx.full(batch.labels.shape, IGNORED, mx.int32))
    step = make_step(causal_lm_loss(plain), adamw(0.1, weight_decay=0.5), compiled=False)
    state = init_state(toy_params(), adamw(0.1))
    after, metrics = step(state, empty)
    assert metrics.loss.item() == 0.0
    assert tree.same_bits(tree.lower(after), tree.lower(state))


def test_the_reported_norm_is_the_one_before_clipping():
    """A norm reported after clipping always looks healthy."""
    batch = ragged_batch()
    for limit in (0.0, 1e-3):
        tx = chain(clip_by_global_norm(limit), sgd(0.1))
        step = make_step(causal_lm_loss(plain), tx, compiled=False)
        state = init_state(toy_params(), tx)
        _, metrics = step(state, batch)
        exact = tree.global_norm(step.gradients(state, batch)[0]).item()
        assert metrics.grad_norm.item() == pytest.approx(exact, rel=1e-6)


def test_the_rate_reported_is_the_rate_used():
    """Updates are counted from 1: the third of three warmup updates has the peak."""
    step = make_step(causal_lm_loss(plain), TX, compiled=False)
    state, rates = init_state(toy_params(), TX), []
    for _ in range(3):
        state, metrics = step(state, ragged_batch())
        rates.append(metrics.learning_rate.item())
    assert rates == pytest.approx([0.05 / 3, 0.1 / 3, 0.05])


def test_too_many_micro_batches_are_refused():
    step = make_step(causal_lm_loss(plain), TX, accumulate=2, compiled=False)
    for count in (0, 3):
        with pytest.raises(ValueError, match=f"1 to 2 micro-batches, got {count}"):
            step(init_state(toy_params(), TX), [ragged_batch()] * count)
    with pytest.raises(ValueError, match="accumulate is at least 1, got 0"):
        make_step(causal_lm_loss(plain), TX, accumulate=0)


def test_masters_are_fp32_copies():
    """Small updates vanish in 16 bits, and a shared buffer could be donated to a step."""
    given = {"w": mx.array([1.0, 2.0], mx.bfloat16)}
    state = init_state(given, TX)
    assert state.params["w"].dtype == mx.float32
    assert all(leaf.dtype != mx.bfloat16 for _, leaf in tree.leaves(state.opt))


NOT_FINITE = {
    "loss": lambda w: mx.sum(w) + mx.inf,
    "gradient": lambda w: mx.sum(mx.sqrt(w)),
    "norm": lambda w: mx.sum(w) * 1e30,
}


@pytest.mark.parametrize("name", NOT_FINITE)
def test_each_thing_that_is_not_finite_is_noticed_alone(name):
    """A loss may be infinite with gradients of 1, and finite gradients may have no norm."""

    def loss_fn(params, *_):
        return Weighted(NOT_FINITE[name](params["w"]), mx.array(1.0))

    step = make_step(loss_fn, TX, compiled=False)
    state = init_state({"w": mx.array([0.0, 0.25])}, TX)
    after, metrics = step(state, ragged_batch())
    assert not metrics.finite.item()
    assert tree.same_bits(after.params, state.params)


def test_a_factor_on_the_rate_is_part_of_the_rate_reported():
    """After a rollback the log must show the rate that is trained with."""
    tx = chain(sgd(0.1), adjustable_rate())
    step = make_step(causal_lm_loss(plain), tx, compiled=False)
    state, metrics = step(init_state(toy_params(), tx), ragged_batch())
    assert metrics.learning_rate.item() == pytest.approx(0.1)
    slower = attrs.evolve(state, opt=with_rate_factor(state.opt, 0.5))
    assert step(slower, ragged_batch())[1].learning_rate.item() == pytest.approx(0.05)


@pytest.mark.parametrize("parts", range(1, 6))
@pytest.mark.parametrize("rows", range(1, 8))
def test_rows_are_split_into_parts_of_nearly_one_size(rows, parts):
    """An empty part, or a large one, would be another shape to compile or to hold."""
    batch = ragged_batch(rows)
    split = split_rows(batch, parts)
    sizes = [part.tokens.shape[0] for part in split]
    assert len(sizes) == min(parts, rows)
    assert max(sizes) - min(sizes) <= 1
    assert mx.array_equal(mx.concatenate([part.labels for part in split]), batch.labels).item()


def test_one_micro_batchs_activations_live_at_a_time():
    """Accumulation that holds all activations at once saves no memory, which is what it is for."""
    embed = mx.random.normal((V, 2048), key=mx.random.key(0))
    params = {"w": mx.zeros((2048,))}

    def deep(params, batch, _):
        hidden = embed[batch.tokens] + params["w"]
        for _ in range(6):
            hidden = mx.tanh(hidden) * hidden
        return Weighted(mx.sum(hidden), mx.array(float(batch.tokens.size)))

    step = make_step(deep, sgd(0.1), accumulate=6, compiled=False)
    peaks = {}
    for count in (1, 6):
        state, parts = init_state(params, sgd(0.1)), [ragged_batch(4, 16)] * count
        mx.eval(tree.lower(state), parts, embed)
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(tree.lower(step(state, parts)[0]))
        peaks[count] = mx.get_peak_memory() - before
    assert peaks[6] < 2.5 * peaks[1], peaks
