"""A shuffle that is computed, not stored: which item stands at a place, for any one place.

A Feistel network of eight rounds is a bijection of the numbers of ``2 b`` bits, whatever its
round function. Walking its cycle until a number falls below ``count`` makes it one of
``0 .. count - 1`` (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_ROUNDS = 8
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # of splitmix64
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


@lru_cache(maxsize=256)
def round_keys(*numbers: int) -> np.ndarray:
    """Return the keys of the rounds, uint64 [8], from the numbers that name a shuffle."""
    return np.random.SeedSequence(list(numbers)).generate_state(_ROUNDS, np.uint64)


def shuffled(places: np.ndarray, count: int, keys: np.ndarray) -> np.ndarray:
    """Return which item of ``count`` stands at each place of the shuffled order.

    Args:
        places: Places asked for, int [n], each in [0, count).
        count: Items that are shuffled.
        keys: From ``round_keys``: another key, another order.

    Returns:
        Items, int64 [n], in [0, count); no two places have the same one.

    Example:
        >>> shuffled(np.arange(10), 10, round_keys(0, 3)).tolist()
        [6, 7, 1, 9, 4, 8, 5, 2, 3, 0]
    """
    half = max(((count - 1).bit_length() + 1) // 2, 1)
    items = np.asarray(places).astype(np.uint64)
    items = _network(items, half, keys)
    outside = np.flatnonzero(items >= count)
    while len(outside):
        items[outside] = _network(items[outside], half, keys)
        outside = outside[items[outside] >= count]
    return items.astype(np.int64)


def _network(numbers: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    """Map numbers of ``2 * half`` bits one to one."""
    shift, low = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = numbers >> shift, numbers & low
    for key in keys:
        mixed = right + key  # wraps around, as it should
        mixed = (mixed ^ (mixed >> _SHIFTS[0])) * _MIX[0]
        mixed = (mixed ^ (mixed >> _SHIFTS[1])) * _MIX[1]
        left, right = right, left ^ ((mixed ^ (mixed >> _SHIFTS[2])) & low)
    return (left << shift) | right
