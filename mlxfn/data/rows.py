"""Encoded rows in flat arrays, and the encoding of a whole split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Protocol

import attrs
import numpy as np

from mlxfn.data.encode import Codec, EncodedRow, EncodeOptions, Outcome, encode_many
from mlxfn.data.formats import Example, parse_rows
from mlxfn.data.order import Takes
from mlxfn.data.pack import Packs, pack
from mlxfn.data.record import Record
from mlxfn.data.report import DataReport, quantiles
from mlxfn.data.tally import Tally
from mlxfn.state import IGNORED

_CHUNK = 512  # rows tokenized in one call
DTYPES = {"tokens": "<i4", "labels": "<i4", "offsets": "<i8"}
"""The arrays of a split, and how their bytes are laid out wherever they are hashed or stored."""


class Rows(Protocol):
    """Encoded rows, in memory or on disk."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> EncodedRow:
        """Return one row."""
        ...

    def where(self, index: int) -> str:
        """Return the place a row came from."""
        ...

    def fingerprint(self) -> str:
        """Return a SHA-256 over all ids, labels and borders of rows, in hexadecimal."""
        ...

    @property
    def token_count(self) -> int:
        """Positions of all rows together."""
        ...

    @property
    def lengths(self) -> np.ndarray:
        """Positions of each row, int [rows]."""
        ...

    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lengths there are, ascending, and how many rows have each."""
        ...

    def by_length(self) -> Takes:
        """Return the rows by rising length, int64 [rows]; rows of one length in file order."""
        ...

    def id_range(self) -> tuple[int, int]:
        """Return the lowest and the highest id, labels included."""
        ...

    def packs(self, capacity: int) -> Packs:
        """Return which rows share a pack of ``capacity`` positions."""
        ...


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

    @property
    def token_count(self) -> int:
        """Positions of all rows together."""
        return len(self.tokens)

    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lengths there are, ascending, and how many rows have each."""
        return np.unique(self.lengths, return_counts=True)

    def by_length(self) -> np.ndarray:
        """Return the rows by rising length, int64 [rows]; rows of one length in file order."""
        return np.argsort(self.lengths, kind="stable")

    def id_range(self) -> tuple[int, int]:
        """Return the lowest and the highest id, labels included; -100 is none."""
        return id_range(self.tokens, self.labels)

    def packs(self, capacity: int) -> Packs:
        """Return which rows share a pack of ``capacity`` positions."""
        return pack(self.lengths, capacity)

    def fingerprint(self) -> str:
        """Return a SHA-256 over all ids, labels and borders of rows, in hexadecimal.

        Example:
            >>> a, b = EncodedRows.of([([1], [2]), ([3], [4])]), EncodedRows.of([([1, 3], [2, 4])])
            >>> a.fingerprint() == b.fingerprint()
            False
        """
        arrays = {"tokens": self.tokens, "labels": self.labels, "offsets": self.offsets}
        return joint_fingerprint(
            {
                name: hashlib.sha256(np.ascontiguousarray(array, DTYPES[name]).data).hexdigest()
                for name, array in arrays.items()
            }
        )


def joint_fingerprint(digests: dict[str, str]) -> str:
    """Return the fingerprint of rows from the SHA-256 of each of their arrays, in hexadecimal."""
    return hashlib.sha256("".join(digests[name] for name in DTYPES).encode()).hexdigest()


def id_range(tokens: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    """Return the lowest and the highest id among tokens and labels; -100 is no label.

    Example:
        >>> id_range(np.array([3, 4]), np.array([-100, 9]))
        (0, 9)
    """
    ids = labels[labels != IGNORED]
    low = min(tokens.min(initial=0), ids.min(initial=0))
    return int(low), int(max(tokens.max(initial=0), ids.max(initial=0)))


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
    tally = Tally(name)
    kept = [outcome for outcome in outcomes(records, tokenizer, options, tally) if outcome.row]
    rows = EncodedRows.of((o.row for o in kept), (o.where for o in kept))
    return rows, tally.report(quantiles(rows.lengths), options.max_seq_length)


def outcomes(
    records: Iterable[Record], tokenizer: Any, options: EncodeOptions, tally: Tally
) -> Iterator[Outcome]:
    """Yield what becomes of each record, a chunk of them in memory at a time.

    Args:
        records: The rows.
        tokenizer: A Hugging Face tokenizer, or mlx-lm's wrapper of one.
        options: How to encode.
        tally: Counts the outcomes.

    Raises:
        DataError: A row is wrong.
    """
    codec = Codec.of(tokenizer)
    examples = parse_rows(records, fmt=options.fmt, columns=options.columns)
    for chunk in _chunks(examples, _CHUNK):
        for outcome in encode_many(chunk, codec, options):
            tally.add(outcome)
            yield outcome


def _chunks(examples: Iterator[Example], size: int) -> Iterator[list[Example]]:
    while chunk := list(islice(examples, size)):
        yield chunk
