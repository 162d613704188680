"""Packing: several documents in one row, so that little of it is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlxfn.errors import DataError


def pack(lengths: Sequence[int] | np.ndarray, max_len: int) -> list[tuple[int, ...]]:
    """Pack rows first-fit by falling length: each goes to the first pack with room for it.

    Deterministic, and within 11/9 of the fewest packs possible (Johnson 1973).

    Args:
        lengths: Length of each row, in positions.
        max_len: Capacity of a pack, in positions.

    Returns:
        The row indices of each pack, in the order in which they stand in it. Packs are ordered
        by their lowest row.

    Raises:
        DataError: A row is longer than the capacity.

    Example:
        >>> pack([6, 3, 5, 2], max_len=8)
        [(0, 3), (1, 2)]
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if lengths.max(initial=0) > max_len:
        raise DataError(
            "a row is longer than a packed row can be",
            where=f"row {int(lengths.argmax())}",
            got=f"{int(lengths.max())} positions",
            expected=f"at most {max_len}",
        )
    packs: list[list[int]] = []
    room = _Room(len(lengths), max_len)
    for row in np.argsort(-lengths, kind="stable").tolist():
        index = room.take(int(lengths[row]))
        if index == len(packs):
            packs.append([])
        packs[index].append(row)
    return sorted((tuple(sorted(rows)) for rows in packs), key=lambda rows: rows[0])


class _Room:
    """The free positions of every pack, in a tree of maxima: first fit in log time."""

    def __init__(self, packs: int, capacity: int) -> None:
        self.leaves = 1 << max(packs - 1, 0).bit_length()
        self.most = [capacity] * (2 * self.leaves)

    def take(self, length: int) -> int:
        """Take room from the first pack that has it, and return which one it is."""
        most, node = self.most, 1
        while node < self.leaves:
            node = 2 * node if most[2 * node] >= length else 2 * node + 1
        most[node] -= length
        index = node - self.leaves
        while node > 1:
            node //= 2
            most[node] = max(most[2 * node], most[2 * node + 1])
        return index
