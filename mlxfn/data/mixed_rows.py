"""The rows of several sources, one after the other, with the weight of each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import attrs
import numpy as np

from mlxfn.data.encode import EncodedRow
from mlxfn.data.mix import Pool, largest_remainder, pools_of
from mlxfn.data.pack import Packs
from mlxfn.data.report import DataReport, SourceUse, quantiles_of
from mlxfn.data.rows import Rows


@attrs.frozen(eq=False)
class MixedRows:
    """Rows of several sources; ``Loader`` draws them by weight.

    Example:
        >>> from mlxfn.data.rows import EncodedRows
        >>> a = EncodedRows.of([([1], [2])], ["a:1"])
        >>> b = EncodedRows.of([([3], [4]), ([5], [6])], ["b:1", "b:2"])
        >>> rows = MixedRows.of({"a": a, "b": b}, [Fraction(1, 3), Fraction(2, 3)])
        >>> len(rows), rows.where(2), rows.row(2).labels.tolist()
        (3, 'b:2', [6])
    """

    names: tuple[str, ...]
    parts: tuple[Rows, ...]
    weights: tuple[Fraction, ...]  # share of each source in the rows of an epoch, together 1
    starts: np.ndarray  # int64 [sources + 1], source i has the rows starts[i] to starts[i + 1]

    @classmethod
    def of(cls, parts: dict[str, Rows], weights: Sequence[Fraction] | None = None) -> MixedRows:
        """Join the rows of sources; without weights an epoch holds each row once."""
        starts = np.cumsum([0, *map(len, parts.values())])
        even = [Fraction(len(rows), int(starts[-1])) for rows in parts.values()]
        return cls(
            tuple(parts), tuple(parts.values()), tuple(even if weights is None else weights), starts
        )

    def __len__(self) -> int:
        return int(self.starts[-1])

    def row(self, index: int) -> EncodedRow:
        """Return one row."""
        part, local = self._place(index)
        return part.row(local)

    def where(self, index: int) -> str:
        """Return the place a row came from."""
        part, local = self._place(index)
        return part.where(local)

    def fingerprint(self) -> str:
        """Return a SHA-256 over the rows of all sources and their weights, in hexadecimal."""
        about = [
            f"{weight} {part.fingerprint()}"
            for weight, part in zip(self.weights, self.parts, strict=True)
        ]
        return hashlib.sha256("\n".join(about).encode()).hexdigest()

    @property
    def token_count(self) -> int:
        """Positions of all rows together."""
        return sum(part.token_count for part in self.parts)

    @property
    def lengths(self) -> np.ndarray:
        """Positions of each row, int [rows]."""
        return np.concatenate([part.lengths for part in self.parts])

    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lengths there are, ascending, and how many rows have each."""
        return joint_histogram([part.histogram() for part in self.parts])

    def by_length(self) -> np.ndarray:
        """Return the rows by rising length, int64 [rows]; rows of one length in file order."""
        return np.argsort(self.lengths, kind="stable")

    def id_range(self) -> tuple[int, int]:
        """Return the lowest and the highest id, labels included."""
        lows, highs = zip(*(part.id_range() for part in self.parts), strict=True)
        return min(lows), max(highs)

    def packs(self, capacity: int) -> Packs:
        """Return which rows share a pack: those of a source among themselves."""
        packs = [part.packs(capacity) for part in self.parts]
        ends = np.cumsum([0, *(len(made.rows) for made in packs)])
        starts = zip(packs, self.starts[:-1], strict=True)
        offsets = [made.offsets[1:] + end for made, end in zip(packs, ends[:-1], strict=True)]
        return Packs(
            np.concatenate([made.rows.astype(np.int64) + start for made, start in starts]),
            np.concatenate([[0], *offsets]),
            np.concatenate([made.sizes for made in packs]),
            capacity,
        )

    def pools(self, packs: Packs | None) -> tuple[Pool, ...]:
        """Return what an epoch draws from each source.

        Args:
            packs: From ``packs``; None: single rows.

        Raises:
            DataError: An epoch would take nothing from a source.
        """
        starts = self.starts.tolist()
        if packs is None:
            return pools_of(
                self.names,
                starts,
                self.weights,
                [len(part) for part in self.parts],
                [part.histogram() for part in self.parts],
                [part.by_length() for part in self.parts],
            )
        firsts = packs.rows[packs.offsets[:-1]]
        edges = np.searchsorted(firsts, self.starts).tolist()
        sizes = [packs.sizes[start:end] for start, end in pairwise(edges)]
        return pools_of(
            self.names,
            starts,
            self.weights,
            [len(part) for part in sizes],
            [np.unique(part, return_counts=True) for part in sizes],
            [np.argsort(part, kind="stable") for part in sizes],
        )

    def uses(self) -> tuple[SourceUse, ...]:
        """Return the rows of each source, and how many of an epoch's it gives."""
        drawn = largest_remainder([weight * len(self) for weight in self.weights])
        return tuple(
            SourceUse(name, len(part), float(weight), count)
            for name, part, weight, count in zip(
                self.names, self.parts, self.weights, drawn, strict=True
            )
        )

    def _place(self, index: int) -> tuple[Rows, int]:
        source = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[source], index - int(self.starts[source])


def joint_histogram(
    histograms: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """Add histograms: the lengths there are, ascending, and the sums of their counts.

    Example:
        >>> a, b = (np.array([3, 5]), np.array([1, 1])), (np.array([5]), np.array([4]))
        >>> [part.tolist() for part in joint_histogram([a, b])]
        [[3, 5], [1, 5]]
    """
    sizes = np.concatenate([sizes for sizes, _ in histograms])
    counts = np.concatenate([counts for _, counts in histograms])
    there, places = np.unique(sizes, return_inverse=True)
    sums = np.zeros(len(there), counts.dtype)
    np.add.at(sums, places, counts)
    return there, sums


def joint_report(name: str, reports: Sequence[DataReport], rows: MixedRows) -> DataReport:
    """Return the report of a split that comes from several sources."""
    fields = ("rows", "kept", "truncated", "dropped_overlong", "dropped_no_target", "tokens",
              "label_tokens")  # fmt: skip
    return DataReport(
        name=name,
        **{field: sum(getattr(report, field) for report in reports) for field in fields},
        lengths=quantiles_of(*rows.histogram()),
        dropped_at=tuple(place for report in reports for place in report.dropped_at)[:5],
        sources=rows.uses(),
    )
