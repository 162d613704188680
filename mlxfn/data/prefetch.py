"""Batches prepared in a thread while the device works: numpy only, and exactly the same stream."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator
from typing import NamedTuple, Protocol, Self

from mlxfn.data.collate import HostBatch


class Windows(Protocol):
    """What is needed of a loader."""

    @property
    def batches_per_epoch(self) -> int:
        """Batches in every epoch."""
        ...

    def window(self, epoch: int, position: int, k: int) -> list[HostBatch]:
        """Return the micro-batches of one update."""
        ...


class Prepared(NamedTuple):
    """The micro-batches of one update, and where the stream stands after them."""

    epoch: int
    position: int  # of the next batch; batches_per_epoch at the end of the epoch
    batches: list[HostBatch]


def windows(
    loader: Windows, epoch: int, position: int, k: int, *, epochs: int | None = None
) -> Iterator[Prepared]:
    """Yield the stream from a cursor on, without a thread.

    Args:
        loader: Where batches come from.
        epoch: Epoch to start in.
        position: Batch to start at; at the end of an epoch the next one begins.
        k: Micro-batches of one update; fewer at the end of an epoch, never across it.
        epochs: Number of epochs of the whole stream, counted from epoch 0; None: endless.

    Yields:
        One window after the other.
    """
    while epochs is None or epoch < epochs:
        while position < loader.batches_per_epoch:
            batches = loader.window(epoch, position, k)
            position += len(batches)
            yield Prepared(epoch, position, batches)
        epoch, position = epoch + 1, 0


class Prefetch:
    """The same stream as ``windows``, prepared ahead in a thread; an iterator to be closed.

    An error in the thread is raised at the place in the stream where it happened.

    Args:
        loader: Where batches come from; used by the thread alone.
        epoch: Epoch to start in.
        position: Batch to start at.
        k: Micro-batches of one update.
        epochs: Number of epochs of the whole stream; None: endless.
        depth: Windows prepared ahead.
    """

    def __init__(
        self,
        loader: Windows,
        epoch: int,
        position: int,
        k: int,
        *,
        epochs: int | None = None,
        depth: int = 2,
    ) -> None:
        self._ready: queue.Queue[Prepared | BaseException] = queue.Queue(max(depth, 1))
        self._stop = threading.Event()
        self._ended = False
        stream = windows(loader, epoch, position, k, epochs=epochs)
        # The thread holds no reference to this object, so that dropping it ends the thread too.
        self._thread = threading.Thread(
            target=_produce, args=(stream, self._ready, self._stop), name="prefetch", daemon=True
        )
        self._finalizer = weakref.finalize(self, _end, self._thread, self._ready, self._stop)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Prepared:
        if self._ended or self._stop.is_set():
            raise StopIteration
        item = self._ready.get()
        if isinstance(item, BaseException):
            self._ended = True
            raise item
        return item

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread and wait for it; what it had prepared is thrown away."""
        self._finalizer()


def prefetch(
    loader: Windows, epoch: int, position: int, k: int, *, epochs: int | None = None, depth: int = 2
) -> Prefetch:
    """Prepare the stream from a cursor on in a background thread; see ``Prefetch``.

    Example:
        >>> from mlxfn.data.cursor import Loader
        >>> from mlxfn.data.rows import EncodedRows
        >>> rows = EncodedRows.of([([1], [2]), ([3], [4]), ([5], [6])])
        >>> loader = Loader(rows, 1, vocab_size=7, max_seq_length=8)
        >>> with prefetch(loader, epoch=0, position=0, k=2, epochs=2) as stream:
        ...     [(item.epoch, item.position, len(item.batches)) for item in stream]
        [(0, 2, 2), (0, 3, 1), (1, 2, 2), (1, 3, 1)]
    """
    return Prefetch(loader, epoch, position, k, epochs=epochs, depth=depth)


def _produce(
    stream: Iterator[Prepared], ready: queue.Queue[Prepared | BaseException], stop: threading.Event
) -> None:
    try:
        for item in stream:
            ready.put(item)
            if stop.is_set():
                return
        ready.put(StopIteration())
    except BaseException as error:  # noqa: BLE001 - it is raised in the other thread
        ready.put(error)


def _end(
    thread: threading.Thread, ready: queue.Queue[Prepared | BaseException], stop: threading.Event
) -> None:
    stop.set()
    # The thread puts at most one more item after it could see the flag: room for it is enough.
    while thread.is_alive():
        try:
            ready.get(timeout=0.01)
        except queue.Empty:
            thread.join(timeout=0.01)
