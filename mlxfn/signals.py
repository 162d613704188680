"""Stopping on request: the first signal is remembered, the second one ends the process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

from mlxfn.errors import MlxfnError

STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_ONE_WISH_S = 0.3  # launchers pass on a Ctrl-C that the terminal has sent to everybody already

T = TypeVar("T")


class Interrupted(BaseException):
    """Work that may be given up was given up at the request of a signal."""


class StoppedError(MlxfnError):
    """A run that a signal stopped before there was anything new to save."""

    def __init__(self, name: str, exit_code: int, where: object = None) -> None:
        super().__init__(
            f"stopped by {name} before the first update; nothing is lost",
            where=where,
            remedy="start it again, with --resume where it had begun",
        )
        self.exit_code = exit_code


class StopRequest:
    """A context in which signals ask the loop to stop after the update it is in.

    The handlers of before are put back at the end. Outside the main thread, where Python
    allows no handlers, nothing is installed.

    A second signal ends the process at once, without saving: somebody is impatient. Two in one
    moment are one wish, and SIGHUP is nobody's impatience: a terminal that closes may send it
    twice.

    Example:
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.exit_code, stop.name
        (143, 'SIGTERM')
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._since = 0.0
        self._giving_up = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                # A signal that the parent told us to ignore (nohup) stays ignored.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the handlers of before back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._number is not None:
            if number != signal.SIGHUP and time.monotonic() - self._since > _ONE_WISH_S:
                os._exit(128 + number)
            return
        self._number, self._since = number, time.monotonic()
        if self._giving_up:
            raise Interrupted

    def __bool__(self) -> bool:
        """Whether a signal has come."""
        return self._number is not None

    def check(self) -> None:
        """Give up if a signal has come.

        Raises:
            Interrupted: It has.
        """
        if self._number is not None:
            raise Interrupted

    @contextmanager
    def giving_up(self) -> Generator[None]:
        """Give up the work of the block as soon as a signal comes, wherever it is.

        Only for work that leaves nothing half done.

        Raises:
            Interrupted: A signal came, before the block or in it.
        """
        self._giving_up = True
        try:
            self.check()
            with self.excusing():
                yield
        finally:
            self._giving_up = False

    @contextmanager
    def excusing(self) -> Generator[None]:
        """Take a failure of MLX for the stop that caused it.

        Ctrl-C goes to every process of a terminal, and so also to the compiler that MLX is
        waiting for: the update fails, and the state from before it is as good as ever.

        Raises:
            Interrupted: MLX failed after a signal had come.
        """
        try:
            yield
        except RuntimeError:
            self.check()
            raise

    def until(self, items: Iterable[T]) -> Iterator[T]:
        """Yield items until a signal comes.

        Raises:
            Interrupted: It came.
        """
        for item in items:
            self.check()
            yield item

    def error(self, where: object = None) -> StoppedError:
        """Return the error for a run that was stopped before it had anything to save."""
        return StoppedError(self.name, self.exit_code, where)

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, or 0 while none has come."""
        return 128 + self._number if self._number is not None else 0

    @property
    def name(self) -> str:
        """The signal's name, or nothing."""
        return signal.Signals(self._number).name if self._number is not None else ""
