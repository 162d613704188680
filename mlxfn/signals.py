"""Stopping on request: the first signal is remembered, the second one ends the process."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class StopRequest:
    """A context in which signals ask the loop to stop after the update it is in.

    The handlers of before are put back at the end. Outside the main thread, where Python
    allows no handlers, nothing is installed.

    Example:
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.exit_code, stop.name
        (143, 'SIGTERM')
    """

    def __init__(self) -> None:
        self._number: int | None = None
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
            os._exit(128 + number)
        self._number = number

    def __bool__(self) -> bool:
        """Whether a signal has come."""
        return self._number is not None

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, or 0 while none has come."""
        return 128 + self._number if self._number is not None else 0

    @property
    def name(self) -> str:
        """The signal's name, or nothing."""
        return signal.Signals(self._number).name if self._number is not None else ""
