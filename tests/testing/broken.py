"""Broken pieces: for every law at least one that it has to catch."""

from __future__ import annotations

import itertools
import math

import attrs
import mlx.core as mx
import mlx.optimizers as optim

from mlxfn import tree
from mlxfn.losses import causal_lm_loss, cross_entropy
from mlxfn.monitors import Monitor, Verdict
from mlxfn.state import Batch, RunState, Weighted
from mlxfn.step import init_state, make_step
from mlxfn.testing import laws
from mlxfn.testing.models import snapshot
from mlxfn.testing.states import decode, encode
from mlxfn.testing.steps import cut
from mlxfn.testing.toys import bigrams, context, context_params, table
from mlxfn.transforms import Transform, adamw, clip_by_global_norm, scale_by, sgd

PARAMS = {"a": {"w": mx.array([[1.0, -2.0], [0.5, 3.0]])}, "bias": mx.array([0.1, -0.2])}
GRADS = [tree.tree_map(lambda x, i=i: x * (0.3 + i), PARAMS) for i in range(3)]
IDS = mx.array([[1, 2, 3], [4, 5, 6], [0, 2, 4]])
BATCH = Batch(IDS, mx.array([[2, 3, -100], [5, -100, -100], [2, 4, 1]]), mx.ones_like(IDS))
KEY = mx.random.key(3)
plain = causal_lm_loss(bigrams)


def stage(function):
    """Return a stateless transform of each leaf."""
    return Transform(lambda _: {}, lambda g, s, _: (tree.tree_map(function, g), s))


def counting():
    """Return a transform that remembers outside of its state how often it ran."""
    calls = itertools.count(1)
    return stage(lambda x: x * next(calls))


def writing():
    """Return a transform that writes into the state it is given, as mlx's optimizers do."""

    def update(grads, state, params):
        state["n"] = state["n"] + 1
        return grads, state

    return Transform(lambda _: {"n": mx.array(0.0)}, update)


def growing():
    """Return a transform whose state gets another dtype."""
    return Transform(
        lambda _: {"n": mx.array(0)}, lambda g, s, _: (g, {"n": s["n"].astype(mx.float32)})
    )


def by_smallest_leaf(limit):
    """Clip each leaf to the limit by itself, which is not clipping by the global norm."""
    return stage(lambda x: x * mx.minimum(1.0, limit / mx.max(mx.abs(x))))


def rescale(limit):
    """Scale every gradient to the limit, small ones too."""
    return Transform(lambda _: {}, lambda g, s, _: (tree.scale(g, limit / tree.global_norm(g)), s))


def mean_loss(params, batch, key):
    loss = cross_entropy(bigrams(params, batch, key), batch.labels)
    return Weighted(loss.mean(), mx.array(1.0))


def careless(params, batch, key):
    """Take an ignored label for class 0."""
    return cross_entropy(bigrams(params, batch, key), mx.maximum(batch.labels, 0))


def first_row_only(params, batch, key):
    loss = cross_entropy(bigrams(params, batch, key)[:1], batch.labels[:1])
    return Weighted(loss.total, mx.sum(batch.labels != -100).astype(mx.float32))


def leaking(params, batch, key):
    """Let every position without a label have a part in the sum."""
    logits = bigrams(params, batch, key)
    loss = cross_entropy(logits, batch.labels)
    return loss._replace(total=loss.total + 1e-3 * mx.sum(logits))


def half_gradient(params, batch, key):
    loss = plain(params, batch, key)
    return loss._replace(total=loss.total / 2 + mx.stop_gradient(loss.total) / 2)


def without_gradient(params, batch, key):
    return Weighted(*map(mx.stop_gradient, plain(params, batch, key)))


def smoothed_over_the_others(smoothing):
    def loss_fn(params, batch, key):
        loss = plain(params, batch, key)
        return loss._replace(total=loss.total * (1 - smoothing) + 0.01)

    return loss_fn


