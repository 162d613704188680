"""Packing: several documents in one row, so that little of it is padding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs
import numpy as np

from mlxfn.errors import DataError

WINDOW = 8192
"""Rows that are packed together: what comes later never changes what was packed before."""


@attrs.frozen(eq=False)
class Packs:
    """Which rows stand in which pack."""

    rows: np.ndarray  # int [n], the rows of the packs one after the other
    offsets: np.ndarray  # int64 [packs + 1], pack i is offsets[i] to offsets[i + 1]
    sizes: np.ndarray  # int32 [packs], positions in use

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, pack: int) -> tuple[int, ...]:
        if not 0 <= pack < len(self):
            raise IndexError(pack)
        return tuple(self.rows[self.offsets[pack] : self.offsets[pack + 1]].tolist())

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return (self[pack] for pack in range(len(self)))


def pack(lengths: Iterable[int] | np.ndarray, max_len: int, *, window: int = WINDOW) -> Packs:
    """Pack rows first-fit by falling length, ``window`` consecutive rows at a time.

    Deterministic. Within a window at most 11/9 of the fewest packs possible are used (Johnson
    1973), and the memory and time of a pack do not depend on how many rows there are.

    Args:
        lengths: Length of each row, in positions.
        max_len: Capacity of a pack, in positions.
        window: Rows looked at together.

    Returns:
        The row indices of each pack, ascending. Packs are ordered by their lowest row within
        their window.

    Raises:
        DataError: A row is longer than the capacity.

    Example:
        >>> list(pack([6, 3, 5, 2], max_len=8))
        [(0, 3), (1, 2)]
    """
    lengths = np.asarray(lengths, dtype=np.int32)
    if lengths.max(initial=0) > max_len:
        raise DataError(
            "a row is longer than a packed row can be",
            where=f"row {int(lengths.argmax())}",
            got=f"{int(lengths.max())} positions",
            expected=f"at most {max_len}",
        )
    rows = np.empty(len(lengths), np.uint32 if len(lengths) < 2**32 else np.int64)
    counts: list[np.ndarray] = [np.zeros(0, np.int64)]
    for start in range(0, len(lengths), window):
        part = lengths[start : start + window]
        packs = _first_fit(part, max_len)
        # Stable by (pack, row): rows keep their order within a pack.
        rows[start : start + len(part)] = start + np.argsort(packs, kind="stable")
        counts.append(np.bincount(packs))
    offsets = np.concatenate([[0], *counts]).cumsum()
    sizes = np.add.reduceat(lengths[rows], offsets[:-1]) if len(lengths) else lengths
    return Packs(rows, offsets, sizes.astype(np.int32))


def _first_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Return the pack of each row, int64 [n]; packs are numbered by their lowest row."""
    room = _Room(len(lengths), capacity)
    packs = np.empty(len(lengths), np.int64)
    falling = np.argsort(-lengths, kind="stable")
    packs[falling] = [room.take(length) for length in lengths[falling].tolist()]
    _, lowest, packs = np.unique(packs, return_index=True, return_inverse=True)
    ranks = np.empty(len(lowest), np.int64)
    ranks[np.argsort(lowest)] = np.arange(len(lowest))
    return ranks[packs]


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
