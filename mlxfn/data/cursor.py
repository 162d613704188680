"""The stream of batches: any position of any epoch can be asked for, so a cursor is two numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from mlxfn.data.buckets import bucket_for, choose_buckets, pack_buckets
from mlxfn.data.collate import HostBatch, check_ids, collate, in_lines
from mlxfn.data.mix import MixedOrder
from mlxfn.data.mixed_rows import MixedRows, joint_histogram
from mlxfn.data.order import Order, Takes
from mlxfn.data.pack import capacity_for
from mlxfn.data.prefetch import Prefetch
from mlxfn.data.report import BucketUse, ShapeReport
from mlxfn.data.rows import Rows
from mlxfn.errors import DataError
from mlxfn.state import IGNORED, Batch

_BATCHES_PER_TRACE = 40  # an epoch's batches for each further bucket


class Window(NamedTuple):
    """The micro-batches of one update, and the cursor after them."""

    epoch: int  # of the next batch: at the end of an epoch the next one,
    position: int  # and 0
    batches: list[HostBatch]
    row_ids: list[str]  # file and line of every row, in the order of the batches

    @property
    def rows(self) -> int:
        """Number of rows in the micro-batches."""
        return len(self.row_ids)

    @property
    def tokens(self) -> int:
        """Number of tokens in them, prompts included and padding not."""
        return sum(int(np.count_nonzero(batch.segments)) for batch in self.batches)


class Loader:
    """Batches of a split as a pure function of (epoch, position).

    Nothing is remembered between two batches, so any of them costs the same, and an order of ten
    million rows takes no more memory than their lengths.

    Args:
        rows: The encoded rows.
        batch_size: Rows in a batch (B), or packs of rows; one batch of an epoch may hold fewer and
            is filled up with empty rows.
        seed: Seed of the order.
        shuffle: A new order each epoch; False takes rows in file order.
        vocab_size: Rows of the model's embedding (V); every id is checked against it.
        max_seq_length: Longest row, and the capacity of a pack.
        packing: Several documents in one row, marked by segments. A pack is one row of
            ``max_seq_length`` positions (of fewer where the whole data set has fewer), or two
            of half the length, and so on: a batch has as many positions whatever its shape.
        bucket_count: Most different lengths of batches, each one compiled trace; None: 8, and up
            to 16 where an epoch is long enough to pay for them.

    Raises:
        DataError: There are no rows, or one has an id outside the vocabulary.

    Example:
        >>> from mlxfn.data.rows import EncodedRows
        >>> rows = EncodedRows.of([([1, 2], [2, 3]), ([4], [5]), ([6, 7, 8], [7, 8, 9])])
        >>> loader = Loader(rows, 2, seed=0, shuffle=False, vocab_size=10, max_seq_length=16)
        >>> loader.batches_per_epoch, loader.batch(0, 1).tokens.tolist()[0]
        (2, [6, 7, 8, 0, 0, 0, 0, 0])
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        vocab_size: int,
        max_seq_length: int,
        packing: bool = False,
        bucket_count: int | None = None,
    ) -> None:
        if not len(rows):
            raise DataError("the data set is empty", expected="at least one row")
        _check_all_ids(rows, vocab_size)
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.vocab_size = vocab_size
        capacity = capacity_for(rows.token_count, max_seq_length)
        self.packs = rows.packs(capacity) if packing else None
        self._pools = rows.pools(self.packs) if isinstance(rows, MixedRows) else ()
        sizes, counts = self._histogram()  # of units: a unit is a row or a pack of rows
        units = round(float(counts.sum()))
        count = bucket_count or min(16, max(8, units // batch_size // _BATCHES_PER_TRACE))
        self._buckets = (
            choose_buckets(sizes, max_seq_length, count, rows=counts)
            if self.packs is None
            else pack_buckets(sizes, capacity, count, packs=counts)
        )
        self._order = self._mixed_order() if self._pools else self._plain_order(sizes, counts)

    @property
    def lengths(self) -> list[int]:
        """The lengths batches can have, ascending."""
        return self._buckets.tolist()

    @property
    def batches_per_epoch(self) -> int:
        """Batches in every epoch."""
        return self._order.batches

    def batch(self, epoch: int, position: int) -> HostBatch:
        """Return one batch, in constant time.

        Args:
            epoch: Number of the epoch, from 0.
            position: Number of the batch within it, from 0.

        Raises:
            IndexError: The epoch has no such batch.
            DataError: An id is outside the vocabulary.
        """
        units = self._units(epoch, position)
        documents = [[self.rows.row(i) for i in self._documents(unit)] for unit in units]
        of_rows = [len(unit[0].tokens) for unit in documents]
        longest = max(of_rows if self.packs is None else self.packs.sizes[units])
        length = int(bucket_for(longest, self._buckets))
        lines = [line for unit in documents for line in in_lines(unit, length)]
        batch = collate(lines, self._batch_rows(length), length)
        check_ids(batch, self.vocab_size, where=f"batch {position} of epoch {epoch}")
        return batch

    def window(self, epoch: int, position: int, k: int) -> list[HostBatch]:
        """Return the k micro-batches of one update; fewer at the end of an epoch, never beyond."""
        end = min(position + k, self.batches_per_epoch)
        return [self.batch(epoch, at) for at in range(position, end)]

    def windows(
        self,
        epoch: int,
        position: int,
        k: int,
        *,
        last_epoch: int | None = None,
        depth: int = 2,
    ) -> Prefetch[Window]:
        """Prepare the stream of updates from a cursor on, in a background thread.

        Args:
            epoch: Epoch to start in.
            position: Batch to start at; at the end of an epoch the next one begins.
            k: Micro-batches of one update; fewer at the end of an epoch, never across it.
            last_epoch: The epoch to stop before; None: endless.
            depth: Windows prepared ahead.

        Returns:
            An iterator of windows, to be closed.

        Example:
            >>> from mlxfn.data.rows import EncodedRows
            >>> rows = EncodedRows.of([([1], [2]), ([3], [4]), ([5], [6])])
            >>> loader = Loader(rows, 1, vocab_size=7, max_seq_length=8)
            >>> with loader.windows(epoch=0, position=0, k=2, last_epoch=2) as stream:
            ...     [(window.epoch, window.position, window.rows) for window in stream]
            [(0, 2, 2), (1, 0, 1), (1, 2, 2), (2, 0, 1)]
        """
        return Prefetch(self._stream(epoch, position, k, last_epoch), depth=depth)

    def epoch(self, epoch: int = 0) -> Iterator[HostBatch]:
        """Yield every batch of one epoch in order."""
        for position in range(self.batches_per_epoch):
            yield self.batch(epoch, position)

    def row_indices(self, epoch: int, position: int) -> list[int]:
        """Return which rows stand in a batch, in their order."""
        return [i for unit in self._units(epoch, position) for i in self._documents(unit)]

    def places(self, epoch: int, position: int) -> list[str]:
        """Return the file and line of each row of a batch."""
        return [self.rows.where(i) for i in self.row_indices(epoch, position)]

    def report(self) -> ShapeReport:
        """Return the shapes and the padding of an epoch; they are those of every epoch."""
        of_rows = None if self.shuffle else np.searchsorted(self._buckets, self._sizes())
        uses = self._order.batch_buckets(of_rows).tolist()
        rows = [self._batch_rows(length) for length in self.lengths]
        positions = int(np.dot(uses, self._buckets * rows))
        tokens: float = self.rows.token_count
        if isinstance(self.rows, MixedRows):  # on average: epochs differ by a few rows
            uses_of = zip(self.rows.parts, self._pools, strict=True)
            tokens = sum(part.token_count * pool.drawn / pool.units for part, pool in uses_of)
        return ShapeReport(
            batches=self.batches_per_epoch,
            batch_size=self.batch_size,
            buckets=tuple(
                BucketUse(*use) for use in zip(rows, self.lengths, uses, strict=True) if use[2]
            ),
            padding=1 - tokens / positions,
            rows=len(self.rows),
            packs=None if self.packs is None else len(self.packs),
        )

    def _stream(
        self, epoch: int, position: int, k: int, last_epoch: int | None
    ) -> Iterator[Window]:
        while last_epoch is None or epoch < last_epoch:
            while position < self.batches_per_epoch:
                batches = self.window(epoch, position, k)
                after = position + len(batches)
                row_ids = [w for at in range(position, after) for w in self.places(epoch, at)]
                over = after == self.batches_per_epoch
                cursor = (epoch + 1, 0) if over else (epoch, after)
                yield Window(*cursor, batches, row_ids)
                position = after
            epoch, position = epoch + 1, 0

    def _histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the sizes of an epoch's units, ascending, and how many have each on average."""
        if self._pools:
            shares = [pool.counts * (pool.drawn / pool.units) for pool in self._pools]
            sizes = [pool.sizes for pool in self._pools]
            return joint_histogram(list(zip(sizes, shares, strict=True)))
        if self.packs is None:
            return self.rows.histogram()
        return np.unique(self.packs.sizes, return_counts=True)

    def _plain_order(self, sizes: np.ndarray, counts: np.ndarray) -> Order:
        held = np.searchsorted(self._buckets, sizes)
        ends = np.bincount(held, counts, minlength=len(self._buckets)).cumsum().astype(np.int64)
        by_length = self._by_length() if self.shuffle else None
        return Order(int(counts.sum()), self.batch_size, self.seed, by_length, ends)

    def _mixed_order(self) -> MixedOrder:
        parts = np.stack([pool.in_buckets(self._buckets) for pool in self._pools])
        return MixedOrder(self.batch_size, self.seed, self.shuffle, self._pools, parts)

    def _sizes(self) -> np.ndarray:
        return self.rows.lengths if self.packs is None else self.packs.sizes

    def _by_length(self) -> Takes:
        if self.packs is None:
            return self.rows.by_length()
        return np.argsort(self.packs.sizes, kind="stable")

    def _batch_rows(self, length: int) -> int:
        """Return the rows of a batch: of a pack, as many lines as it is worth."""
        return self.batch_size * (1 if self.packs is None else self.packs.capacity // length)

    def _documents(self, unit: int) -> tuple[int, ...]:
        return (int(unit),) if self.packs is None else self.packs[int(unit)]

    def _units(self, epoch: int, position: int) -> np.ndarray:
        if not 0 <= position < self.batches_per_epoch:
            raise IndexError(f"an epoch has {self.batches_per_epoch} batches, not {position + 1}")
        return self._order.batch(epoch, position)


def _check_all_ids(rows: Rows, vocab_size: int) -> None:
    """Check all ids before the first update, where the row can still be named."""
    lowest, highest = rows.id_range()
    if lowest >= 0 and highest < vocab_size:
        return
    for index in range(len(rows)):
        row = rows.row(index)
        bad = (row.tokens < 0) | (row.tokens >= vocab_size) | (row.labels >= vocab_size)
        bad |= (row.labels < 0) & (row.labels != IGNORED)
        if bad.any():
            at = int(bad.argmax())
            raise DataError(
                "a row has a token id outside the model's vocabulary",
                where=rows.where(index),
                got=f"token {row.tokens[at]}, label {row.labels[at]}",
                expected=f"0 to {vocab_size - 1}",
                remedy="use the tokenizer that belongs to the model",
            )


def to_device(batch: HostBatch) -> Batch:
    """Return the batch as arrays of the device; only the main thread may do this."""
    return Batch(*(mx.array(part) for part in batch))
