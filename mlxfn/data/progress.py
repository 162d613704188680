"""How far reading and tokenizing is, for whoever wants to show it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import BinaryIO, NamedTuple, TypeVar

_EVERY = 0.25  # seconds between two reports

T = TypeVar("T")


class Meter:
    """How much of some files has been read: they are asked where they are, not told to count."""

    def __init__(self) -> None:
        self._total = self._before = 0
        self._file: BinaryIO | None = None

    def begin(self, total: int | None) -> None:
        """Start over, with files of so many bytes together; None where that is not known."""
        self._total, self._before = total or 0, 0

    @contextmanager
    def following(self, file: BinaryIO) -> Generator[None]:
        """Count what is read of one of the files meanwhile, as its bytes lie on the disk."""
        self._file = file
        try:
            yield
        finally:
            self._before += _place(file)
            self._file = None

    def share(self) -> float | None:
        """Return the share of all bytes that has been read; None where that is not known.

        Example:
            >>> import io
            >>> meter = Meter()
            >>> meter.begin(8)
            >>> with meter.following(io.BytesIO(b"12345678")):
            ...     meter.share()
            0.0
        """
        if not self._total:
            return None
        here = _place(self._file) if self._file is not None else 0
        return min(1.0, (self._before + here) / self._total)


def _place(file: BinaryIO) -> int:
    try:
        return file.tell()
    except (OSError, ValueError):  # not a file on a disk, or closed
        return 0


class Progress(NamedTuple):
    """How many rows were done so far."""

    name: str
    rows: int
    seconds: float
    ended: bool
    share: float | None = None  # of what there is to read; None where that is not known

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / max(self.seconds, 1e-9)

    @property
    def left(self) -> float | None:
        """Seconds until the rest is done, if it goes on like this; None where that is not known.

        Example:
            >>> Progress("train", rows=100, seconds=10.0, ended=False, share=0.25).left
            30.0
        """
        return self.seconds * (1 - self.share) / self.share if self.share else None


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


def counted(
    name: str, items: Iterable[T], share: Callable[[], float | None] = lambda: None
) -> Iterator[T]:
    """Yield items as they are, and tell the listener, if there is one, how many there were.

    Args:
        name: Of what is read.
        items: What is made of it.
        share: Returns how much of it has been read.
    """
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
            tell(Progress(name, count, now - begin, ended=False, share=share()))
            said = now
    tell(Progress(name, count, time.monotonic() - begin, ended=True, share=share()))
