"""Rows side by side: one batch of fixed size in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mlxfn.data.encode import EncodedRow
from mlxfn.errors import DataError
from mlxfn.state import IGNORED


class HostBatch(NamedTuple):
    """A batch before it becomes arrays of the device."""

    tokens: np.ndarray  # int32 [B, T]; 0 in padding
    labels: np.ndarray  # int32 [B, T]; -100 in padding
    segments: np.ndarray  # int32 [B, T]; 0 in padding, 1.. = document within the row


def collate(rows: Sequence[Sequence[EncodedRow]], batch_size: int, length: int) -> HostBatch:
    """Lay rows out in a batch.

    Args:
        rows: The documents of each row, one unless packed; fewer rows than ``batch_size`` are
            filled up with empty ones, so that the batch always has the same shape.
        batch_size: Rows of the batch (B).
        length: Positions of a row (T).

    Returns:
        The batch; padding has segment 0 and label -100.

    Raises:
        ValueError: There are more rows than ``batch_size``, or one is longer than ``length``.

    Example:
        >>> row = EncodedRow(np.array([5, 6]), np.array([6, 7]))
        >>> batch = collate([[row]], batch_size=2, length=3)
        >>> batch.labels.tolist(), batch.segments.tolist()
        ([[6, 7, -100], [-100, -100, -100]], [[1, 1, 0], [0, 0, 0]])
    """
    if len(rows) > batch_size:
        raise ValueError(f"{len(rows)} rows do not fit a batch of {batch_size}")
    shape = (batch_size, length)
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    labels = np.full(shape, IGNORED, np.int32)
    for index, documents in enumerate(rows):
        start = 0
        for number, row in enumerate(documents, start=1):
            end = start + len(row.tokens)
            if end > length:
                raise ValueError(f"a row of {end} positions does not fit a length of {length}")
            tokens[index, start:end] = row.tokens
            labels[index, start:end] = row.labels
            segments[index, start:end] = number
            start = end
    return HostBatch(tokens, labels, segments)


def in_lines(documents: Sequence[EncodedRow], length: int) -> list[list[EncodedRow]]:
    """Lay documents out in lines: each in the last one, or in a new one where it does not fit.

    No other way to cut the documents in their order needs fewer lines. Those of a pack stand line
    by line, and two of its lines fit one of twice the length: so it needs at most as many lines
    as it has, or half as many where they are twice as long.

    Args:
        documents: In their order.
        length: Positions of a line.

    Example:
        >>> rows = [EncodedRow(np.zeros(n, int), np.zeros(n, int)) for n in (3, 2, 4)]
        >>> [[len(row.tokens) for row in line] for line in in_lines(rows, 5)]
        [[3, 2], [4]]
    """
    lines: list[list[EncodedRow]] = []
    room = -1
    for document in documents:
        size = len(document.tokens)
        if size > room:
            lines.append([])
            room = length
        lines[-1].append(document)
        room -= size
    return lines


def check_ids(batch: HostBatch, vocab_size: int, *, where: str = "a batch") -> None:
    """Refuse ids the model has no row for: MLX would read or write outside its arrays.

    Args:
        batch: The batch.
        vocab_size: Rows of the model's embedding (V).
        where: What the batch is, for the message.

    Raises:
        DataError: A token is outside [0, V), or a label that is not -100 is.
    """
    for name, ids, allowed in (
        ("token", batch.tokens, 0),
        ("label", batch.labels, IGNORED),
    ):
        bad = ((ids < 0) & (ids != allowed)) | (ids >= vocab_size)
        if bad.any():
            place = ", ".join(str(int(i)) for i in np.argwhere(bad)[0])
            raise DataError(
                f"a {name} id is outside the model's vocabulary",
                where=f"{where}, at [{place}]",
                got=int(ids[bad][0]),
                expected=f"0 to {vocab_size - 1}",
                remedy="use the tokenizer that belongs to the model",
            )
