"""Several sources mixed by weight: which rows an epoch takes from each, and in which order.

An epoch has as many rows as all sources together, and a source's share of them is its weight. A
source is read in passes: a pass holds each of its rows once, and an epoch goes on where the last
one stopped, so a small source is repeated whole before a row comes again, and of a large one no
row is left out. All of it is computed from (seed, epoch, position): nothing is remembered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import attrs
import numpy as np

from mlxfn.data.order import BATCHES, ROWS, STREAM, Takes, batch_count, batches_by_bucket
from mlxfn.data.shuffle import round_keys, shuffled
from mlxfn.errors import DataError

_PASSES = 2  # the draws of a source's passes, apart from those of rows and batches


def exact_weights(weights: Mapping[Any, float]) -> list[Fraction]:
    """Return the share of each source, exact, so that every machine rounds alike.

    Args:
        weights: Of each source, in any unit.

    Raises:
        DataError: A weight is no finite number above 0.

    Example:
        >>> exact_weights({"a": 0.7, "b": 0.1})
        [Fraction(7, 8), Fraction(1, 8)]
    """
    for name, weight in weights.items():
        if not 0 < weight < float("inf"):
            raise DataError(
                "a source of the mix has a weight that is none",
                where=f"data.mix, {str(name)!r}",
                got=weight,
                expected="a number > 0",
                remedy="leave out a source that is not wanted",
            )
    exact = [Fraction(repr(float(weight))) for weight in weights.values()]
    return [weight / sum(exact) for weight in exact]


def largest_remainder(quotas: Sequence[Fraction]) -> list[int]:
    """Round numbers so that their sum is the rounded sum, each by less than one.

    Example:
        >>> largest_remainder([Fraction(7, 3), Fraction(7, 3), Fraction(7, 3)])
        [3, 2, 2]
    """
    floors = [int(quota) for quota in quotas]
    missing = round(sum(quotas)) - sum(floors)
    # Ties go to the first: the order of the sources is part of the configuration.
    by_rest = sorted(range(len(quotas)), key=lambda i: floors[i] - quotas[i])
    for index in by_rest[:missing]:
        floors[index] += 1
    return floors


@attrs.frozen(eq=False)
class Pool:
    """The units of one source: its rows, or its packs of rows."""

    start: int  # number of its first unit among those of all sources
    units: int
    drawn: int  # units that an epoch takes
    sizes: np.ndarray  # int64 [n], the sizes there are, ascending, in positions
    counts: np.ndarray  # int64 [n], units of each size
    by_length: Takes  # int64 [units], its units by rising size, numbered from 0

    def in_buckets(self, buckets: np.ndarray) -> np.ndarray:
        """Return how many of its units each bucket holds, int64 [buckets]."""
        held = np.searchsorted(buckets, self.sizes)
        return np.bincount(held, self.counts, minlength=len(buckets)).astype(np.int64)


def first_of(count: np.ndarray | int, parts: Sequence[int]) -> list[Any]:
    """Return how many of the first ``count`` of a sequence belong to each part.

    The parts are spread evenly over it. As the count grows, each number grows or stays.

    Args:
        count: At most the sum of the parts; one number or an array of them.
        parts: Members of each part in the whole sequence.

    Example:
        >>> [first_of(count, [1, 3]) for count in range(5)]
        [[0, 0], [0, 1], [0, 2], [0, 3], [1, 3]]
    """
    numbers: list[Any] = []
    left, total = count, sum(parts)
    for size in parts:
        numbers.append(left * size // max(total, 1))
        left, total = left - numbers[-1], total - size
    return numbers


@attrs.frozen(eq=False)
class MixedOrder:
    """Which units stand in which batch of which epoch.

    The units of an epoch are put in batches as those of a single source are: the ones of a bucket
    follow each other in random order, this sequence is cut, and the batches are shuffled. Each
    bucket of a source is a stream of its own, of passes shuffled anew, and a pass spreads its
    buckets evenly, so what an epoch takes from a bucket is known without drawing it.
    """

    batch_size: int
    seed: int
    shuffle: bool
    pools: tuple[Pool, ...]
    parts: np.ndarray  # int64 [sources, buckets], units of each source in each bucket

    @property
    def batches(self) -> int:
        """Batches in every epoch."""
        return batch_count(sum(pool.drawn for pool in self.pools), self.batch_size)

    def batch(self, epoch: int, position: int) -> np.ndarray:
        """Return the units of one batch, int64 [at most B].

        Args:
            epoch: Number of the epoch, from 0.
            position: Number of the batch within it, from 0.
        """
        if not self.shuffle:
            return self._in_file_order(epoch, self._span(position))
        keys = round_keys(STREAM, BATCHES, self.seed, epoch)
        number = shuffled(np.array([position]), self.batches, keys)[0]
        places = self._span(int(number))
        before = self._drawn_before(epoch)
        taken = self._drawn_before(epoch + 1) - before
        edges = np.concatenate([[0], taken.sum(axis=0).cumsum()])
        buckets = np.searchsorted(edges, places, side="right") - 1
        units = np.empty(len(places), np.int64)
        for bucket in np.unique(buckets).tolist():
            here = buckets == bucket
            start, count = int(edges[bucket]), int(edges[bucket + 1] - edges[bucket])
            keys = round_keys(STREAM, ROWS, self.seed, epoch, bucket)
            within = shuffled(places[here] - start, count, keys)
            units[here] = self._units(within, bucket, before[:, bucket], taken[:, bucket])
        return units

    def batch_buckets(self, buckets_of_units: np.ndarray | None = None) -> np.ndarray:
        """Return how many batches of the first epoch need each bucket, int64 [buckets].

        Args:
            buckets_of_units: The bucket of each unit, int [units]; needed for file order only.
        """
        if self.shuffle:
            return batches_by_bucket(self._drawn_before(1).sum(axis=0).cumsum(), self.batch_size)
        if buckets_of_units is None:
            raise ValueError("the batches of file order depend on the bucket of each unit")
        places = np.arange(sum(pool.drawn for pool in self.pools))
        held = buckets_of_units[self._in_file_order(0, places)]
        longest = np.maximum.reduceat(held, places[:: self.batch_size])
        return np.bincount(longest, minlength=self.parts.shape[1])

    def _span(self, number: int) -> np.ndarray:
        start = number * self.batch_size
        drawn = sum(pool.drawn for pool in self.pools)
        return np.arange(start, min(start + self.batch_size, drawn))

    def _drawn_before(self, epoch: int) -> np.ndarray:
        """Return how many units of each source and bucket all epochs before took, int64."""
        rows: list[np.ndarray] = []
        for pool, parts in zip(self.pools, self.parts, strict=True):
            passes, rest = divmod(epoch * pool.drawn, pool.units)
            rows.append(passes * parts + np.array(first_of(rest, parts.tolist()), np.int64))
        return np.stack(rows)

    def _units(
        self, within: np.ndarray, bucket: int, before: np.ndarray, taken: np.ndarray
    ) -> np.ndarray:
        """Return the units at places among those that the epoch takes from a bucket."""
        edges = np.concatenate([[0], taken.cumsum()])
        sources = np.searchsorted(edges, within, side="right") - 1
        numbers = before[sources] + within - edges[sources]  # draws of the bucket of the source
        turns, places = np.divmod(numbers, self.parts[sources, bucket])
        units = np.empty(len(within), np.int64)
        for source, turn in sorted(set(zip(sources.tolist(), turns.tolist(), strict=True))):
            here = (sources == source) & (turns == turn)
            units[here] = self._drawn(source, bucket, turn, places[here])
        return units

    def _drawn(self, source: int, bucket: int, turn: int, places: np.ndarray) -> np.ndarray:
        """Return the units that a bucket of a source gives at places of one of its passes."""
        pool, size = self.pools[source], int(self.parts[source, bucket])
        keys = round_keys(STREAM, _PASSES, self.seed, source, bucket, turn)
        start = int(self.parts[source, :bucket].sum())
        return pool.start + pool.by_length.take(start + shuffled(places, size, keys))

    def _in_file_order(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Return the units at places of an epoch that takes each source as it is written."""
        parts = [pool.drawn for pool in self.pools]
        before, after = first_of(places, parts), first_of(places + 1, parts)
        units = np.empty(len(places), np.int64)
        for pool, start, end in zip(self.pools, before, after, strict=True):
            here = end > start
            units[here] = pool.start + (epoch * pool.drawn + start[here]) % pool.units
        return units