def global_dropout(params, batch, key):
    logits = bigrams(params, batch, None)
    return mx.where(mx.random.bernoulli(0.5, logits.shape), logits, 0.0)


def deaf_dropout(params, batch, key):
    """Drop the same values for every key."""
    logits = bigrams(params, batch, None)
    kept = mx.random.bernoulli(0.5, logits.shape, key=KEY)
    return logits if key is None else mx.where(kept, logits, 0.0)


def crossing(params, batch, key):
    """Look back across documents."""
    return context()(params, batch._replace(segments=mx.ones_like(batch.segments)), key)


def state_of(tx=None, params=None):
    return init_state(params or table(7), tx or sgd(0.1))


def step_of(loss_fn=plain, tx=None, **options):
    return make_step(loss_fn, tx or sgd(0.1), compiled=False, accumulate=3, **options)


def impure_step(state, batches):
    """Write the new parameters into the tree that the old state holds."""
    after, metrics = step_of()(state, batches)
    state.params["table"] = after.params["table"]
    return after, metrics


MODULE = {"table": mx.zeros((7, 7))}


def left_inside(params, batch, key):
    """Put the parameters into a module and take them out again, unless something raises."""
    before = MODULE["table"]
    MODULE["table"] = params["table"]
    loss = cross_entropy(MODULE["table"][batch.tokens], batch.labels)
    MODULE["table"] = before
    return loss


def unguarded(loss_fn, tx, *, compiled):
    """Return a step without the guard against what is not finite."""

    def step(state, batches):
        def total(p):
            return loss_fn(p, batches[0], None).total

        updates, opt = tx.update(mx.grad(total)(state.params), state.opt, state.params)
        params = tree.tree_map(mx.add, state.params, updates)
        _, metrics = step_of(loss_fn, tx)(state, batches)
        return attrs.evolve(state, params=params, opt=opt), metrics

    return step


def decaying_step(state, batches):
    """Apply weight decay to an update without labels."""
    after, metrics = step_of()(state, batches)
    return attrs.evolve(after, params=tree.scale(after.params, mx.array(0.9))), metrics


def fixed_mask(params, batch, key):
    return cross_entropy(deaf_dropout(params, batch, key), batch.labels)


def retracing(loss_fn, tx, *, accumulate):
    """Return a step that is compiled anew for every call."""

    def step(state, batches):
        return make_step(loss_fn, tx, accumulate=accumulate)(state, batches)

    return step


def forgetful(bound):
    """Return a monitor that remembers in itself and not in its state."""
    seen = []

    def observe(state, value):
        seen.append(value)
        return {}, Verdict.DIVERGED if len(seen) % bound == 0 else Verdict.CONTINUE

    return Monitor(dict, observe)


def writing_monitor():
    def observe(state, value):
        state["n"] += 1
        return state, Verdict.CONTINUE

    return Monitor(lambda: {"n": 0}, observe)


def blind():
    """Return a monitor that compares as everybody does: NaN is never larger than anything."""
    return Monitor(dict, lambda s, value: (s, Verdict.DIVERGED if value > 10 else Verdict.CONTINUE))


def lossy(state):
    return encode(attrs.evolve(state, best_loss=None))


BASE = {"w": mx.ones((2, 2)), "v": mx.zeros(3)}
STEPS = lambda f: lambda i: mx.array(f(int(i.item())), mx.float32)

