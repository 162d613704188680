"""What the loop tells the world: events to the sinks, states to the checkpoint store."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs

from mlxfn import jit
from mlxfn.checkpoint.store import CheckpointStore
from mlxfn.errors import RunDirError
from mlxfn.events import Event, Save, Sink, Verdict, displays
from mlxfn.files import UncertainError
from mlxfn.governor import Governor
from mlxfn.sinks.jsonl import JsonlSink
from mlxfn.state import RunState

E = TypeVar("E", bound=Event)

LONGEST_WAIT = 64
"""Updates between two tries to save on a disk that stays full; the first try is the next update."""

LONGEST_HISTORY = 2048
"""Entries of a history; at 100,000 each update took 0.6 ms more and each save paused for 1 s."""


@attrs.define(eq=False)
class Recorder:
    """The one place where the loop's events get their time and its states their file.

    Args:
        sinks: Where events go, in this order.
        store: Where states go.
        meta: What every checkpoint says about the run besides its state.
        log: The run's own log, if it keeps one; it is one of the sinks.
        governor: What watches the memory, if anything does.
    """

    sinks: Sequence[Sink]
    store: CheckpointStore
    meta: dict[str, Any]
    log: JsonlSink | None = None
    governor: Governor | None = None
    tokens: int = 0  # label tokens of this process's updates
    real_tokens: int = 0  # all tokens of their rows
    busy_s: float = 0.0  # time spent in them
    _now: Callable[[], float] = time.time
    _lap: float = attrs.field(factory=time.monotonic)
    _retry_at: int | None = None  # update at which a failed save is tried again
    _wait: int = 1  # updates until then; doubled with each failure
    _log_failed: bool = False

    def tell(self, event_type: type[E], state: RunState, /, **fields: Any) -> None:
        """Hand an event about this state to every sink.

        A log that cannot be written is told to the others, once; the event is written with a
        later one, or before the next checkpoint is.
        """
        event = event_type(
            update=updates_applied(state), epoch=state.epoch, time=self._now(), **fields
        )
        errors = [error for sink in self.sinks if (error := _write(sink, event))]
        news = errors and not self._log_failed
        self._log_failed = bool(errors)
        if news:
            self.tell(Verdict, state, kind="log_failed", message=str(errors[0]))

    def save(self, state: RunState, *, best: bool = False, pending: bool = False) -> None:
        """Hand the state to the checkpoint store; only the copy to host memory is waited for.

        A save that fails is told, and tried again with one of the next updates; :meth:`settle`
        is for those who cannot wait.

        Args:
            state: The state.
            best: Whether its validation loss is the lowest so far.
            pending: Whether an evaluation of this state is still due.
        """
        try:
            self._save(state, best=best, pending=pending)
        except RunDirError as error:
            self._failed(state, error)

    def settle(self, state: RunState, *, pending: bool = False) -> None:
        """Wait until the last save is on the disk; one that failed is tried once more.

        Args:
            state: The state to save if that is needed.
            pending: Whether an evaluation of it is still due.

        Raises:
            RunDirError: It cannot be saved.
        """
        try:
            self.store.flush()
        except RunDirError as error:
            self._failed(state, error)
        if self._retry_at is not None:
            self._save(state, best=False, pending=pending)
            self.store.flush()

    def settle_log(self) -> None:
        """Write the events that wait for room on the disk.

        Raises:
            RunDirError: There still is none.
        """
        if self.log is not None:
            self.log.settle()

    def count(self, state: RunState, seconds: float, tokens: int, real_tokens: int) -> None:
        """Count one update, and tell of its memory and of a save that failed behind it.

        Args:
            state: The state after it.
            seconds: How long it took.
            tokens: Its label tokens.
            real_tokens: All tokens of its rows.
        """
        try:
            self.store.poll()
        except RunDirError as error:
            self._failed(state, error)
        for display in displays(self.sinks):
            display.tick(updates_applied(state), state.epoch)
        for notice in self.governor.look() if self.governor else ():
            self.tell(Verdict, state, kind=notice.kind, message=notice.message)
        self.busy_s += seconds
        self.tokens += tokens
        self.real_tokens += real_tokens

    def retry_is_due(self, state: RunState) -> bool:
        """Return whether a save that failed is to be tried again now."""
        return self._retry_at is not None and updates_applied(state) >= self._retry_at

    def _save(self, state: RunState, *, best: bool, pending: bool) -> None:
        start = time.monotonic()
        host = self.store.take(state)
        path = str(self.store.path_of(host.step))
        self.tell(Save, state, path=path, best=best, pause_s=time.monotonic() - start)
        meta = {**self.meta, "pending": pending}
        if self.log is None:
            self.store.write(host, meta=meta)
        else:
            # What the log holds now belongs to this state, and has to be as safe as it is.
            meta["log_bytes"] = self.log.settle()
            self.store.write(host, meta=meta, first=self.log.sync)
        if self._retry_at is None:
            self._wait = 1
        self._retry_at = None
        with contextlib.suppress(OSError):  # a kill costs the kernels as it costs the updates
            jit.publish()

    def _failed(self, state: RunState, error: RunDirError) -> None:
        self._retry_at = updates_applied(state) + self._wait
        self._wait = min(2 * self._wait, LONGEST_WAIT)
        uncertain = isinstance(error.__cause__, UncertainError)
        kind = "save_uncertain" if uncertain else "save_failed"
        self.tell(Verdict, state, kind=kind, message=str(error))

    @property
    def tokens_per_s(self) -> float:
        """Label tokens per second of update time, in this process."""
        return self.tokens / self.busy_s if self.busy_s else 0.0

    @property
    def real_tokens_per_s(self) -> float:
        """Tokens of the rows per second of update time, in this process."""
        return self.real_tokens / self.busy_s if self.busy_s else 0.0

    def lap(self) -> float:
        """Return the seconds since the last lap, or since the recorder was made."""
        start, self._lap = self._lap, time.monotonic()
        return self._lap - start


def _write(sink: Sink, event: Event) -> RunDirError | None:
    try:
        sink.write(event)
    except RunDirError as error:
        return error
    return None


def updates_applied(state: RunState) -> int:
    """Return the number of updates in a state as a Python int."""
    return int(state.train.step)


def remember(state: RunState, **entry: object) -> RunState:
    """Return the state with one more entry in its history; no clock value belongs there.

    A history that has grown to 2,048 entries is thinned first, so that an update and a checkpoint
    cost the same however long the run is. The log of events keeps every one.
    """
    when = {"update": updates_applied(state), "epoch": state.epoch}
    history = state.history if len(state.history) < LONGEST_HISTORY else thinned(state.history)
    return attrs.evolve(state, history=(*history, {**entry, **when}))


def thinned(history: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Return every second entry of each kind of event, the first and the last always.

    Example:
        >>> kept = thinned([{"event": "step", "update": i} for i in range(6)])
        >>> [entry["update"] for entry in kept]
        [0, 2, 4, 5]
    """
    last = {entry["event"]: i for i, entry in enumerate(history)}
    seen: Counter[Any] = Counter()
    kept: list[dict[str, Any]] = []
    for i, entry in enumerate(history):
        kind = entry["event"]
        if seen[kind] % 2 == 0 or i == last[kind]:
            kept.append(entry)
        seen[kind] += 1
    return tuple(kept)
