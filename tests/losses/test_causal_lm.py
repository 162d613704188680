"""The losses that a step takes: what they pass on, and what the chunked one never holds."""

import mlx.core as mx
import pytest

from mlxfn.losses import causal_lm_loss, chunked_causal_lm_loss, chunked_cross_entropy
from mlxfn.losses import cross_entropy as entropy
from mlxfn.state import IGNORED, Batch

V, D = 9, 4
PARAMS = {"embed": mx.random.normal((V, D), key=mx.random.key(0))}
HEAD = mx.random.normal((D, V), key=mx.random.key(1))
IDS = mx.random.randint(0, V, (3, 7), key=mx.random.key(2))
BATCH = Batch(IDS[:, :-1], mx.where(IDS[:, 1:] > 6, IGNORED, IDS[:, 1:]), mx.ones((3, 6), mx.int32))


def hidden(params, batch, key):
    found = mx.tanh(params["embed"][batch.tokens])
    return found if key is None else found + mx.random.normal(found.shape, key=key)


def logits(params, batch, key):
    return hidden(params, batch, key) @ HEAD


def losses(**options):
    head = lambda _, rows: rows @ HEAD
    return [
        causal_lm_loss(logits, **options),
        chunked_causal_lm_loss(hidden, head, chunk_size=5, **options),
    ]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_both_losses_are_the_cross_entropy_of_the_models_logits(smoothing):
    """The labels and the smoothing of the batch, not something near them."""
    exact = entropy(logits(PARAMS, BATCH, None), BATCH.labels, label_smoothing=smoothing)
    for loss_fn in losses(label_smoothing=smoothing):
        found = loss_fn(PARAMS, BATCH, None)
        assert found.total.item() == pytest.approx(exact.total.item(), rel=1e-6)
        assert found.weight.item() == exact.weight.item() < BATCH.labels.size


def test_both_losses_hand_the_key_to_the_model():
    """A key that is dropped on the way is training without dropout, unnoticed."""
    key = mx.random.key(5)
    exact = entropy(logits(PARAMS, BATCH, key), BATCH.labels).total.item()
    for loss_fn in losses():
        assert loss_fn(PARAMS, BATCH, key).total.item() == pytest.approx(exact, rel=1e-6)
        assert loss_fn(PARAMS, BATCH, None).total.item() != pytest.approx(exact, rel=1e-3)


def test_a_few_chunks_logits_are_alive_and_never_all():
    """What it is for: the full logits of a long row are larger than all the rest of a step."""
    rows, vocab, chunk = 4096, 2048, 64
    states = mx.random.normal((1, rows, D), key=mx.random.key(0))
    head = mx.random.normal((D, vocab), key=mx.random.key(1))
    labels = mx.zeros((1, rows), mx.int32)

    def loss(h):
        return chunked_cross_entropy(h, labels, lambda part: part @ head, chunk_size=chunk).total

    mx.eval(states, head, labels)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(mx.value_and_grad(loss)(states))
    assert mx.get_peak_memory() - before < rows * vocab * 4 / 2
