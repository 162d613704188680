"""How far reading and tokenizing is, for whoever wants to show it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

_EVERY = 0.25  # seconds between two reports

T = TypeVar("T")


class Progress(NamedTuple):
    """How many rows were done so far."""

    name: str
    rows: int
    seconds: float
    ended: bool

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / max(self.seconds, 1e-9)


_listener: ContextVar[Callable[[Progress], None] | None] = ContextVar("listener", default=None)


@contextmanager
def listening(tell: Callable[[Progress], None]) -> Generator[None]:
    """Tell a function, a few times a second, how far whatever happens inside is.

    Example:
        >>> seen = []
        >>> with listening(seen.append):
        ...     _ = list(counted("train", range(3)))
        >>> seen[-1].rows, seen[-1].ended
        (3, True)
    """
    token = _listener.set(tell)
    try:
        yield
    finally:
        _listener.reset(token)


def counted(name: str, items: Iterable[T]) -> Iterator[T]:
    """Yield items as they are, and tell the listener, if there is one, how many there were."""
    tell = _listener.get()
    if tell is None:
        yield from items
        return
    begin = said = time.monotonic()
    count = 0
    for item in items:
        yield item
        count += 1
        now = time.monotonic()
        if now - said >= _EVERY:
            tell(Progress(name, count, now - begin, ended=False))
            said = now
    tell(Progress(name, count, time.monotonic() - begin, ended=True))
