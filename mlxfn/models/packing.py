"""Attention within documents only, through the cache protocol of mlx-lm's models."""

from __future__ import annotations

from typing import Any

import mlx.core as mx


class DocumentCache:
    """A key-value cache that stores nothing and masks attention between documents.

    mlx-lm's models ask their cache for the mask and for the keys and values of earlier calls.
    This one answers with "causal and in the same document" and with the keys and values just
    given, which turns any model that takes this path into one that can read packed rows.

    Args:
        segments: int32 [B, T], 0 = padding, 1.. = document within the row.

    Example:
        >>> cache = DocumentCache(mx.array([[1, 1, 2]]))
        >>> cache.make_mask(3).astype(mx.int32).tolist()[0][0]
        [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """

    offset = 0

    def __init__(self, segments: mx.array) -> None:
        self._segments = segments
        self._masks: dict[int | None, mx.array] = {}

    def make_mask(
        self,
        N: int,
        return_array: bool = True,  # noqa: ARG002 - part of the protocol
        window_size: int | None = None,
    ) -> mx.array:
        """Return the mask, bool [B, 1, N, N]; True where a query may look at a key.

        Args:
            N: Length of the row.
            return_array: Ignored: documents always need an array.
            window_size: Number of positions a query looks back, itself included.
        """
        if window_size not in self._masks:
            here, there = mx.arange(N)[:, None], mx.arange(N)[None]
            near = here >= there
            if window_size is not None:
                near = near & (here < there + window_size)
            same = self._segments[:, None, :, None] == self._segments[:, None, None, :]
            self._masks[window_size] = near & same
        return self._masks[window_size]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Return the keys and values as they came: there are no earlier ones."""
        return keys, values


def document_caches(segments: mx.array, count: int) -> list[Any]:
    """Return ``count`` caches that share their masks, one for each layer."""
    return [DocumentCache(segments)] * count
