"""Facts about dropout that draws from a key."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlxfn.models.dropout import KeyedDropout, current_scope, keyed, stream_of
from mlxfn.tree import same_bits

X = mx.random.normal((64, 64), key=mx.random.key(9))


def dropped(layer, seed):
    with keyed(mx.random.key(seed)):
        return layer(X)


def test_without_a_key_nothing_is_dropped():
    """Evaluation and generation run without a key and must see the whole network."""
    layer = KeyedDropout(0.5, 1)
    assert layer(X) is X
    with keyed(None):
        assert layer(X) is X


def test_the_mask_is_a_function_of_the_key_and_the_layer():
    """Resumed and recomputed steps have to drop the same elements again."""
    layer = KeyedDropout(0.5, 1)
    assert same_bits(dropped(layer, 0), dropped(KeyedDropout(0.5, 1), 0))
    assert not same_bits(dropped(layer, 0), dropped(layer, 1))
    assert not same_bits(dropped(layer, 0), dropped(KeyedDropout(0.5, 2), 0))


def test_the_global_random_state_is_neither_read_nor_written():
    """Whatever else draws in the process (sampling, another library) must not change training."""
    layer = KeyedDropout(0.5, 1)
    mx.random.seed(1)
    first = dropped(layer, 0)
    after = mx.random.uniform(shape=(3,))
    mx.random.seed(1)
    assert same_bits(mx.random.uniform(shape=(3,)), after)
    mx.random.seed(2)
    assert same_bits(dropped(layer, 0), first)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_kept_elements_are_scaled_so_that_the_mean_stays(p):
    """Without the factor 1 / (1 - p) the adapter would be weaker in training than in use."""
    out = dropped(KeyedDropout(p, 1), 0)
    kept = out != 0
    assert mx.allclose(mx.where(kept, X / (1 - p), 0), out)
    share = 1 - kept.astype(mx.float32).mean().item()
    assert abs(share - p) < 4 * (p * (1 - p) / X.size) ** 0.5


def test_the_dtype_stays():
    """A float32 factor would promote a bfloat16 forward pass."""
    with keyed(mx.random.key(0)):
        assert KeyedDropout(0.5, 1)(X.astype(mx.bfloat16)).dtype == mx.bfloat16


def test_each_compiled_call_draws_anew():
    """mlx's own dropout, compiled, repeats one mask for ever."""
    layer = KeyedDropout(0.5, 1)

    def forward(key):
        with keyed(key):
            return layer(X)

    compiled = mx.compile(forward)
    for seed in (0, 1):
        assert same_bits(compiled(mx.random.key(seed)), forward(mx.random.key(seed)))


def test_the_scope_ends_with_an_error():
    """A key left behind would make a later evaluation drop."""
    with pytest.raises(RuntimeError), keyed(mx.random.key(0)):
        raise RuntimeError
    assert current_scope() is None


def test_streams_of_different_paths_differ():
    """Two layers with one mask would drop together."""
    paths = [f"model.layers.{n}.self_attn.{p}_proj" for n in range(100) for p in "qkvo"]
    assert len({stream_of(path) for path in paths}) == len(paths)
