"""Cross-entropy against NumPy in float64, and the ways field trainers get it wrong."""

from importlib import import_module

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn.losses import chunked_cross_entropy, cross_entropy
from mlxfn.state import IGNORED


def reference(logits: np.ndarray, labels: np.ndarray, smoothing: float) -> tuple[float, int]:
    """Sum and count in float64, written from the definition."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    total, count = 0.0, 0
    for index in np.ndindex(labels.shape):
        if labels[index] != IGNORED:
            nll = -log_p[index][labels[index]]
            total += (1 - smoothing) * nll + smoothing * -log_p[index].mean()
            count += 1
    return total, count


@st.composite
def cases(draw):
    """Logits [B, T, V] with labels of which some are ignored."""
    b, t, v = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(2, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.normal(size=(b, t, v)) * draw(st.sampled_from([0.1, 1.0, 30.0]))
    labels = np.where(rng.random((b, t)) < 0.4, IGNORED, rng.integers(0, v, (b, t)))
    return logits.astype(np.float32), labels.astype(np.int32)


@given(cases(), st.sampled_from([0.0, 0.1, 0.5]))
def test_value_equals_the_definition_in_float64(case, smoothing):
    """Smoothing spreads over all V classes, as in PyTorch; the source document's V - 1 differs."""
    logits, labels = case
    loss = cross_entropy(mx.array(logits), mx.array(labels), label_smoothing=smoothing)
    total, count = reference(logits, labels, smoothing)
    assert loss.weight.item() == count
    assert loss.total.item() == pytest.approx(total, rel=2e-5, abs=1e-5)


@given(cases())
def test_nothing_labelled_is_zero_and_zero(case):
    """0 / 0 would be NaN, and one such batch would poison a whole validation."""
    logits, labels = case
    loss = cross_entropy(mx.array(logits), mx.full(labels.shape, IGNORED, mx.int32))
    assert (loss.total.item(), loss.weight.item()) == (0.0, 0.0)


def test_an_ignored_position_may_hold_anything():
    """inf * 0 is NaN: a mask by multiplication would leak it into loss and gradient."""
    logits = mx.array([[[1.0, 2.0], [float("inf"), float("nan")]]])
    labels = mx.array([[1, IGNORED]])
    value, grad = mx.value_and_grad(lambda x: cross_entropy(x, labels).total)(logits)
    clean = cross_entropy(logits[:, :1], labels[:, :1]).total
    assert value.item() == clean.item()
    assert mx.all(mx.isfinite(grad[:, 0])).item()


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e37])
def test_logits_of_any_size_have_the_gradient_of_the_definition(scale):
    """exp overflows from 89 on, and what is left of softmax - onehot is then inf / inf."""
    logits = scale * mx.array([[[1.0, 2.0, 3.0], [3.0, -3.0, 0.5], [-1.0, -2.0, -3.0]]])
    labels = mx.array([[0, 0, 2]])
    value, grad = mx.value_and_grad(lambda x: cross_entropy(x, labels).total)(logits)
    exact = np.array(logits).astype(np.float64)
    share = np.exp(exact - exact.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    total, _ = reference(np.array(logits), np.array(labels), 0.0)
    assert value.item() == pytest.approx(total, rel=1e-6)
    assert np.array(grad) == pytest.approx(share - np.eye(3)[np.array(labels)], abs=1e-6)


def test_a_class_that_is_ruled_out_takes_no_share_and_gets_no_gradient():
    """Models rule classes out with -inf; they must be as good as absent."""
    logits = mx.array([[[1.0, -float("inf"), 2.0, 0.5]]])
    labels = mx.array([[2]])
    value, grad = mx.value_and_grad(lambda x: cross_entropy(x, labels).total)(logits)
    kept = mx.array([0, 2, 3])
    without, rest = mx.value_and_grad(lambda x: cross_entropy(x, mx.array([[1]])).total)(
        logits[..., kept]
    )
    assert value.item() == pytest.approx(without.item(), rel=1e-7)
    assert grad[0, 0, 1].item() == 0.0
    assert mx.allclose(grad[..., kept], rest, rtol=1e-6, atol=0).item()


@pytest.mark.parametrize(("row", "label"), [([float("inf"), 1.0], 1), ([-float("inf"), 1.0], 0)])
def test_an_infinite_logit_gives_an_infinite_loss_and_no_nan(row, label):
    """The step leaves such an update out either way; a report should say which it was."""
    assert cross_entropy(mx.array([[row]]), mx.array([[label]])).total.item() == float("inf")


def test_a_gpus_kernel_gives_the_same_loss_and_gradient(monkeypatch):
    """The two ways to the log-sum-exp differ in their last bits alone."""
    logits = mx.random.normal((4, 50), key=mx.random.key(0)) * 30
    labels = mx.array([3, 0, IGNORED, 49])

    def both():
        return mx.value_and_grad(lambda x: cross_entropy(x, labels).total)(logits)

    ours = both()
    module = import_module("mlxfn.losses.cross_entropy")  # the package's name is the function
    monkeypatch.setattr(module, "device_kind", lambda: "cuda")
    for a, b in zip(ours, both(), strict=True):
        assert mx.allclose(a, b, rtol=1e-6, atol=1e-6)


def test_bf16_logits_are_reduced_in_fp32():
    """A log-sum-exp in bf16 is off in the third digit (mlx-lm computes it so)."""
    logits = mx.random.normal((4, 64, 512), key=mx.random.key(0)).astype(mx.bfloat16)
    labels = mx.random.randint(0, 512, (4, 64), key=mx.random.key(1))
    exact, _ = reference(np.array(logits.astype(mx.float32)), np.array(labels), 0.0)
    assert cross_entropy(logits, labels).total.item() == pytest.approx(exact, rel=1e-6)


@given(cases(), st.integers(1, 6), st.sampled_from([0.0, 0.1]))
def test_chunked_equals_full_in_value_and_gradient(case, chunk, smoothing):
    """The chunked loss takes its gradient in the forward pass; it must be the same one."""
    hidden, labels = case
    head = mx.random.normal((hidden.shape[-1], 11), key=mx.random.key(3))

    def full(h):
        return cross_entropy(h @ head, mx.array(labels), label_smoothing=smoothing).total * 3.0

    def chunked(h):
        return (
            chunked_cross_entropy(
                h,
                mx.array(labels),
                lambda rows: rows @ head,
                chunk_size=chunk,
                label_smoothing=smoothing,
            ).total
            * 3.0
        )

    labels = np.where(labels >= 11, 0, labels)
    one, one_grad = mx.value_and_grad(full)(mx.array(hidden))
    two, two_grad = mx.value_and_grad(chunked)(mx.array(hidden))
    assert one.item() == pytest.approx(two.item(), rel=1e-5, abs=1e-5)
    assert mx.allclose(one_grad, two_grad, rtol=1e-4, atol=1e-5).item()
