"""Encoded rows in flat arrays, and the encoding of a whole split."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import attrs
import numpy as np

from mlxfn.data.encode import Codec, EncodedRow, EncodeOptions, Outcome, encode_many
from mlxfn.data.formats import Example, parse_rows
from mlxfn.data.record import Record
from mlxfn.data.report import DataReport, quantiles
from mlxfn.errors import DataError
from mlxfn.state import IGNORED

_CHUNK = 512  # rows tokenized in one call
_NAMED = 5  # dropped rows that a report names


@attrs.frozen(eq=False)
class EncodedRows:
    """Rows of token ids and labels, one after the other.

    Example:
        >>> rows = EncodedRows.of([([1, 2, 3], [2, -100, 4]), ([5], [6])])
        >>> len(rows), rows.lengths.tolist(), rows.row(1).labels.tolist()
        (2, [3, 1], [6])
    """

    tokens: np.ndarray  # int32 [N]
    labels: np.ndarray  # int32 [N], aligned: the id after tokens[t], or -100
    offsets: np.ndarray  # int64 [rows + 1], row i is offsets[i] to offsets[i + 1]
    places: tuple[str, ...] = ()  # file:line of each row; empty: not known

    @classmethod
    def of(cls, rows: Iterable[Any], places: Iterable[str] = ()) -> EncodedRows:
        """Join rows, each a pair of tokens and labels of one length.

        Raises:
            ValueError: The tokens and the labels of a row differ in length.
        """
        pairs = [(np.asarray(t, np.int32), np.asarray(lab, np.int32)) for t, lab in rows]
        for tokens, labels in pairs:
            if tokens.shape != labels.shape:
                raise ValueError(f"a row has {tokens.shape} tokens and {labels.shape} labels")
        empty = np.zeros(0, np.int32)
        return cls(
            tokens=np.concatenate([empty, *(tokens for tokens, _ in pairs)]),
            labels=np.concatenate([empty, *(labels for _, labels in pairs)]),
            offsets=np.cumsum([0, *(len(tokens) for tokens, _ in pairs)], dtype=np.int64),
            places=tuple(places),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Positions of each row, int64 [rows]."""
        return np.diff(self.offsets)

    def row(self, index: int) -> EncodedRow:
        """Return one row, as views into the flat arrays."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        return EncodedRow(self.tokens[span], self.labels[span])

    def where(self, index: int) -> str:
        """Return the place a row came from."""
        return self.places[index] if self.places else f"row {index}"

    def fingerprint(self) -> str:
        """Return a SHA-256 over all ids, labels and borders of rows, in hexadecimal.

        Example:
            >>> a, b = EncodedRows.of([([1], [2]), ([3], [4])]), EncodedRows.of([([1, 3], [2, 4])])
            >>> a.fingerprint() == b.fingerprint()
            False
        """
        digest = hashlib.sha256()
        for array, dtype in ((self.tokens, "<i4"), (self.labels, "<i4"), (self.offsets, "<i8")):
            digest.update(np.ascontiguousarray(array, dtype=dtype).data)
        return digest.hexdigest()


def encode_split(
    records: Iterable[Record],
    tokenizer: Any,
    options: EncodeOptions | None = None,
    *,
    name: str = "train",
) -> tuple[EncodedRows, DataReport]:
    """Encode every record of a split.

    Args:
        records: The rows, for example from ``read_records``.
        tokenizer: A Hugging Face tokenizer, or mlx-lm's wrapper of one.
        options: How to encode.
        name: Name of the split, for messages.

    Returns:
        The rows that can be trained on, in file order, and a report of all of them.

    Raises:
        DataError: A row is wrong, the split is empty, or no row of it is left.
    """
    options = options or EncodeOptions()
    codec = Codec.of(tokenizer)
    examples = parse_rows(records, fmt=options.fmt, columns=options.columns)
    outcomes = [
        outcome
        for chunk in _chunks(examples, _CHUNK)
        for outcome in encode_many(chunk, codec, options)
    ]
    kept = [outcome for outcome in outcomes if outcome.row is not None]
    rows = EncodedRows.of((o.row for o in kept), (o.where for o in kept))
    report = _report(name, outcomes, rows)
    _check_usable(report, options)
    return rows, report


def _chunks(examples: Iterator[Example], size: int) -> Iterator[list[Example]]:
    while chunk := list(islice(examples, size)):
        yield chunk


def _report(name: str, outcomes: list[Outcome], rows: EncodedRows) -> DataReport:
    fates = Counter(outcome.fate for outcome in outcomes)
    dropped = (outcome.where for outcome in outcomes if outcome.row is None)
    return DataReport(
        name=name,
        rows=len(outcomes),
        kept=len(rows),
        truncated=fates["truncated"],
        dropped_overlong=fates["overlong"],
        dropped_no_target=fates["no_target"],
        tokens=len(rows.tokens),
        label_tokens=int((rows.labels != IGNORED).sum()),
        lengths=quantiles(rows.lengths),
        dropped_at=tuple(islice(dropped, _NAMED)),
    )


def _check_usable(report: DataReport, options: EncodeOptions) -> None:
    if not report.rows:
        raise DataError(
            "the data set is empty", where=f"split {report.name}", expected="at least one row"
        )
    if not report.kept:
        raise DataError(
            "no row of the data set can be trained on",
            where=f"split {report.name}, first at {report.dropped_at[0]}",
            got=f"{report.rows:,} rows, all dropped: {report.reasons()}",
            expected=f"rows with a target within max_seq_length = {options.max_seq_length}",
            remedy="raise data.max_seq_length, or check data.loss_on and the rows' columns",
        )
