"""A few batch lengths, chosen so that as little as possible is padding."""

from __future__ import annotations

import numpy as np

from mlxfn.errors import DataError

_STEP = 8  # bucket lengths are multiples of this, so that data sets share compiled shapes
_CANDIDATES = 512  # lengths looked at; more are rounded more coarsely
_WORTH = 1.005  # a further bucket has to save this much


def choose_buckets(
    lengths: np.ndarray, max_seq_length: int, count: int = 8, *, rows: np.ndarray | None = None
) -> np.ndarray:
    """Choose at most ``count`` lengths that pad the rows least; each costs one compiled trace.

    Exact for the histogram of lengths (dynamic programming); fewer buckets are taken where more
    would save less than half a percent.

    Args:
        lengths: Length of each row, int [n], in positions.
        max_seq_length: Longest bucket.
        count: Most buckets.
        rows: How many rows have each length, int [n]; None: one.

    Returns:
        Ascending lengths, int64; the last holds the longest row.

    Raises:
        DataError: A row is longer than ``max_seq_length``.

    Example:
        >>> choose_buckets(np.array([5, 7, 8, 60, 61, 200]), 2048, count=3).tolist()
        [8, 64, 200]
    """
    longest = int(np.max(lengths, initial=1))
    if longest > max_seq_length:
        raise DataError(
            "a row is longer than max_seq_length",
            got=f"{longest} positions",
            expected=f"at most {max_seq_length}",
        )
    step = _STEP
    while longest / step > _CANDIDATES:
        step *= 2
    rounded = np.minimum(-(-np.maximum(lengths, 1) // step) * step, max_seq_length)
    tops, inverse = np.unique(rounded, return_inverse=True)
    return (
        _cheapest(tops, np.bincount(inverse, rows), count)
        if len(tops)
        else np.array([min(step, max_seq_length)])
    )


def pack_buckets(
    sizes: np.ndarray, capacity: int, count: int = 8, *, packs: np.ndarray | None = None
) -> np.ndarray:
    """Choose at most ``count`` lengths of lines for batches of packs.

    Args:
        sizes: Positions that a line of each pack needs, int [n]; see ``Packs``.
        capacity: Positions of all lines of a pack.
        count: Most lengths.
        packs: How many packs have each size, int [n]; None: one.

    Returns:
        Ascending lengths, int64; a batch of one has ``capacity // length`` lines for each pack.

    Example:
        >>> pack_buckets(np.array([64, 128, 128, 257, 505]), 512).tolist()
        [64, 128, 512]
    """
    if sizes.min(initial=capacity) > capacity // 2:  # packs of one line: rows like any others
        return choose_buckets(sizes, capacity, count, rows=packs)
    # Lines that share a row with a longer pack need all of it. Of too many lengths the longest
    # are kept: what is laid out in shorter lines fits them too.
    return np.unique(np.where(sizes > capacity // 2, capacity, sizes))[-count:].astype(np.int64)


def _cheapest(tops: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Minimize the positions of all padded rows; cost[i, j]: tops[i..j-1] in one bucket."""
    size = len(tops)
    before = np.concatenate([[0], np.cumsum(rows)])
    cost = (before[None, 1:] - before[:-1, None]) * tops[None, :].astype(float)
    cost[np.tril_indices(size, -1)] = np.inf
    best = [cost[0]]  # best[k][j]: tops[0..j] in k + 1 buckets
    choice: list[np.ndarray] = [np.zeros(size, dtype=np.int64)]
    for _ in range(1, min(count, size)):
        through = np.concatenate([[np.inf], best[-1][:-1]])[:, None] + cost
        choice.append(through.argmin(axis=0))
        best.append(through.min(axis=0))
    totals = np.array([costs[-1] for costs in best])
    buckets = int((totals <= _WORTH * totals.min()).argmax())
    chosen, top = [], size - 1
    for k in range(buckets, -1, -1):
        chosen.append(tops[top])
        top = choice[k][top] - 1
    return np.array(chosen[::-1])


def bucket_for(length: int | np.ndarray, buckets: np.ndarray) -> np.ndarray:
    """Return the smallest bucket that holds each length.

    Args:
        length: One length or an array of them; none above the last bucket.
        buckets: Ascending lengths from ``choose_buckets``.

    Example:
        >>> bucket_for(np.array([1, 8, 9]), np.array([8, 64])).tolist()
        [8, 8, 64]
    """
    return buckets[np.searchsorted(buckets, length)]
