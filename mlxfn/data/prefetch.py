"""An iterator that is drained in a thread, so that a batch is ready when the device is."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Generic, Self, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """The same items in the same order, prepared ahead; to be closed, or used in a ``with``.

    The thread must touch numpy only, never MLX. An error in it is raised here, at the place in
    the stream where it happened.

    Args:
        stream: What to drain; the thread alone uses it from now on.
        depth: Items prepared ahead.

    Example:
        >>> with Prefetch(iter(range(5)), depth=2) as stream:
        ...     list(stream)
        [0, 1, 2, 3, 4]
    """

    def __init__(self, stream: Iterator[T], *, depth: int = 2) -> None:
        self._ready: queue.Queue[Any] = queue.Queue(max(depth, 1))
        self._stop = threading.Event()
        self._ended = False
        # The thread holds no reference to this object, so that dropping it ends the thread too.
        thread = threading.Thread(
            target=_drain, args=(stream, self._ready, self._stop), name="prefetch", daemon=True
        )
        self._finalizer = weakref.finalize(self, _end, thread, self._ready, self._stop)
        thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._ended or self._stop.is_set():
            raise StopIteration
        item, error = self._ready.get()
        if error is not None:
            self._ended = True
            raise error
        return item

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread and wait for it; what it had prepared is thrown away."""
        self._finalizer()


def _drain(stream: Iterator[Any], ready: queue.Queue[Any], stop: threading.Event) -> None:
    try:
        for item in stream:
            ready.put((item, None))
            if stop.is_set():
                return
        ready.put((None, StopIteration()))
    except BaseException as error:  # noqa: BLE001 - it is raised in the other thread
        ready.put((None, error))


def _end(thread: threading.Thread, ready: queue.Queue[Any], stop: threading.Event) -> None:
    stop.set()
    # A thread that waits for room in the queue cannot see the flag: make room until it has ended.
    while thread.is_alive():
        try:
            ready.get(timeout=0.01)
        except queue.Empty:
            thread.join(timeout=0.01)
