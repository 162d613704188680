"""Facts about the places that parameters are put into and taken out of."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx import nn

from mlxfn.models.slots import swapped, trainable_slots, walk
from mlxfn.tree import flatten


class Nested(nn.Module):
    """Arrays in a list, a shared child, a constant and an integer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2, bias=False)
        self.again = self.first
        self.list = [mx.ones(1), nn.RMSNorm(2)]
        self.index = mx.array([1, 2])
        self._constant = mx.ones(3)


def test_trainable_places_are_what_mlx_calls_trainable(llama):
    """A place more would train a frozen weight, a place less would silently not train one."""
    module = llama.module
    assert trainable_slots(module) == {}
    module.model.norm.unfreeze()
    try:
        expected = flatten(module.trainable_parameters())
        assert trainable_slots(module).keys() == {k for k in expected if "norm.weight" in k}
        assert trainable_slots(module).keys() == {"model.norm.weight"}
    finally:
        module.freeze()


def test_shared_arrays_are_found_once_and_integers_and_constants_never():
    """A shared weight with two masters would drift apart from itself."""
    assert sorted(trainable_slots(Nested())) == ["first.weight", "list.0", "list.1.weight"]


def test_a_frozen_array_in_a_list_is_no_place():
    """mlx freezes it under the name list.0, which is easily overlooked."""
    module = Nested()
    module.freeze(recurse=False)
    assert sorted(trainable_slots(module)) == ["first.weight", "list.1.weight"]


def test_walk_goes_in_the_order_of_construction(llama):
    """Targets, slots and exports are listed in it, so it must not depend on hashes."""
    paths = [site.path for site in walk(llama.module)]
    assert paths.index("model.embed_tokens") < paths.index("model.layers.0")
    assert paths.index("model.layers.0") < paths.index("model.layers.2.mlp.up_proj")
    assert paths[-1] == "lm_head"


def test_swapped_arrays_are_put_back_when_the_body_raises():
    """A trace that raises would otherwise leave dead tracers in the model."""
    linear = nn.Linear(2, 2)
    before = linear.weight, linear.bias
    slots = trainable_slots(linear)

    def run():
        with swapped(slots, {"weight": mx.ones(1), "bias": mx.ones(1)}):
            assert linear.weight.shape == (1,)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run()
    assert linear.weight is before[0]
    assert linear.bias is before[1]


def test_a_wrong_name_changes_nothing():
    """Half a swap would be worse than none."""
    linear = nn.Linear(2, 2)
    before = linear.weight
    slots = trainable_slots(linear)
    for values in ({"weight": mx.ones(1)}, {"weight": mx.ones(1), "bias": mx.ones(1), "x": before}):
        with pytest.raises(ValueError, match=r"bias|x"), swapped(slots, values):
            pass
        assert linear.weight is before