BROKEN = {
    laws.chain_is_associative: [lambda law: law(counting(), scale_by(1.0), sgd(1.0), PARAMS, GRADS)],
    laws.identity_changes_nothing: [lambda law: law(counting(), PARAMS, GRADS)],
    laws.update_is_pure: [
        lambda law: law(writing(), PARAMS, GRADS),
        lambda law: law(counting(), PARAMS, GRADS),
    ],
    laws.update_keeps_structure: [
        lambda law: law(growing(), PARAMS, GRADS),
        lambda law: law(stage(lambda x: x[..., :1]), PARAMS, GRADS),
    ],
    laws.elementwise_means_flat: [
        lambda law: law(
            attrs.evolve(stage(lambda x: x + mx.max(x)), elementwise=True), BASE, [BASE]
        ),
    ],
    laws.clipping_never_raises_the_norm: [
        lambda law: law(rescale(99.0), 99.0, PARAMS),
        lambda law: law(by_smallest_leaf(1.0), 1.0, PARAMS),
        lambda law: law(stage(lambda x: x * float("nan")), 1.0, PARAMS),
    ],
    laws.clipping_leaves_small_gradients_alone: [lambda law: law(rescale(99.0), 99.0, PARAMS)],
    laws.clipping_is_idempotent: [lambda law: law(scale_by(0.5), 1.0, PARAMS)],
    laws.clipping_commutes_with_scaling: [
        lambda law: law(lambda _: clip_by_global_norm(1.0), 1.0, PARAMS, 0.1),
        lambda law: law(scale_by, 1.0, PARAMS, 2.0),
    ],
    laws.lifted_optimizer_equals_its_object: [
        lambda law: law(adamw(0.1), lambda: optim.AdamW(0.1), PARAMS, GRADS),
        lambda law: law(
            adamw(0.1, eps=1e-3), lambda: optim.AdamW(0.1, bias_correction=True), PARAMS, GRADS
        ),
    ],
    laws.nonfinite_gradients_change_nothing: [
        lambda law: law(adamw(0.1), PARAMS, GRADS, float("nan")),
        lambda law: law(clip_by_global_norm(1.0), PARAMS, GRADS, float("inf")),
    ],
    laws.schedule_is_bounded: [
        lambda law: law(STEPS(lambda i: 1.5 if i > 5 else 1.0), peak=1.0, total=4),
        lambda law: law(STEPS(lambda _: float("nan")), peak=1.0, total=4),
    ],
    laws.schedule_counts: [lambda law: law(STEPS(lambda i: i - 1), total=4)],
    laws.schedule_is_continuous: [
        lambda law: law(STEPS(lambda i: i / 3 if i < 4 else 0.1), peak=1.0, warmup=3, total=9)
    ],
    laws.schedule_ends: [
        lambda law: law(STEPS(lambda i: 1 / i), warmup=0, total=9),
        lambda law: law(STEPS(lambda i: 1.0 if i < 10 else 0.5), warmup=0, total=9),
    ],
    laws.schedule_warms_up: [lambda law: law(STEPS(lambda i: (i - 1) / 3), peak=1.0, warmup=3)],
    laws.schedule_is_traceable: [
        lambda law: law(lambda _: 0.1, number=2),
        lambda law: law(lambda _: mx.array([0.1]), number=2),
    ],
    laws.loss_is_invariant_to_padding: [lambda law: law(careless, table(7), BATCH)],
    laws.loss_is_invariant_to_row_order: [
        lambda law: law(first_row_only, table(7), BATCH, [2, 1, 0])
    ],
    laws.loss_adds_up: [lambda law: law(mean_loss, table(7), cut(BATCH, [1]))],
    laws.loss_ignores_unlabelled_positions: [
        lambda law: law(leaking, table(7, extreme=1), BATCH, 7)
    ],
    laws.loss_of_nothing_is_zero: [
        lambda law: law(mean_loss, table(7), BATCH),
        lambda law: law(leaking, table(7), BATCH),
    ],
    laws.loss_counts_label_tokens: [lambda law: law(mean_loss, table(7), BATCH)],
    laws.losses_agree: [lambda law: law("they differ", half_gradient, plain, table(7), BATCH)],
    laws.chunked_equals_full: [
        lambda law: law(half_gradient, plain, table(7), BATCH),
        lambda law: law(leaking, plain, table(7), BATCH),
    ],
    laws.loss_is_cross_entropy: [
        lambda law: law(plain, bigrams, table(7), BATCH, label_smoothing=0.1),
        lambda law: law(leaking, bigrams, table(7), BATCH),
    ],
    laws.smoothing_zero_is_cross_entropy: [
        lambda law: law(smoothed_over_the_others, bigrams, table(7), BATCH),
        lambda law: law(
            lambda s: plain if not s else leaking, bigrams, table(7, extreme=1), BATCH
        ),
    ],
    laws.gradient_is_right: [
        lambda law: law(half_gradient, table(7), BATCH),
        lambda law: law(without_gradient, table(7), BATCH),
    ],
    laws.dropout_is_a_function_of_its_key: [
        lambda law: law(global_dropout, table(7), BATCH, KEY),
        lambda law: law(deaf_dropout, table(7), BATCH, KEY),
    ],
    laws.recompute_equals_plain: [lambda law: law(half_gradient, plain, table(7), BATCH, KEY)],
    laws.packed_equals_separate: [lambda law: law(crossing, context_params(7), [[1, 2], [3, 4]])],
    laws.base_is_frozen: [lambda law: law({"x": mx.ones((2, 2))}, BASE)],
    laws.base_is_untouched: [
        lambda law: law(snapshot(BASE), snapshot({**BASE, "w": mx.ones((2, 2))})),
        lambda law: law(snapshot(BASE), snapshot({"w": BASE["w"]})),
    ],
    laws.accumulation_is_independent_of_the_split: [
        lambda law: law(mean_loss, table(7), BATCH, [1])
    ],
    laws.step_is_pure: [
        lambda law: law(impure_step, state_of(), [BATCH]),
        lambda law: law(step_of(left_inside), state_of(), [BATCH], watched=lambda: MODULE),
    ],
    laws.compiled_equals_eager: [
        lambda law: law(step_of(), step_of(tx=sgd(0.1001)), state_of(), [[BATCH]]),
        lambda law: law(
            step_of(), step_of(tx=sgd(0.11)), state_of(), [[BATCH]] * 2, tolerance=1e-3
        ),
    ],
    laws.one_trace_per_shape: [
        lambda law: law(plain, sgd(0.1), state_of(), [[BATCH]] * 2, make=retracing)
    ],
    laws.nonfinite_changes_nothing: [
        lambda law, spoil=spoil: law(plain, adamw(0.1), table(7), BATCH, spoil, make=unguarded)
        for spoil in ("a NaN gradient", "an infinite gradient", "a NaN loss")
    ],
    laws.update_without_labels_changes_nothing: [
        lambda law: law(decaying_step, state_of(), [BATCH])
    ],
    laws.randomness_comes_from_the_state: [
        lambda law: law(step_of(fixed_mask), state_of(), [BATCH]),
        lambda law: law(
            step_of(lambda p, b, k: cross_entropy(global_dropout(p, b, k), b.labels)),
            state_of(),
            [BATCH],
        ),
    ],
    laws.monitor_is_a_fold: [lambda law: law(forgetful(3), [1.0, 2.0, 3.0, 4.0], 1)],
    laws.monitor_is_pure: [lambda law: law(writing_monitor(), [1.0], 2.0)],
    laws.monitor_never_swallows_nan: [
        lambda law: law(blind(), [1.0, 2.0], within=3),
        lambda law: law(
            Monitor(dict, lambda s, v: (s, Verdict.DIVERGED if math.isnan(v) else Verdict.CONTINUE)),
            [1.0],
            within=1,
        ),
    ],
    laws.encoding_is_lossless: [
        lambda law: law(RunState(state_of(), best_loss=1.0), encode=lossy),
        lambda law: law(
            RunState(state_of()), decode=lambda d, t: attrs.evolve(decode(d, t), epoch=1)
        ),
    ],
}  # fmt: skip
