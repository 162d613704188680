"""The order of rows: a pure function of (seed, epoch, position) that holds no permutation."""

from __future__ import annotations

from typing import Any, Protocol

import attrs
import numpy as np

from mlxfn.data.shuffle import round_keys, shuffled

STREAM = 0x0DA7A  # keeps these draws apart from others made with the same seed
ROWS, BATCHES = 0, 1


def batch_count(rows: int, batch_size: int) -> int:
    """Return the number of batches in every epoch; the tail counts.

    Example:
        >>> batch_count(5, 2)
        3
    """
    return -(-rows // batch_size)


def batches_by_bucket(ends: np.ndarray, size: int) -> np.ndarray:
    """Return how many batches of sorted rows need each bucket, int64 [buckets].

    Args:
        ends: Rows up to and with each bucket, int64 [buckets].
        size: Rows in a batch.

    Example:
        >>> batches_by_bucket(np.array([3, 5]), 2).tolist()
        [1, 2]
    """
    # The last row of a batch is its longest: count the batches that end in each bucket.
    complete = np.where(ends == ends[-1], batch_count(int(ends[-1]), size), ends // size)
    return np.diff(complete, prepend=0)


class Takes(Protocol):
    """An array of numbers in memory or on disk."""

    def take(self, indices: Any, /) -> Any:
        """Return the items at some places."""
        ...


@attrs.frozen(eq=False)
class Order:
    """Which rows stand in which batch of which epoch.

    Shuffled, the rows of a bucket of lengths follow each other in random order, this sequence is
    cut into batches, and the batches are shuffled: rows mix freely within a bucket, and a batch is
    padded no more than its bucket is. Every batch is found from its number alone.

    Example:
        >>> order = Order.of(np.array([8, 16, 8, 16]), 2, seed=0)
        >>> sorted(sorted(order.batch(0, position).tolist()) for position in range(2))
        [[0, 2], [1, 3]]
    """

    rows: int
    batch_size: int
    seed: int
    by_length: Takes | None  # int64 [rows], rows by rising length; None: file order
    ends: np.ndarray  # int64 [buckets], rows up to and with each bucket

    @classmethod
    def of(
        cls, lengths: np.ndarray, batch_size: int, *, seed: int = 0, shuffle: bool = True
    ) -> Order:
        """Order rows, each length being a bucket of its own.

        Args:
            lengths: Length of each row, or of the bucket it belongs to, int [n].
            batch_size: Rows in a batch; one of the epoch holds fewer where it does not divide n.
            seed: Seed of the run.
            shuffle: A new order each epoch; False takes rows in file order.
        """
        _, counts = np.unique(lengths, return_counts=True)
        by_length = np.argsort(lengths, kind="stable") if shuffle else None
        return cls(len(lengths), batch_size, seed, by_length, np.cumsum(counts))

    @property
    def batches(self) -> int:
        """Batches in every epoch."""
        return batch_count(self.rows, self.batch_size)

    def batch(self, epoch: int, position: int) -> np.ndarray:
        """Return the rows of one batch, int64 [at most B].

        Args:
            epoch: Number of the epoch, from 0.
            position: Number of the batch within it, from 0.
        """
        if self.by_length is None:
            return self._span(position)
        keys = round_keys(STREAM, BATCHES, self.seed, epoch)
        number = shuffled(np.array([position]), self.batches, keys)[0]
        places = self._span(int(number))
        buckets = np.searchsorted(self.ends, places, side="right")
        sorted_places = [
            self._within(places[buckets == bucket], int(bucket), epoch)
            for bucket in range(buckets[0], buckets[-1] + 1)
        ]
        return self.by_length.take(np.concatenate(sorted_places))

    def batch_buckets(self, buckets_of_rows: np.ndarray | None = None) -> np.ndarray:
        """Return how many batches of an epoch need each bucket, int64 [buckets].

        Args:
            buckets_of_rows: The bucket of each row, int [rows]; needed for file order only.
        """
        size = self.batch_size
        if self.by_length is not None:
            return batches_by_bucket(self.ends, size)
        if buckets_of_rows is None:
            raise ValueError("the batches of file order depend on the bucket of each row")
        starts = np.arange(0, self.rows, size)
        longest = np.maximum.reduceat(buckets_of_rows, starts)
        return np.bincount(longest, minlength=len(self.ends))

    def _span(self, number: int) -> np.ndarray:
        start = number * self.batch_size
        return np.arange(start, min(start + self.batch_size, self.rows))

    def _within(self, places: np.ndarray, bucket: int, epoch: int) -> np.ndarray:
        """Shuffle places inside their bucket."""
        start = int(self.ends[bucket - 1]) if bucket else 0
        count = int(self.ends[bucket]) - start
        keys = round_keys(STREAM, ROWS, self.seed, epoch, bucket)
        return start + shuffled(places - start, count, keys)
