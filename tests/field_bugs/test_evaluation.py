"""Evaluation: what other trainers' validation losses depend on, and this one does not."""

import math

import mlx.core as mx
import numpy as np
import pytest

from mlxfn.evaluate import Evaluation, make_evaluate
from mlxfn.losses import causal_lm_loss
from mlxfn.random import fold_in
from mlxfn.state import IGNORED, Batch

V = 7
PARAMS = {"table": mx.random.normal((V, V), key=mx.random.key(0))}


def apply(params, batch, key):
    """Logits that fall apart when something is dropped out."""
    logits = params["table"][batch.tokens]
    if key is None:
        return logits
    return mx.where(mx.random.bernoulli(0.5, logits.shape, key=fold_in(key, 1)), logits, 9.0)


def rows(count=7, length=5):
    """Rows whose prompts, completions and paddings all have different lengths."""
    rng = np.random.default_rng(1)
    ids = rng.integers(0, V, (count, length + 1)).astype(np.int32)
    at = np.arange(length)
    ends, starts = rng.integers(2, length + 1, (count, 1)), rng.integers(0, 2, (count, 1))
    learned = (at >= starts) & (at < ends)
    return ids[:, :-1], np.where(learned, ids[:, 1:], IGNORED), (at < ends).astype(np.int32)


def in_batches(data, size):
    count = len(data[0])
    return [Batch(*(mx.array(x[i : i + size]) for x in data)) for i in range(0, count, size)]


evaluate = make_evaluate(causal_lm_loss(apply), compiled=False)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_the_loss_does_not_depend_on_the_batch_size(size):
    """A mean of the means of batches weights each row by the company it keeps."""
    whole = evaluate(PARAMS, in_batches(rows(), 7))
    assert evaluate(PARAMS, in_batches(rows(), size)).loss == pytest.approx(whole.loss, rel=1e-6)


def test_the_weight_is_label_tokens_and_not_the_tokens_that_attention_sees():
    """A prompt is attended to and not learned: its tokens would make every loss look better."""
    tokens, labels, segments = rows()
    found = evaluate(PARAMS, in_batches((tokens, labels, segments), 3))
    assert found.weight == (labels != IGNORED).sum() != segments.sum()


def test_a_batch_without_a_label_spoils_nothing():
    """0 / 0 in one batch makes a mean over batches NaN for the whole validation."""
    tokens, labels, segments = rows()
    labels[2:4] = IGNORED
    found = evaluate(PARAMS, in_batches((tokens, labels, segments), 2))
    keep = [0, 1, 4, 5, 6]
    rest = evaluate(PARAMS, in_batches((tokens[keep], labels[keep], segments[keep]), 5))
    assert found.loss == pytest.approx(rest.loss, rel=1e-6)


def test_nothing_is_dropped_out_and_nothing_is_drawn():
    """Evaluating is looking: twice the same value, and the global stream where it was."""
    plain = causal_lm_loss(apply)(PARAMS, in_batches(rows(), 7)[0], None)
    mx.random.seed(3)
    expected = mx.random.uniform(shape=(3,))
    mx.random.seed(3)
    found = [evaluate(PARAMS, in_batches(rows(), 7)) for _ in range(2)]
    assert mx.array_equal(mx.random.uniform(shape=(3,)), expected)
    assert found[0] == found[1] == Evaluation(plain.total.item(), plain.weight.item())


def test_the_perplexity_never_overflows():
    """exp(1000) raises in Python and is inf elsewhere; a run must survive a bad first loss."""
    assert Evaluation(1000.0, 1.0).perplexity == pytest.approx(1e30)
    assert Evaluation(3.0, 2.0).perplexity == pytest.approx(math.exp(1.5))
    assert math.isnan(Evaluation(0.0, 0.0).loss)
