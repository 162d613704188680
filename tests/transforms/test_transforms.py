"""Transforms: the laws of composition, clipping and lifting."""

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn import tree
from mlxfn.transforms import (
    OPTIMIZERS,
    adamw,
    apply_updates,
    chain,
    clip_by_global_norm,
    identity,
    lift,
    partition,
    scale_by,
    sgd,
    skip_nonfinite,
    warmup_cosine,
)
from mlxfn.transforms.optimizers import build_optimizer


def params_like(seed: int, scale: float = 1.0):
    """A small nested tree with matrices, a vector and a list."""
    rng = np.random.default_rng(seed)

    def leaf(*shape):
        return mx.array((rng.normal(size=shape) * scale).astype(np.float32))

    return {"a": {"w": leaf(3, 2), "bias": leaf(2)}, "layers": [{"w": leaf(2, 2)}]}


def run(tx, seed, updates=5):
    """Parameters after some updates with fixed gradients."""
    params = params_like(seed)
    state = tx.init(params)
    for i in range(updates):
        changes, state = tx.update(params_like(100 + i), state, params)
        params = apply_updates(params, changes)
    return params, state


seeds = st.integers(0, 2**31)


@given(seeds)
def test_chain_is_associative_and_the_empty_chain_is_its_identity(seed):
    """Whoever groups stages must not change what they do."""
    a, b, c = clip_by_global_norm(0.5), scale_by(0.3), sgd(0.1, momentum=0.9)
    flat, left, right = chain(a, b, c), chain(chain(a, b), c), chain(a, chain(b, c))
    padded = chain(identity(), a, b, identity(), c)
    results = [run(tx, seed)[0] for tx in (flat, left, right, padded)]
    assert all(tree.same_bits(results[0], other) for other in results[1:])


@given(seeds, st.floats(0.01, 100.0), st.floats(1e-3, 1e3))
def test_clipping_never_raises_the_norm_and_leaves_small_gradients_alone(seed, limit, scale):
    """Rescaling every gradient to the limit is another optimizer."""
    grads = params_like(seed, scale)
    before = tree.global_norm(grads).item()
    clipped, _ = clip_by_global_norm(limit).update(grads, {}, grads)
    after = tree.global_norm(clipped).item()
    assert after <= min(before, limit) * (1 + 1e-5)
    if before < limit * 0.999:
        assert tree.same_bits(clipped, grads)


def test_clipping_is_pytorchs():
    """``max_norm / (norm + 1e-6)``: a run that moves here keeps its settings."""
    for norm, limit, expected in ((5.0, 1.0, 1.0), (1e-6, 1e-6, 5e-7), (0.0, 1.0, 0.0)):
        grads = {"w": mx.array([0.6, 0.8]) * norm}
        clipped, _ = clip_by_global_norm(limit).update(grads, {}, grads)
        assert tree.global_norm(clipped).item() == pytest.approx(expected, rel=1e-5)


def test_a_limit_of_zero_turns_clipping_off():
    grads = params_like(0, 1e3)
    assert tree.same_bits(clip_by_global_norm(0.0).update(grads, {}, grads)[0], grads)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_value_changes_neither_parameters_nor_moments(bad):
    """Through clipping, one NaN would become a NaN in every leaf."""
    tx = skip_nonfinite(chain(clip_by_global_norm(1.0), adamw(0.1)))
    params = params_like(1)
    state = tx.init(params)
    grads = params_like(2)
    grads["a"]["bias"] = mx.array([bad, 0.0])
    updates, after = tx.update(grads, state, params)
    assert tree.same_bits(updates, tree.zeros_like(params))
    assert tree.same_bits(after, state)


LIFTED = {
    "adamw": lambda: optim.AdamW(0.1, bias_correction=True),
    "sgd": lambda: optim.SGD(0.1, momentum=0.9),
    "lion": lambda: optim.Lion(0.1),
    "adafactor": lambda: optim.Adafactor(0.1, relative_step=False, scale_parameter=False),
    "muon": lambda: optim.Muon(0.1),
}


