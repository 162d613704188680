"""Accumulation for steps of one's own: sums in fp32, one division, a key for each micro-batch."""

import mlx.core as mx
import pytest

from mlxfn.random import fold_in
from mlxfn.state import Batch, Weighted
from mlxfn.transforms import accumulate


def batch_of(*numbers):
    tokens = mx.array([numbers])
    return Batch(tokens, tokens, tokens)


def weighted(params, batch, _):
    return Weighted(params["w"] * mx.sum(batch.tokens), mx.array(float(batch.tokens.size)))


def test_sums_are_divided_once_by_all_tokens():
    """Also by a single one, for which a mean with a safety constant would be off the most."""
    grads, loss = accumulate(weighted, 3)({"w": mx.array(2.0)}, [batch_of(5)], None)
    assert (grads["w"].item(), loss.total.item(), loss.weight.item()) == (5.0, 10.0, 1.0)
    parts = [batch_of(5), batch_of(1, 3), batch_of(0, 0, 9)]
    grads, loss = accumulate(weighted, 3)({"w": mx.array(2.0)}, parts, None)
    assert grads["w"].item() == 3.0
    assert loss == Weighted(mx.array(36.0), mx.array(6.0))


def test_gradients_of_16_bit_parameters_are_summed_in_fp32():
    """In bf16 a sum of many micro-batches stops growing: 256 + 1 is 256."""
    params = {"w": mx.array(1.0, mx.bfloat16)}
    parts = [batch_of(256), *[batch_of(1)] * 8]
    grads, _ = accumulate(weighted, 9)(params, parts, None)
    assert grads["w"].dtype == mx.float32
    assert grads["w"].item() == pytest.approx(264 / 9)


def test_every_micro_batch_draws_from_a_key_of_its_own():
    """One mask for all of them would be a larger batch with less noise than was asked for."""
    seen = []

    def spy(params, batch, key):
        seen.append(None if key is None else key.tolist())
        return weighted(params, batch, key)

    key = mx.random.key(3)
    parts = [batch_of(1)] * 3
    accumulate(spy, 3)({"w": mx.array(1.0)}, parts, key)
    assert seen == [fold_in(key, i).tolist() for i in range(3)]
    accumulate(spy, 3)({"w": mx.array(1.0)}, parts[:1], None)
    assert seen[-1] is None


@pytest.mark.parametrize("count", [0, 3])
def test_more_micro_batches_than_planned_or_none_are_refused(count):
    """The schedule counts updates of at most k micro-batches."""
    with pytest.raises(ValueError, match=f"1 to 2 micro-batches, got {count}"):
        accumulate(weighted, 2)({"w": mx.array(1.0)}, [batch_of(1)] * count, None)
