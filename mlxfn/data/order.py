"""The order of rows: a pure function of (seed, epoch)."""

from __future__ import annotations

import numpy as np

_STREAM = 0x0DA7A  # keeps these draws apart from others made with the same seed


def batch_count(rows: int, batch_size: int) -> int:
    """Return the number of batches in every epoch; the tail counts.

    Example:
        >>> batch_count(5, 2)
        3
    """
    return -(-rows // batch_size)


def epoch_batches(
    lengths: np.ndarray, batch_size: int, *, seed: int, epoch: int, shuffle: bool = True
) -> list[np.ndarray]:
    """Plan one epoch: which rows stand in which batch, in which order.

    Shuffled, rows of equal length are drawn together at random and the batches are shuffled, so
    pass lengths that are rounded up to buckets: rows then mix freely within a bucket, and a batch
    is padded no more than its bucket is.

    Args:
        lengths: Length of each row, int [n].
        batch_size: Rows in a batch; one batch of the epoch holds fewer where it does not divide n.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
        shuffle: A new order each epoch; False takes rows in file order.

    Returns:
        ceil(n / batch_size) arrays of row indices; every row stands in exactly one.

    Example:
        >>> plan = epoch_batches(np.array([8, 16, 8, 16]), 2, seed=0, epoch=0)
        >>> sorted(sorted(batch.tolist()) for batch in plan)
        [[0, 2], [1, 3]]
    """
    count = len(lengths)
    borders = range(batch_size, count, batch_size)
    if not shuffle:
        return np.split(np.arange(count), borders) if count else []
    random = np.random.default_rng([_STREAM, seed, epoch])
    order = random.permutation(count)
    order = order[np.argsort(np.asarray(lengths)[order], kind="stable")]
    batches = np.split(order, borders) if count else []
    return [batches[i] for i in random.permutation(len(batches))]
