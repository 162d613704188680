"""Small models to try a loss, a transform or a step on: plain functions of a dict of arrays."""

from __future__ import annotations

import mlx.core as mx

from mlxfn.random import fold_in
from mlxfn.state import ApplyFn, Batch
from mlxfn.tree import Params


def bigrams(params: Params, batch: Batch, key: mx.array | None) -> mx.array:
    """Return the row of a table for each token: logits [B, T, V] of that token alone.

    Args:
        params: ``{"table": fp32 [n, V]}``.
        batch: Tokens in [0, n).
        key: Not used: nothing is dropped out.

    Example:
        >>> ids = mx.array([[0, 1]])
        >>> bigrams(table(3), Batch(ids, ids, ids), None).shape
        (1, 2, 3)
    """
    del key
    return params["table"][batch.tokens]


def table(vocab: int, *, seed: int = 0, extreme: int = 0) -> Params:
    """Return the parameters of :func:`bigrams`.

    Args:
        vocab: Classes (V), and tokens with ordinary logits.
        seed: Where they are drawn from.
        extreme: Further tokens, from id ``vocab`` on, whose logits are huge: what stands at
            positions that must not count.

    Example:
        >>> table(3, extreme=1)["table"].shape
        (4, 3)
    """
    one, two = mx.random.split(mx.random.key(seed))
    rows = [mx.random.normal((vocab, vocab), key=one)]
    if extreme:
        rows.append(1e4 * mx.random.normal((extreme, vocab), key=two))
    return {"table": mx.concatenate(rows)}


def context(*, dropout: float = 0.0) -> ApplyFn:
    """Return a model that looks back: the mean of its document's embeddings so far, and a head.

    It is causal, keeps documents apart, and draws its dropout from the key, as a model must.

    Args:
        dropout: Probability that a hidden value is zeroed.

    Returns:
        ``(params, batch, key) -> logits [B, T, V]`` for parameters of :func:`context_params`.

    Example:
        >>> ids = mx.array([[0, 1]])
        >>> context()(context_params(5), Batch(ids, ids, mx.ones_like(ids)), None).shape
        (1, 2, 5)
    """

    def apply(params: Params, batch: Batch, key: mx.array | None) -> mx.array:
        length = batch.tokens.shape[1]
        here, there = mx.arange(length)[:, None], mx.arange(length)[None]
        same = batch.segments[:, :, None] == batch.segments[:, None, :]
        seen = ((here >= there) & same).astype(mx.float32)
        embedded = params["embed"][batch.tokens]
        hidden = mx.tanh((seen @ embedded) / mx.sum(seen, axis=-1, keepdims=True))
        if key is not None and dropout:
            kept = mx.random.bernoulli(1 - dropout, hidden.shape, key=fold_in(key, 3))
            hidden = mx.where(kept, hidden / (1 - dropout), 0.0)
        return hidden @ params["head"][0]["w"]

    return apply


def context_params(vocab: int, *, width: int = 6, seed: int = 0) -> Params:
    """Return the parameters of :func:`context`.

    Example:
        >>> sorted(context_params(5))
        ['embed', 'head']
    """
    one, two = mx.random.split(mx.random.key(seed))
    return {
        "embed": mx.random.normal((vocab, width), key=one),
        "head": [{"w": 0.3 * mx.random.normal((width, vocab), key=two)}],
    }
