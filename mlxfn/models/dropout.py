"""Dropout that draws from an explicit key, so that a training step stays a pure function."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Generator
from contextvars import ContextVar

import attrs
import mlx.core as mx
from mlx import nn

from mlxfn.random import fold_in


@attrs.frozen(eq=False)
class Scope:
    """What holds while a functional forward pass runs.

    Args:
        key: uint32 [2], the key that dropout draws from; None where nothing is dropped.
    """

    key: mx.array | None


_scope: ContextVar[Scope | None] = ContextVar("mlxfn_scope", default=None)


def current_scope() -> Scope | None:
    """Return the scope of the functional forward pass that is running, None outside of one."""
    return _scope.get()


@contextlib.contextmanager
def keyed(key: mx.array | None) -> Generator[None]:
    """Let every :class:`KeyedDropout` below draw from ``key``; without a key none drops.

    Args:
        key: uint32 [2], or None for evaluation.

    Example:
        >>> layer, x = KeyedDropout(0.5, 1), mx.ones(4)
        >>> with keyed(mx.random.key(0)):
        ...     a, b = layer(x), layer(x)
        >>> bool(mx.array_equal(a, b))
        True
    """
    token = _scope.set(Scope(key))
    try:
        yield
    finally:
        _scope.reset(token)


def stream_of(path: str) -> int:
    """Return the number of the random stream that belongs to a module path, uint32.

    It depends on the path alone, so that adding a module leaves the draws of the others.

    Example:
        >>> stream_of("model.layers.0.self_attn.q_proj") == stream_of("model.layers.1")
        False
    """
    return zlib.crc32(path.encode())


class KeyedDropout(nn.Module):
    """Inverted dropout whose mask is a function of (scope key, index, shape).

    Args:
        p: Probability that an element is zeroed, ``0 <= p < 1``.
        index: Number of the layer's own random stream, folded into the scope's key.

    Example:
        >>> KeyedDropout(0.5, 1)(mx.ones(2))
        array([1, 1], dtype=float32)

    Srivastava et al., "Dropout", JMLR 2014.
    """

    def __init__(self, p: float, index: int) -> None:
        super().__init__()
        self.p = p
        self.index = index

    def __call__(self, x: mx.array) -> mx.array:
        """Return x, or x / (1 - p) with a share p of it zeroed; shape and dtype of x."""
        scope = current_scope()
        if self.p == 0 or scope is None or scope.key is None:
            return x
        keep = mx.random.bernoulli(1 - self.p, x.shape, key=fold_in(scope.key, self.index))
        return mx.where(keep, x * (1 / (1 - self.p)), mx.zeros_like(x))
