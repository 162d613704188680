"""What became of the rows of a split, and what shapes training will see: values to be printed."""

from __future__ import annotations

from typing import Any, NamedTuple

import attrs
import numpy as np

QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)


class SourceUse(NamedTuple):
    """One source of a mix."""

    name: str
    rows: int  # that are kept
    weight: float  # share of an epoch
    drawn: int  # rows of an epoch

    def text(self) -> str:
        """Return it in words.

        Example:
            >>> SourceUse("a.jsonl", 200, 0.7, 700).text()
            '70.0% of an epoch from a.jsonl: 700 rows, 3.5 times its 200'
        """
        return (
            f"{self.weight:.1%} of an epoch from {self.name}: {self.drawn:,} rows, "
            f"{self.drawn / self.rows:.2g} times its {self.rows:,}"
        )


@attrs.frozen
class DataReport:
    """The rows of one split and what became of them."""

    name: str  # train, valid, test
    rows: int  # read
    kept: int
    truncated: int  # kept, but cut at max_seq_length
    dropped_overlong: int
    dropped_no_target: int
    tokens: int  # positions in kept rows
    label_tokens: int  # positions that are learned
    lengths: tuple[int, ...]  # positions: min, median, 90%, 99%, max
    dropped_at: tuple[str, ...] = ()  # file:line of the first few dropped rows
    sources: tuple[SourceUse, ...] = ()  # of a mix; empty: one source

    @property
    def dropped(self) -> int:
        """Rows that were read and are not trained on."""
        return self.dropped_overlong + self.dropped_no_target

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        sources = [source._asdict() for source in self.sources]
        return attrs.asdict(self, recurse=False) | {"sources": sources}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DataReport:
        """Return the report that ``to_dict`` has written, also after a way through JSON."""
        fields = dict(values)
        fields |= {name: tuple(values[name]) for name in ("lengths", "dropped_at")}
        fields["sources"] = tuple(SourceUse(**source) for source in values.get("sources", ()))
        return cls(**fields)

    def lines(self) -> list[tuple[str, str]]:
        """Return the report as (label, text) pairs.

        Example:
            >>> report = DataReport("train", 10, 9, 1, 0, 1, 900, 300, (20, 90, 150, 180, 200))
            >>> dict(report.lines())["rows"]
            '9 of 10 kept (1 truncated; dropped: 1 without a target)'
        """
        share = self.label_tokens / max(self.tokens, 1)
        low, half, most, nearly, top = self.lengths
        lines = [
            ("rows", f"{self.kept:,} of {self.rows:,} kept{self._notes()}"),
            (
                "tokens",
                f"{self.tokens:,}, of which {self.label_tokens:,} are learned ({share:.0%})",
            ),
            ("length", f"{low} to {top}, median {half}, 90% {most}, 99% {nearly}"),
        ]
        numbered = enumerate(self.sources, start=1)
        lines += [(f"source {number}", source.text()) for number, source in numbered]
        if self.dropped_at:
            more = ", ..." if self.dropped > len(self.dropped_at) else ""
            lines.append(("dropped", ", ".join(self.dropped_at) + more))
        return lines

    def reasons(self) -> str:
        """Return why rows were dropped, in words; empty if none was."""
        parts = [
            (self.dropped_overlong, "over max_seq_length"),
            (self.dropped_no_target, "without a target"),
        ]
        return ", ".join(f"{count:,} {why}" for count, why in parts if count)

    def _notes(self) -> str:
        notes = [f"{self.truncated:,} truncated"] if self.truncated else []
        notes += [f"dropped: {self.reasons()}"] if self.dropped else []
        return f" ({'; '.join(notes)})" if notes else ""


class BucketUse(NamedTuple):
    """One shape of batches and how often an epoch uses it."""

    rows: int
    length: int  # positions of a row
    batches: int


@attrs.frozen
class ShapeReport:
    """The batches of one epoch."""

    batches: int
    batch_size: int  # rows, or packs of them
    buckets: tuple[BucketUse, ...]
    padding: float  # share of all positions that are padding
    rows: int
    packs: int | None  # of those rows; None: not packed

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return attrs.asdict(self, recurse=False) | {
            "buckets": [bucket._asdict() for bucket in self.buckets]
        }

    def lines(self) -> list[tuple[str, str]]:
        """Return the report as (label, text) pairs."""
        shapes = ", ".join(f"{rows} × {length} ({use:,})" for rows, length, use in self.buckets)
        units = "rows" if self.packs is None else "packs"
        lines = [
            ("batches", f"{self.batches:,} of {self.batch_size} {units} in an epoch"),
            ("shapes", f"{shapes}: rows × length (batches); {self.padding:.1%} padding"),
        ]
        if self.packs is not None:
            lines.insert(0, ("packing", f"{self.rows:,} rows in {self.packs:,} packs"))
        return lines


def quantiles(lengths: np.ndarray) -> tuple[int, ...]:
    """Return minimum, median, 90%, 99% and maximum of lengths, each a length that occurs."""
    if not len(lengths):
        return (0,) * len(QUANTILES)
    return tuple(int(q) for q in np.quantile(lengths, QUANTILES, method="higher"))


def quantiles_of(lengths: np.ndarray, rows: np.ndarray) -> tuple[int, ...]:
    """Return the same from the lengths there are, ascending, and how many rows have each.

    Example:
        >>> quantiles_of(np.array([3, 9]), np.array([4, 1])) == quantiles(np.array([3, 3, 3, 3, 9]))
        True
    """
    if not len(lengths):
        return (0,) * len(QUANTILES)
    ends = np.cumsum(rows)
    places = np.ceil(np.array(QUANTILES) * (ends[-1] - 1))
    return tuple(lengths[np.searchsorted(ends, places, side="right")].tolist())


def summary(report: DataReport, shapes: ShapeReport | None = None) -> str:
    """Return the report of a split, and of its batches, as text.

    Args:
        report: Of the rows.
        shapes: Of the batches, from ``Loader.report()``.

    Example:
        >>> print(summary(DataReport("valid", 2, 2, 0, 0, 0, 50, 20, (20, 30, 30, 30, 30))))
        valid
          rows      2 of 2 kept
          tokens    50, of which 20 are learned (40%)
          length    20 to 30, median 30, 90% 30, 99% 30
    """
    lines = report.lines() + (shapes.lines() if shapes else [])
    return "\n".join([report.name, *(f"  {label:<9} {text}" for label, text in lines)])
