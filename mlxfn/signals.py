"""Stopping on request: the first signal is remembered, the second one ends the process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

from mlxfn.errors import MlxfnError

STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_ONE_WISH_S = 0.3  # launchers pass on a Ctrl-C that the terminal has sent to everybody already

T = TypeVar("T")
Hear = Callable[[str, bool], None]
"""Called in another thread with a signal's name, and whether it ends the process now."""


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

    Python runs handlers between two of its own instructions, and so after the update that MLX is
    computing. Signals are heard at once all the same, by a thread.

    Args:
        hear: Called at once with the first signal and with the one that ends the process.

    Example:
        >>> with StopRequest() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.exit_code, stop.name
        (143, 'SIGTERM')
    """

    def __init__(self, hear: Hear | None = None) -> None:
        self._hear = hear
        self._ear: _Ear | None = None
        self._number: int | None = None
        self._since: float | None = None  # when the first one was heard
        self._giving_up = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in STOPPING:
                # A signal that the parent told us to ignore (nohup) stays ignored.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
            self._ear = _Ear.open(self._heard)
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
        if self._ear is not None:
            self._ear.close()

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._ear is None:
            self._heard(number)
        if self._number is None:
            self._number = number
            if self._giving_up:
                raise Interrupted

    def _heard(self, number: int) -> None:
        """Answer a signal that has just come."""
        if number not in self._before:
            return  # somebody else's
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._tell(number, last=False)
        elif number != signal.SIGHUP and now - self._since > _ONE_WISH_S:
            self._tell(number, last=True)
            os._exit(128 + number)

    def _tell(self, number: int, *, last: bool) -> None:
        if self._hear is not None:
            with suppress(Exception):  # nobody there to be told: the stop is what matters
                self._hear(signal.Signals(number).name, last)

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


class _Ear:
    """A thread that hears signals while the main thread waits for MLX.

    Args:
        fd: The pipe that the system writes the numbers of signals to.
        hear: What is called with each.
    """

    def __init__(self, fd: int, hear: Callable[[int], None]) -> None:
        self._fd = fd
        self._thread = threading.Thread(
            target=_listen, args=(fd, hear), name="signals", daemon=True
        )

    @classmethod
    def open(cls, hear: Callable[[int], None]) -> Self | None:
        """Begin to listen; None where somebody else listens already, as asyncio does."""
        fd, end = os.pipe()
        os.set_blocking(end, False)
        before = signal.set_wakeup_fd(end, warn_on_full_buffer=False)
        if before != -1:
            signal.set_wakeup_fd(before)
            os.close(end)
            os.close(fd)
            return None
        ear = cls(fd, hear)
        ear._thread.start()
        return ear

    def close(self) -> None:
        """Hear what has come, and no more."""
        os.close(signal.set_wakeup_fd(-1))
        self._thread.join(timeout=1.0)
        if not self._thread.is_alive():
            os.close(self._fd)


def _listen(fd: int, hear: Callable[[int], None]) -> None:
    while numbers := os.read(fd, 64):
        for number in numbers:
            hear(number)