@pytest.mark.parametrize("name", LIFTED)
def test_a_lifted_optimizer_does_what_the_object_does(name):
    """The object's state becomes a value; the arithmetic must stay its own."""
    tx, optimizer = lift(LIFTED[name], 0.1), LIFTED[name]()
    params = expected = params_like(0)
    state = tx.init(params)
    for i in range(8):
        grads = params_like(50 + i)
        updates, state = tx.update(grads, state, params)
        params = apply_updates(params, updates)
        expected = optimizer.apply_gradients(grads, expected)
    lifted = tree.flatten(params)
    for path, leaf in tree.leaves(expected):
        assert mx.allclose(leaf, lifted[path], rtol=1e-5, atol=1e-6).item()


# Every option at a value that is not its default, ours and mlx's own.
OPTIONS = {
    "adamw": (
        {"weight_decay": 0.3, "betas": (0.8, 0.9), "eps": 1e-2},
        lambda **o: optim.AdamW(0.1, bias_correction=True, **o),
    ),
    "adam": (
        {"betas": (0.8, 0.9), "eps": 1e-2},
        lambda **o: optim.Adam(0.1, bias_correction=True, **o),
    ),
    "sgd": ({"momentum": 0.8, "weight_decay": 0.3}, lambda **o: optim.SGD(0.1, **o)),
    "lion": ({"betas": (0.8, 0.9), "weight_decay": 0.3}, lambda **o: optim.Lion(0.1, **o)),
    "adafactor": (
        {"weight_decay": 0.3},
        lambda **o: optim.Adafactor(0.1, relative_step=False, scale_parameter=False, **o),
    ),
    "muon": ({"momentum": 0.8, "weight_decay": 0.3}, lambda **o: optim.Muon(0.1, **o)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_option_of_an_optimizer_reaches_it(name):
    """One that is accepted and left out trains with the default, and nobody sees it."""
    options, make = OPTIONS[name]
    assert options.keys() == OPTIMIZERS[name].__kwdefaults__.keys() - {"decay_mask"}
    expected, optimizer = params_like(0), make(**options)
    for i in range(5):
        expected = optimizer.apply_gradients(params_like(100 + i), expected)
    found = tree.flatten(run(OPTIMIZERS[name](0.1, **options), 0)[0])
    for path, leaf in tree.leaves(expected):
        assert mx.allclose(leaf, found[path], rtol=1e-5, atol=1e-6).item(), path


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_changes_nothing_it_was_given(name):
    """mlx's apply_gradients writes into the state dict; a transform must not."""
    tx = build_optimizer(name, warmup_cosine(0.1, warmup=2, total=9), weight_decay=0.1)
    params, grads = params_like(0), params_like(1)
    state = tx.init(params)
    copies = [tree.tree_map(mx.array, x) for x in (params, grads, state)]
    once = tx.update(grads, state, params)
    twice = tx.update(grads, state, params)
    assert all(tree.same_bits(a, b) for a, b in zip(copies, (params, grads, state), strict=True))
    assert tree.same_bits(list(once), list(twice))


def test_adamw_corrects_its_bias():
    """Without the correction the first update is 3.16 times the learning rate."""
    tx = adamw(0.1, weight_decay=0.0)
    updates, _ = tx.update(
        {"w": mx.array([7.0])}, tx.init({"w": mx.array([1.0])}), {"w": mx.ones(1)}
    )
    assert updates["w"].item() == pytest.approx(-0.1, rel=1e-4)


def test_the_decay_mask_spares_what_it_says():
    """Decaying norms and biases of a full model pulls them to zero."""
    tx = adamw(0.1, weight_decay=0.5, decay_mask=lambda path: not path.endswith("bias"))
    params = params_like(0)
    updates, _ = tx.update(tree.zeros_like(params), tx.init(params), params)
    assert mx.all(updates["a"]["bias"] == 0).item()
    assert mx.allclose(updates["a"]["w"], -0.05 * params["a"]["w"], rtol=1e-3).item()


def test_parameter_groups_have_their_own_rate():
    """LoRA+ trains lora_b faster than lora_a."""
    tx = chain(
        sgd(0.1),
        partition(
            lambda path: "fast" if path.endswith("bias") else "slow",
            {"fast": scale_by(16.0), "slow": identity()},
        ),
    )
    params = params_like(0)
    ones = tree.tree_map(mx.ones_like, params)
    updates, _ = tx.update(ones, tx.init(params), params)
    assert updates["a"]["bias"][0].item() == pytest.approx(-1.6)
    assert updates["a"]["w"][0, 0].item() == pytest.approx(-0.1)
