"""What happens in a run, as values that sinks write and show."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import attrs


@attrs.frozen(kw_only=True)
class Event:
    """Anything that happened; ``update`` and ``epoch`` say when, ``time`` is seconds since 1970."""

    update: int
    epoch: int
    time: float


@attrs.frozen(kw_only=True)
class Start(Event):
    """The run begins or goes on; ``run`` describes model, adapter, data and plan as JSON values."""

    resumed: bool
    run: dict[str, Any]


@attrs.frozen(kw_only=True)
class Step(Event):
    """An optimizer update that is logged."""

    loss: float  # mean over the label tokens of the update
    grad_norm: float  # before clipping
    lr: float  # learning rate
    tokens: int  # label tokens of the update
    rows: int
    finite: bool
    step_time_s: float
    tokens_per_s: float  # label tokens
    real_tokens: int  # tokens of the rows, prompts included and padding not
    real_tokens_per_s: float
    memory_gb: float
    peak_memory_gb: float


@attrs.frozen(kw_only=True)
class Eval(Event):
    """A pass over the validation rows."""

    loss: float
    perplexity: float
    tokens: int
    rows: int
    time_s: float
    best: bool


@attrs.frozen(kw_only=True)
class Epoch(Event):
    """The end of an epoch."""

    train_loss: float  # mean over the label tokens of the epoch
    valid_loss: float | None
    time_s: float  # since the epoch's start, or since the resume


@attrs.frozen(kw_only=True)
class Save(Event):
    """A checkpoint that was handed to the writer."""

    path: str
    best: bool
    pause_s: float  # how long the loop waited for it


@attrs.frozen(kw_only=True)
class Verdict(Event):
    """Something a monitor or a guard found, with the remedy in its text."""

    kind: str
    message: str


@attrs.frozen(kw_only=True)
class Sample(Event):
    """An answer of the model to a sample prompt, before or after training."""

    when: str  # "before" or "after"
    prompt: str
    text: str


@attrs.frozen(kw_only=True)
class End(Event):
    """The run is over; ``result`` is its report as JSON values."""

    reason: str
    exit_code: int
    result: dict[str, Any]


class Sink(Protocol):
    """Where events go."""

    def write(self, event: Event) -> None:
        """Take one event; a sink must not change it."""

    def close(self) -> None:
        """Finish; no event follows."""


@runtime_checkable
class Display(Protocol):
    """What a sink has besides when a person watches it; neither method is for the log."""

    def tick(self, update: int, epoch: int) -> None:
        """Take that an update is done; told after each one, unlike :class:`Step`."""

    def stopping(self, name: str, last: bool) -> None:
        """Take that a signal came, at once and in another thread; the last one ends the process."""


def displays(sinks: Iterable[Sink]) -> list[Display]:
    """Return those of the sinks that a person watches."""
    return [sink for sink in sinks if isinstance(sink, Display)]


def to_dict(event: Event) -> dict[str, Any]:
    """Return an event as JSON values, its kind under ``event``.

    Example:
        >>> to_dict(Verdict(update=3, epoch=0, time=0.0, kind="diverged", message="..."))["event"]
        'verdict'
    """
    return {"event": type(event).__name__.lower(), **attrs.asdict(event)}
