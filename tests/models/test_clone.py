"""Facts about the structural copy of a module tree."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from mlxfn.models.clone import clone_module
from mlxfn.tree import flatten, same_bits
from tests.support.models import random_batch


class Tower(nn.Module):
    """One block used twice, a method kept as an attribute, and containers of every kind."""

    def __init__(self):
        super().__init__()
        self.block = nn.Linear(4, 4)
        self.stack = [self.block, nn.Linear(4, 4), {"inner": nn.RMSNorm(4)}]
        self.pair = (mx.ones(2), 3)
        self.act = self.double

    def double(self, x):
        return 2 * self.block(x)

    def __call__(self, x):
        return self.act(x)


def test_a_clone_shares_every_array(llama):
    """A copy of a 7B model must cost nothing."""
    theirs, ours = (
        flatten(llama.module.parameters()),
        flatten(clone_module(llama.module).parameters()),
    )
    assert theirs.keys() == ours.keys()
    assert all(theirs[name] is ours[name] for name in theirs)


def test_a_clone_computes_the_same_bits(model_of):
    """Fields that are not arrays (scales, rotary tables, arguments) have to come along."""
    tokens = random_batch().tokens
    for kind in ("llama", "gemma2", "mixtral", "mamba"):
        module = model_of(kind).module
        assert same_bits(clone_module(module)(tokens), module(tokens)), kind


def test_replacing_in_a_clone_leaves_the_original(llama):
    """The user's model is theirs: it may be used, or adapted again, beside ours."""
    before = repr(llama.module), llama.module(random_batch().tokens)
    clone = clone_module(llama.module)
    clone.model.layers[0].self_attn.q_proj = nn.Linear(32, 32)
    clone.model.layers.pop()
    clone.model.norm.weight = mx.zeros(32)
    clone.unfreeze()
    assert repr(llama.module) == before[0]
    assert same_bits(llama.module(random_batch().tokens), before[1])
    assert llama.module.trainable_parameters()["model"]["norm"] == {}


def test_a_shared_module_stays_shared():
    """Otherwise an adapted block would be adapted in one of its places only."""
    clone = clone_module(Tower())
    assert clone.block is clone.stack[0]
    assert clone.block is not clone.stack[1]


def test_a_kept_method_calls_the_clone():
    """A bound method would go on reading the original's weights, unnoticed."""
    tower = Tower()
    clone = clone_module(tower)
    clone.block = nn.Linear(4, 4)
    x = mx.ones((1, 4))
    assert same_bits(clone(x), 2 * clone.block(x))
    assert not same_bits(clone(x), tower(x))


def test_cloning_draws_nothing():
    """Building layers anew would draw weights from the global random state, and take time."""
    tower = Tower()
    mx.random.seed(3)
    expected = mx.random.uniform(shape=(4,))
    mx.random.seed(3)
    clone_module(tower)
    assert same_bits(mx.random.uniform(shape=(4,)), expected)
