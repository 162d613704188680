"""Rows that are there more than once, found with twelve bytes a row."""

from __future__ import annotations

import hashlib
from array import array

import numpy as np

from mlxfn.data.problems import PLACES


class Copies:
    """The rows of a split by a hash of their content, to find equal ones.

    64 bits of a hash: among ten million rows two that differ are taken for equal with a chance of
    three in a million.

    Example:
        >>> rows = Copies()
        >>> for line, content in enumerate((b"a", b"b", b"a"), start=1):
        ...     rows.add(content, "x.jsonl", line)
        >>> rows.close()
        >>> rows.repeated()
        (1, ['x.jsonl:3'])
    """

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._lines = array("I")
        self._files: list[tuple[str, int]] = []  # a file, and the first row that is from it
        self._sorted = np.zeros(0, np.uint64)

    def add(self, content: bytes, path: str, line: int) -> None:
        """Note a row."""
        if not self._files or self._files[-1][0] != path:
            self._files.append((path, len(self._lines)))
        digest = hashlib.blake2b(content, digest_size=8).digest()
        self._hashes.append(int.from_bytes(digest, "little"))
        self._lines.append(line)

    def close(self) -> None:
        """Sort what was noted; to be called once, after the last row."""
        self._sorted = (
            np.sort(np.frombuffer(self._hashes, np.uint64)) if self._hashes else self._sorted
        )

    def repeated(self) -> tuple[int, list[str]]:
        """Return how many rows were there before, and where the first of them are."""
        twice = np.unique(self._sorted[1:][self._sorted[1:] == self._sorted[:-1]])
        if not len(twice):
            return 0, []
        hashes = np.frombuffer(self._hashes, np.uint64)
        rows = np.flatnonzero(_among(hashes, twice))
        _, firsts = np.unique(hashes[rows], return_index=True)
        again = np.delete(rows, firsts)
        return len(again), self._places(again)

    def shared_with(self, other: Copies) -> tuple[int, list[str]]:
        """Return how many rows are in another split too, and where the first of them are."""
        if not self._hashes:
            return 0, []
        rows = np.flatnonzero(_among(np.frombuffer(self._hashes, np.uint64), other._sorted))
        return len(rows), self._places(rows)

    def _places(self, rows: np.ndarray) -> list[str]:
        starts = [start for _, start in self._files]
        return [
            f"{self._files[int(np.searchsorted(starts, row, side='right')) - 1][0]}"
            f":{self._lines[row]}"
            for row in rows[:PLACES].tolist()
        ]


def _among(values: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Return which values are in a sorted array, a part of them at a time."""
    found = np.zeros(len(values), bool)
    if not len(there):
        return found
    for start in range(0, len(values), 1 << 20):
        part = values[start : start + (1 << 20)]
        places = np.minimum(np.searchsorted(there, part), len(there) - 1)
        found[start : start + len(part)] = there[places] == part
    return found
