"""Facts about an update whose small parameters are one vector."""

from __future__ import annotations

from importlib import import_module

import mlx.core as mx
import pytest

from mlxfn import tree
from mlxfn.losses import causal_lm_loss
from mlxfn.step import init_state, make_step
from mlxfn.testing.law import close
from mlxfn.transforms import adafactor, adamw, adjustable_rate, chain, clip_by_global_norm, muon
from mlxfn.transforms.flat import Layout
from mlxfn.tree import same_bits
from tests.test_step import plain, ragged_batch, toy_params

TX = chain(clip_by_global_norm(0.5), adamw(0.05), adjustable_rate())
LOSS = causal_lm_loss(plain)


def updated(step, batches):
    state, metrics = init_state(toy_params(), TX), None
    for batch in batches:
        state, metrics = step(state, batch)
    return state, metrics


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_flat_update_is_the_update(accumulate, compiled):
    """The state has the same structure, so a checkpoint does not show how it was made."""
    batches = [ragged_batch(seed=seed) for seed in range(3)]
    options = {"accumulate": accumulate, "compiled": compiled}
    ours, metrics = updated(make_step(LOSS, TX, flat=True, **options), batches)
    theirs, expected = updated(make_step(LOSS, TX, flat=False, **options), batches)
    assert tree.flatten(ours.opt).keys() == tree.flatten(theirs.opt).keys()
    close("flat", [ours.params, ours.opt], [theirs.params, theirs.opt], 1e-6)
    assert metrics.grad_norm.item() == pytest.approx(expected.grad_norm.item(), rel=1e-6)


def test_a_flat_update_that_is_not_finite_changes_nothing():
    """The guard selects the vector before or the vector after."""
    step = make_step(
        lambda p, b, k: plain_times(p, b, k, float("nan")), TX, flat=True, compiled=False
    )
    before = init_state(toy_params(), TX)
    after, metrics = step(before, ragged_batch())
    assert not metrics.finite.item()
    assert same_bits([after.params, after.opt], [before.params, before.opt])


def plain_times(params, batch, key, factor):
    loss = LOSS(params, batch, key)
    return loss._replace(total=loss.total * factor)


@pytest.mark.parametrize(
    "tx", [muon(0.1), adafactor(0.1), chain(clip_by_global_norm(1.0), muon(0.1))]
)
def test_a_transform_that_sees_shapes_is_not_laid_flat(tx):
    """Muon's update of a matrix is none of its values' alone."""
    with pytest.raises(ValueError, match="elementwise"):
        make_step(LOSS, tx, flat=True)


def test_large_arrays_stay_as_they_are():
    """To copy them costs more than the kernels that it saves."""
    params = {"small": mx.ones(3), "more": mx.ones((2, 2)), "large": mx.ones(100)}
    layout = Layout.of(params, largest=10)
    packed = layout.pack(params)
    assert {name: leaf.size for name, leaf in packed.items()} == {"_vector": 7, "large": 100}
    assert same_bits(layout.unpack(packed, like=params), params)


@pytest.mark.parametrize(
    ("device", "tx", "count"),
    [("cpu", TX, 0), ("metal", TX, 1), ("cuda", TX, 1), ("cuda", muon(0.1), 0)],
)
def test_a_gpu_takes_elementwise_updates_flat_and_a_cpu_none(monkeypatch, device, tx, count):
    """A kernel starts at once on a CPU; there the copies are all that is left."""
    module, calls = import_module("mlxfn.step"), []
    monkeypatch.setattr(module, "device_kind", lambda: device)
    flat = module.apply_flat
    monkeypatch.setattr(module, "apply_flat", lambda *args: calls.append(1) or flat(*args))
    make_step(LOSS, tx, compiled=False)(init_state(toy_params(), tx), ragged_batch())
    assert len(calls) == count
