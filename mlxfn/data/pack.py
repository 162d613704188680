"""Packing: several documents in one line, and several lines in one pack of fixed size."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

import attrs
import numpy as np

from mlxfn.errors import DataError

WINDOW = 8192
"""Rows that are packed together: what comes later never changes what was packed before."""

_SHORTEST = 64  # no line is shorter: attention is next to nothing there
_EVEN = 2048  # attention costs what the rest of a layer does: in a small model at 350 already


@attrs.frozen(eq=False)
class Packs:
    """Which rows stand in which pack: lines of one length, together ``capacity`` positions.

    The length is the capacity or a half of it, a quarter, and so on. ``sizes`` says which: up to
    half of the capacity it is that length. For a pack of one line it is the positions in use, but
    always more than half of the capacity, so that ``capacity // size`` is the lines of any pack.
    """

    rows: np.ndarray  # int [n], the rows of the packs one after the other, line by line
    offsets: np.ndarray  # int64 [packs + 1], pack i is offsets[i] to offsets[i + 1]
    sizes: np.ndarray  # int32 [packs], positions that a line needs
    capacity: int  # positions of all lines of a pack

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, pack: int) -> tuple[int, ...]:
        if not 0 <= pack < len(self):
            raise IndexError(pack)
        return tuple(self.rows[self.offsets[pack] : self.offsets[pack + 1]].tolist())

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return (self[pack] for pack in range(len(self)))


def pack(
    lengths: Iterable[int] | np.ndarray,
    max_len: int,
    *,
    window: int = WINDOW,
    lines: Sequence[int] | np.ndarray | None = None,
) -> Packs:
    """Pack rows first-fit by falling length, ``window`` consecutive rows at a time.

    A row goes into the first line that has room, and else into a new one of the shortest length
    that holds it. Lines of a length are joined to packs; those that are left over at the end of a
    window share longer lines. Deterministic, and the memory and time of a pack do not depend on
    how many rows there are. With lines of one length at most 11/9 of the fewest packs possible
    are used within a window (Johnson 1973).

    Args:
        lengths: Length of each row, in positions.
        max_len: Capacity of a pack, in positions.
        window: Rows looked at together.
        lines: Lengths of lines, ascending; the last is ``max_len`` and each twice the one before.
            None: what ``line_lengths`` finds for the first window.

    Returns:
        The row indices of each pack, line by line and ascending within a line. Packs are ordered
        by their lowest row within their window.

    Raises:
        DataError: A row is longer than the capacity.

    Example:
        >>> list(pack([6, 3, 5, 2], max_len=8))
        [(0, 3), (1, 2)]
        >>> list(pack([6, 3, 4, 2, 1], max_len=8, lines=[4, 8])), list(pack([4, 4], 8, lines=[4, 8]))
        ([(0, 3), (1, 4, 2)], [(0, 1)])
    """
    lengths = np.asarray(lengths, dtype=np.int32)
    if lengths.max(initial=0) > max_len:
        raise DataError(
            "a row is longer than a packed row can be",
            where=f"row {int(lengths.argmax())}",
            got=f"{int(lengths.max())} positions",
            expected=f"at most {max_len}",
        )
    if lines is None:
        lines = line_lengths(lengths[:window], max_len)
    rows = np.empty(len(lengths), np.uint32 if len(lengths) < 2**32 else np.int64)
    counts: list[np.ndarray] = [np.zeros(0, np.int64)]
    sizes: list[np.ndarray] = [np.zeros(0, np.int32)]
    for start in range(0, len(lengths), window):
        part = lengths[start : start + window]
        order, in_pack, size = _packed(part, np.asarray(lines))
        rows[start : start + len(part)] = start + order
        counts.append(in_pack)
        sizes.append(size)
    offsets = np.concatenate([[0], *counts]).cumsum()
    return Packs(rows, offsets, np.concatenate(sizes), max_len)


def line_lengths(lengths: np.ndarray, capacity: int, *, shortest: int = _SHORTEST) -> np.ndarray:
    """Return the lengths of lines with which rows cost least, int64, ascending.

    The capacity is one, and as many halves of it as pay: shorter lines have less attention, but
    are filled less well. A position costs what the layers cost, which is the same in any line, and
    what attention costs, which grows with its line.

    Args:
        lengths: Length of each row, int [n], in positions; none above the capacity.
        capacity: Positions of a pack.
        shortest: No line is shorter.

    Example:
        >>> line_lengths(np.array([60] * 40), 512).tolist(), line_lengths(np.array([512]), 512).tolist()
        ([64, 128, 256, 512], [512])
    """
    halves = [capacity]
    while halves[0] % 2 == 0 and halves[0] // 2 >= shortest:
        halves.insert(0, halves[0] // 2)
    choices = [np.array(halves[first:]) for first in range(len(halves) - 1, -1, -1)]
    if len(choices) == 1:
        return choices[0]
    window = max(len(lengths), 1)
    return min(
        choices, key=lambda lines: _cost(pack(lengths, capacity, window=window, lines=lines))
    )


def capacity_for(tokens: int, max_len: int) -> int:
    """Return the capacity for a data set, so that a small one fills no pack with padding.

    Args:
        tokens: Positions of all rows together.
        max_len: The capacity where there is more than that.

    Returns:
        At most ``max_len``; below that a number that can be halved down to about 64.

    Example:
        >>> capacity_for(10**6, 2048), capacity_for(1003, 2048), capacity_for(5, 2048)
        (2048, 1008, 8)
    """
    step = 8
    while tokens >= 2 * _SHORTEST * step:
        step *= 2
    return min(-(-tokens // step) * step, max_len)


def _cost(packs: Packs) -> float:
    """Return the cost of all positions, where one in a line of no length costs 1."""
    sizes = packs.sizes.astype(float)
    positions = packs.capacity // sizes * sizes
    return float((positions * (1 + sizes / _EVEN)).sum())


def _packed(lengths: np.ndarray, lines: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows in the order of their packs, how many each pack has, and the packs' sizes."""
    of_rows, of_lines = _first_fit(lengths, lines)
    packs, joint, of_lines = _grouped(of_lines, lines)
    _, first, packs = np.unique(packs, return_index=True, return_inverse=True)
    # Stable: rows of a line keep their order.
    rows = np.lexsort((joint[of_rows], packs[of_rows]))
    counts = np.bincount(packs[of_rows])
    used = np.add.reduceat(lengths[rows], np.cumsum(counts) - counts)
    sizes, capacity = lines[of_lines[first]], int(lines[-1])
    sizes = np.where(sizes < capacity, sizes, np.maximum(used, capacity // 2 + 1))
    return rows, counts, sizes.astype(np.int32)


def _first_fit(lengths: np.ndarray, lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the line of each row, int64 [n], and which of ``lines`` is the length of each line.

    Lines are numbered by their lowest row.
    """
    room = _Room(len(lengths), lines.tolist())
    taken = np.empty(len(lengths), np.int64)
    falling = np.argsort(-lengths, kind="stable")
    taken[falling] = [room.take(length) for length in lengths[falling].tolist()]
    _, lowest, taken = np.unique(taken, return_index=True, return_inverse=True)
    by_row = np.argsort(lowest)
    ranks = np.empty(len(lowest), np.int64)
    ranks[by_row] = np.arange(len(lowest))
    return ranks[taken], np.array(room.opened)[by_row]


def _grouped(held: np.ndarray, lines: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Join lines to packs.

    Args:
        held: Which of ``lines`` is the length of each line, int [n]; numbered by lowest row.
        lines: The lengths.

    Returns:
        For each line the first line of its pack, the first line of the one that it shares with
        others, and which of ``lines`` is the length of that, each int64 [n].
    """
    held = held.copy()
    packs, joint = np.empty(len(held), np.int64), np.arange(len(held))
    for level, length in enumerate(lines.tolist()):
        here = np.flatnonzero(held == level)
        firsts, places = np.unique(joint[here], return_inverse=True)
        in_pack = int(lines[-1]) // length
        full = len(firsts) // in_pack * in_pack
        done = places < full
        packs[here[done]] = firsts[places[done] // in_pack * in_pack]
        # What fills no pack goes on two and two, each pair in one line of twice the length.
        rest, pairs = here[~done], (places[~done] - full) // 2
        joint[rest] = firsts[full + 2 * pairs]
        held[rest] = level + 1
    return packs, joint, held


class _Room:
    """The free positions of every line, in a tree of maxima: first fit in log time."""

    def __init__(self, rows: int, lines: list[int]) -> None:
        self.lines = lines
        self.opened: list[int] = []  # which of ``lines`` is the length of each line
        self.leaves = 1 << max(rows - 1, 0).bit_length()
        self.most = [-1] * (2 * self.leaves)  # no line yet: not even room for nothing

    def take(self, length: int) -> int:
        """Take room from the first line that has it, or from a new one, and return which it is."""
        most, leaves, node = self.most, self.leaves, 1
        if most[1] < length:
            held = bisect_left(self.lines, length)
            node = leaves + len(self.opened)
            self.opened.append(held)
            left = self.lines[held] - length
        else:
            while node < leaves:
                node *= 2
                if most[node] < length:
                    node += 1
            left = most[node] - length
        index, most[node] = node - leaves, left
        while node > 1:
            other, node = most[node ^ 1], node // 2
            largest = max(left, other)
            if most[node] == largest:
                break
            most[node] = left = largest
        return index
