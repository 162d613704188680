"""Trees: names, structure and bits survive every way through."""

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn import tree
from mlxfn.state import Batch, TrainState

names = st.text("abc", min_size=1, max_size=3)
leaves = st.integers(0, 3).map(lambda n: mx.ones((n,)) * n)
trees = st.recursive(
    leaves,
    lambda children: (
        st.dictionaries(names, children, max_size=3)
        | st.lists(children, max_size=3)
        | st.lists(children, max_size=3).map(tuple)
    ),
    max_leaves=6,
)


@given(trees)
def test_restoring_what_was_flattened_gives_the_same_structure_and_bits(value):
    """mlx's own tree_unflatten loses empty containers and turns tuples into lists."""
    back = tree.restore(value, tree.flatten(value))
    assert str(back) == str(value)
    assert tree.same_bits(back, value)


def test_named_tuples_keep_their_type_and_names():
    batch = Batch(*(mx.zeros((1, 2), mx.int32) for _ in range(3)))
    assert list(tree.flatten(batch)) == ["tokens", "labels", "segments"]
    assert isinstance(tree.restore(batch, tree.flatten(batch)), Batch)


@pytest.mark.parametrize(
    ("flat", "message"),
    [
        ({}, "missing: a.b"),
        ({"a.b": mx.zeros(2), "c": mx.zeros(1)}, "not expected: c"),
        ({"a.b": mx.zeros(3)}, r"a.b is mlx.core.float32 \[3\]"),
        ({"a.b": mx.zeros(2, mx.int32)}, "a.b is mlx.core.int32"),
    ],
)
def test_anything_but_the_template_is_refused(flat, message):
    """model.update accepts wrong shapes and dtypes without a word."""
    with pytest.raises(ValueError, match=message):
        tree.restore({"a": {"b": mx.zeros(2)}}, flat)


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"a\.b"):
        tree.flatten({"a.b": mx.zeros(1), "a": {"b": mx.zeros(1)}})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_element_is_found(bad):
    value = {"a": mx.ones(3), "b": [mx.array([1.0, bad])]}
    assert not tree.all_finite(value).item()
    assert tree.all_finite({"a": mx.ones(3)}).item()


def test_the_norm_is_taken_in_fp32():
    """Squares of fp16 gradients overflow at 256."""
    assert tree.global_norm({"a": mx.full((4,), 1000.0, mx.float16)}).item() == 2000.0


def test_lowering_and_lifting_a_state_is_the_identity():
    state = TrainState(
        params={"w": mx.ones(2)},
        opt={},
        key=mx.random.key(0),
        step=mx.array(1),
        skipped=mx.array(0),
    )
    lifted = tree.lift(TrainState, tree.lower(state))
    assert tree.same_bits(tree.lower(lifted), tree.lower(state))
