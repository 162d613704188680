"""The laws of transforms, for every row of the tables."""

from __future__ import annotations

import math

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn import transforms
from mlxfn.testing import laws
from mlxfn.testing.strategies import param_trees, trainings
from mlxfn.testing.strategies import transforms as any_transform
from mlxfn.transforms import skip_nonfinite
from tests.laws.families import CLIPS, LIFTED, TRANSFORMS, many

limits = st.floats(0.01, 100.0)
factors = st.floats(0.01, 100.0)


def test_every_transform_of_the_library_has_its_row():
    """Without a row a new transform would escape every law."""
    assert LIFTED.keys() == transforms.OPTIMIZERS.keys()
    made = {"accumulate", "apply_updates", "chain", "lift", "with_rate_factor"}
    rates = {"constant", *(f.__name__ for f in transforms.SCHEDULES.values())}
    public = {name for name in transforms.__all__ if name.islower()} - made - rates
    assert public <= TRANSFORMS.keys()


@many
@given(any_transform(), any_transform(), any_transform(), trainings(updates=2))
def test_chain_is_associative(a, b, c, training):
    """Whoever groups stages must not change what they do."""
    laws.chain_is_associative(a, b, c, *training)


@many
@given(any_transform(), trainings(updates=2))
def test_the_empty_chain_is_the_identity(tx, training):
    """Leaving a stage out must be the same as a stage that does nothing."""
    laws.identity_changes_nothing(tx, *training)


@pytest.mark.parametrize("name", TRANSFORMS)
@many
@given(training=trainings(updates=2))
def test_updates_are_pure(name, training):
    """mlx's optimizers write into their state; a transform that did would break every replay."""
    laws.update_is_pure(TRANSFORMS[name](), *training)


@pytest.mark.parametrize("name", TRANSFORMS)
@many
@given(training=trainings(updates=2))
def test_elementwise_transforms_may_be_flat(name, training):
    """On a GPU the step lays small arrays out as one vector: paths and shapes must not matter."""
    laws.elementwise_means_flat(TRANSFORMS[name](), *training)


@pytest.mark.parametrize("name", TRANSFORMS)
@many
@given(training=trainings(updates=2))
def test_updates_and_states_keep_their_structure(name, training):
    """Checkpoints are restored into the state that init gives."""
    laws.update_keeps_structure(TRANSFORMS[name](), *training)


@pytest.mark.parametrize("name", CLIPS)
@many
@given(training=trainings(updates=1), limit=limits)
def test_clipping_never_raises_the_norm(name, training, limit):
    """Rescaling every gradient to the limit is another optimizer."""
    laws.clipping_never_raises_the_norm(CLIPS[name](limit), limit, training.grads[0])


@pytest.mark.parametrize("name", CLIPS)
@many
@given(training=trainings(updates=1), limit=limits)
def test_clipping_is_idempotent(name, training, limit):
    """What is within the limit is left alone, also when clipping put it there."""
    laws.clipping_is_idempotent(CLIPS[name](limit), limit, training.grads[0])


@pytest.mark.parametrize("name", CLIPS)
@many
@given(training=trainings(updates=1), limit=limits)
def test_clipping_leaves_small_gradients_alone(name, training, limit):
    """A healthy run must not notice that clipping is on."""
    laws.clipping_leaves_small_gradients_alone(CLIPS[name](limit), limit, training.grads[0])


@pytest.mark.parametrize("name", CLIPS)
@many
@given(training=trainings(updates=1, zeros=False), limit=limits, factor=factors)
def test_clipping_commutes_with_scaling(name, training, limit, factor):
    """A loss in other units, with the limit in the same, trains the same."""
    laws.clipping_commutes_with_scaling(CLIPS[name], limit, training.grads[0], factor)


@pytest.mark.parametrize("name", LIFTED)
@many
@given(training=trainings(updates=3), rate=st.sampled_from([0.1, 1e-3]))
def test_a_lifted_optimizer_does_what_its_object_does(name, training, rate):
    """The object's state becomes a value; the arithmetic must stay its own."""
    row = LIFTED[name]
    laws.lifted_optimizer_equals_its_object(row.transform(rate), lambda: row.build(rate), *training)


@many
@given(any_transform(), trainings(updates=2), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_guarded_transform_survives_a_bad_value_in_any_leaf(tx, training, bad):
    """Through clipping, one NaN would become a NaN everywhere."""
    laws.nonfinite_gradients_change_nothing(skip_nonfinite(tx), *training, bad)


@many
@given(param_trees())
def test_trees_of_parameters_are_fp32_with_unique_names(params):
    """The strategy itself: masters are fp32, and names are what checkpoints go by."""
    from mlxfn.tree import flatten

    assert all(leaf.dtype == mx.float32 and leaf.size for leaf in flatten(params).values())
