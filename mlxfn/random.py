"""Randomness as a function of keys: no global state is read or written."""

from __future__ import annotations

import mlx.core as mx


def key(seed: int) -> mx.array:
    """Return the PRNG key of a seed, uint32 [2].

    Raises:
        ValueError: The seed is negative or does not fit 64 bits.

    Example:
        >>> key(7).shape
        (2,)
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"a seed is between 0 and 2**64 - 1, got {seed}")
    return mx.random.key(seed)


def fold_in(key: mx.array, number: mx.array | int) -> mx.array:
    """Return a new key made of a key and a number, so that streams need no bookkeeping.

    The number is mixed into one word of the key, which is a bijection, and the
    result is hashed by Threefry (Salmon et al., 2011), the generator behind
    ``mx.random``: two numbers share a key only by a 2**-64 accident.

    Args:
        key: uint32 [2].
        number: int32 or uint32 [], or a Python int.

    Returns:
        uint32 [2].

    Example:
        >>> bool(mx.array_equal(fold_in(key(0), 1), fold_in(key(0), 2)))
        False
    """
    word = mx.array(number).astype(mx.uint32)
    mixed = mx.stack([key[0], mx.bitwise_xor(key[1], word)])
    return mx.random.split(mixed, 2)[1]
