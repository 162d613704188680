"""What the loop tells the world: events to the sinks, states to the checkpoint store."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs

from mlxfn.checkpoint.store import CheckpointStore
from mlxfn.events import Event, Save, Sink
from mlxfn.state import RunState

E = TypeVar("E", bound=Event)


@attrs.define(eq=False)
class Recorder:
    """The one place where the loop's events get their time and its states their file.

    Args:
        sinks: Where events go, in this order.
        store: Where states go.
        meta: What every checkpoint says about the run besides its state.
    """

    sinks: Sequence[Sink]
    store: CheckpointStore
    meta: dict[str, Any]
    tokens: float = 0.0  # label tokens of this process's updates
    busy_s: float = 0.0  # time spent in them
    _now: Callable[[], float] = time.time
    _lap: float = attrs.field(factory=time.monotonic)

    def tell(self, event_type: type[E], state: RunState, /, **fields: Any) -> None:
        """Hand an event about this state to every sink."""
        event = event_type(update=updates_applied(state), epoch=state.epoch, time=self._now(), **fields)
        for sink in self.sinks:
            sink.write(event)

    def save(self, state: RunState, *, best: bool = False) -> None:
        """Hand the state to the checkpoint store; only the copy to host memory is waited for.

        Raises:
            RunDirError: A write failed, this one or the one before.
        """
        start = time.monotonic()
        path = self.store.save(state, meta=self.meta)
        self.tell(Save, state, path=str(path), best=best, pause_s=time.monotonic() - start)

    def count(self, seconds: float, tokens: float) -> None:
        """Count one update, and surface a checkpoint that could not be written behind it.

        Raises:
            RunDirError: A write failed.
        """
        self.store.poll()
        self.busy_s += seconds
        self.tokens += tokens

    @property
    def tokens_per_s(self) -> float:
        """Label tokens per second of update time, in this process."""
        return self.tokens / self.busy_s if self.busy_s else 0.0

    def lap(self) -> float:
        """Return the seconds since the last lap, or since the recorder was made."""
        start, self._lap = self._lap, time.monotonic()
        return self._lap - start


def updates_applied(state: RunState) -> int:
    """Return the number of updates in a state as a Python int."""
    return int(state.train.step)


def remember(state: RunState, **entry: object) -> RunState:
    """Return the state with one more entry in its history; no clock value belongs there."""
    when = {"update": updates_applied(state), "epoch": state.epoch}
    return attrs.evolve(state, history=(*state.history, {**entry, **when}))
