"""Counting what becomes of rows, one at a time."""

from __future__ import annotations

from collections import Counter

import numpy as np

from mlxfn.data.encode import Outcome
from mlxfn.data.report import DataReport
from mlxfn.errors import DataError
from mlxfn.state import IGNORED

_NAMED = 5  # dropped rows that a report names


class Tally:
    """What became of the rows of a split so far.

    Args:
        name: Name of the split.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.fates: Counter[str] = Counter()
        self.dropped_at: list[str] = []
        self.tokens = 0
        self.label_tokens = 0

    def add(self, outcome: Outcome) -> None:
        """Count one row."""
        self.fates[outcome.fate] += 1
        if outcome.row is not None:
            self.tokens += len(outcome.row.tokens)
            self.label_tokens += int(np.count_nonzero(outcome.row.labels != IGNORED))
        elif len(self.dropped_at) < _NAMED:
            self.dropped_at.append(outcome.where)

    def report(self, lengths: tuple[int, ...], max_seq_length: int) -> DataReport:
        """Return the report of all rows.

        Args:
            lengths: Quantiles of the lengths of the kept rows.
            max_seq_length: The limit of a row, for a message.

        Raises:
            DataError: There was no row, or none is left to train on.
        """
        report = self.count(lengths)
        check_usable(report, max_seq_length)
        return report

    def count(self, lengths: tuple[int, ...]) -> DataReport:
        """Return the report of all rows, whatever it says."""
        return DataReport(
            name=self.name,
            rows=self.fates.total(),
            kept=self.fates["kept"] + self.fates["truncated"],
            truncated=self.fates["truncated"],
            dropped_overlong=self.fates["overlong"],
            dropped_no_target=self.fates["no_target"],
            tokens=self.tokens,
            label_tokens=self.label_tokens,
            lengths=lengths,
            dropped_at=tuple(self.dropped_at),
        )


def check_usable(report: DataReport, max_seq_length: int) -> None:
    """Refuse a split that nothing can be learned from.

    Raises:
        DataError: It has no row, or none that is left to train on.
    """
    if not report.rows:
        raise DataError(
            "the data set is empty", where=f"split {report.name}", expected="at least one row"
        )
    if not report.kept:
        raise DataError(
            "no row of the data set can be trained on",
            where=f"split {report.name}, first at {report.dropped_at[0]}",
            got=f"{report.rows:,} rows, all dropped: {report.reasons()}",
            expected=f"rows with a target within max_seq_length = {max_seq_length}",
            remedy="raise data.max_seq_length, or check data.loss_on and the rows' columns",
        )
