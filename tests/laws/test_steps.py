"""The laws of the step, on a model that looks back, keeps documents apart and drops out."""

from __future__ import annotations

from functools import cache

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn.losses import causal_lm_loss
from mlxfn.state import Batch
from mlxfn.step import init_state, make_step
from mlxfn.testing import laws
from mlxfn.testing.steps import SPOILS, cut
from mlxfn.testing.strategies import batches, seeds, transforms
from mlxfn.testing.toys import context, context_params
from mlxfn.transforms import adamw, chain, clip_by_global_norm, warmup_cosine
from tests.laws.families import LOSSES, TRANSFORMS, many, small_batches, tiny_adapter

V = 7
TX = chain(clip_by_global_norm(0.5), adamw(warmup_cosine(0.05, warmup=3, total=20)))
plain = context()
dropping = context(dropout=0.3)
edges = st.lists(st.integers(1, 5), max_size=3)
models = seeds.map(lambda seed: context_params(V, width=4, seed=seed))


def labelled(**options):
    return batches(vocab=V, packed=True, labelled=True, **options)


@pytest.mark.parametrize("name", LOSSES)
@many
@given(params=models, batch=labelled(max_rows=6), where=edges)
def test_accumulation_is_independent_of_the_split(name, params, batch, where):
    """Averaging the means of micro-batches weights rows by the company they keep."""
    loss_fn = LOSSES[name].make(plain)
    laws.accumulation_is_independent_of_the_split(loss_fn, params, batch, where)


@pytest.mark.parametrize("name", TRANSFORMS)
@many
@given(params=models, batch=labelled(max_rows=3, max_length=3), where=edges)
def test_steps_are_pure(name, params, batch, where):
    """A state is a value: two calls with one are two equal results, whatever failed in between."""
    tx = TRANSFORMS[name]()
    step = make_step(causal_lm_loss(dropping), tx, accumulate=4, compiled=False)
    laws.step_is_pure(step, init_state(params, tx), cut(batch, where))


@many
@given(params=models, batch=labelled(), tx=transforms(), spoil=st.sampled_from(sorted(SPOILS)))
def test_whatever_is_not_finite_changes_nothing(params, batch, tx, spoil):
    """One bad row must not cost the run."""
    laws.nonfinite_changes_nothing(causal_lm_loss(plain), tx, params, batch, spoil)


@pytest.mark.parametrize("spoil", SPOILS)
def test_whatever_is_not_finite_changes_nothing_compiled(spoil):
    """The guard lives inside the compiled step, without a round trip to the host."""
    ids = mx.array([[1, 2, 3]])
    batch = Batch(ids, ids, mx.ones_like(ids))
    params = context_params(V)
    laws.nonfinite_changes_nothing(causal_lm_loss(plain), TX, params, batch, spoil, compiled=True)


@many
@given(params=models, batch=labelled(), tx=transforms())
def test_an_update_without_labels_changes_nothing(params, batch, tx):
    """Not even weight decay: there was nothing to learn from."""
    step = make_step(causal_lm_loss(plain), tx, compiled=False)
    laws.update_without_labels_changes_nothing(step, init_state(params, tx), [batch])


@many
@given(params=models, seed=seeds, batch=labelled(rows=3, length=4))
def test_all_randomness_comes_from_the_state(params, seed, batch):
    """One mask repeated for ever is what compiling a global random state gives."""
    batch = batch._replace(labels=batch.tokens, segments=mx.ones_like(batch.tokens))
    step = make_step(causal_lm_loss(dropping), TX, compiled=False)
    laws.randomness_comes_from_the_state(step, init_state(params, TX, seed=seed), [batch])


@cache
def both():
    """The same step compiled and not, made once: 200 examples are 200 sets of numbers."""
    loss_fn = causal_lm_loss(dropping, label_smoothing=0.1)
    return [make_step(loss_fn, TX, accumulate=2, compiled=c) for c in (True, False)]


@many
@given(
    params=models,
    seed=seeds,
    updates=st.lists(labelled(rows=2, length=4), min_size=2, max_size=4),
)
def test_compiled_equals_eager_to_the_bit(params, seed, updates):
    """Compilation is an optimization, never another result; dropout is on."""
    state = init_state(params, TX, seed=seed)
    windows = [updates[i : i + 2] for i in range(0, len(updates), 2)]
    laws.compiled_equals_eager(*both(), state, windows)


SHAPES = ((1, 3), (2, 3), (2, 5))


@many
@given(
    params=models,
    shapes=st.lists(
        st.lists(st.sampled_from(SHAPES), min_size=1, max_size=2), min_size=1, max_size=4
    ),
    data=st.data(),
)
def test_every_shape_is_traced_once(params, shapes, data):
    """A retrace costs seconds; no step number, key or short window may cause one."""
    made = {
        shape: data.draw(labelled(rows=shape[0], length=shape[1]))
        for shape in sorted({shape for window in shapes for shape in window})
    }
    updates = [[made[shape] for shape in window] for window in shapes]
    # A loss with so little in it that tracing is all it costs.
    laws.one_trace_per_shape(causal_lm_loss(plain), TX, init_state(params, TX), updates)


@pytest.mark.parametrize("name", ["lora", "dora", "full"])
@many
@given(batch=small_batches(labelled=True))
def test_a_step_leaves_the_model_alone_even_when_its_trace_raises(name, batch):
    """Parameters left inside a module are tracers, which crash whoever uses it next."""
    adapter = tiny_adapter(name, **({} if name == "full" else {"dropout": 0.2}))
    step = make_step(causal_lm_loss(adapter.apply), TX, compiled=False)

    def watched():
        return [adapter.model.module.parameters(), adapter.module.parameters()]

    laws.step_is_pure(step, init_state(adapter.params, TX), [batch], watched=watched)


def test_a_compiled_step_leaves_the_model_alone_even_when_its_trace_raises():
    """The compiled trace is where a model that is not put back would keep tracers."""
    adapter = tiny_adapter("lora", dropout=0.2)
    step = make_step(causal_lm_loss(adapter.apply), TX)

    def watched():
        return [adapter.model.module.parameters(), adapter.module.parameters()]

    ids = mx.array([[1, 2, 3, 4]])
    batch = Batch(ids, ids, mx.ones_like(ids))
    laws.step_is_pure(step, init_state(adapter.params, TX), [batch], watched=watched)