def pools_of(
    names: Sequence[str],
    starts: Sequence[int],
    weights: Sequence[Fraction],
    units: Sequence[int],
    histograms: Sequence[tuple[np.ndarray, np.ndarray]],
    by_length: Sequence[Takes],
) -> tuple[Pool, ...]:
    """Return the pools of a mix, with what an epoch takes from each.

    Args:
        names: Of the sources, for a message.
        starts: First row of each source, and the number of all rows.
        weights: Share of each source in the rows of an epoch.
        units: Units of each source: its rows, or fewer packs of them.
        histograms: The sizes of its units, and how many have each.
        by_length: Its units by rising size.

    Raises:
        DataError: A source is so small a part of the mix that an epoch takes nothing from it.
    """
    rows = [end - start for start, end in pairwise(starts)]
    quotas = [
        weight * starts[-1] * Fraction(count, of_rows)
        for weight, count, of_rows in zip(weights, units, rows, strict=True)
    ]
    first = np.concatenate([[0], np.cumsum(units)]).tolist()
    drawn = largest_remainder(quotas)
    if 0 in drawn:
        index = drawn.index(0)
        raise DataError(
            "a source of the mix gets no row of an epoch",
            where=names[index],
            got=f"{float(weights[index]):.2g} of {starts[-1]:,} rows",
            expected="at least one row",
            remedy="raise its weight in data.mix, or leave it out",
        )
    pairs = enumerate(zip(histograms, by_length, strict=True))
    return tuple(
        Pool(first[i], units[i], drawn[i], sizes, counts, order)
        for i, ((sizes, counts), order) in pairs
    )
