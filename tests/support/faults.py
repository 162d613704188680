"""System calls that fail or die: the real ones, counted, with one of them going wrong."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from mlxfn.files import System

CALLS = ("create", "write", "sync", "close", "replace", "sync_folder")
"""The system calls of one publication of one small piece, in order."""


class Killed(BaseException):
    """What a simulated process does instead of going on."""


class _Counting(System):
    """Count every call and let :meth:`before` decide what happens to it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def before(self, name: str) -> None:
        """Be called before each system call; whatever it raises, the call raises."""

    def _call(self, name: str, *arguments: Any) -> Any:
        self.calls.append(name)
        self.before(name)
        return getattr(System, name)(self, *arguments)

    def create(self, path: Path) -> int:
        return self._call("create", path)

    def write(self, fd: int, data: memoryview) -> int:
        return self._call("write", fd, data)

    def sync(self, fd: int) -> None:
        return self._call("sync", fd)

    def close(self, fd: int) -> None:
        return self._call("close", fd)

    def replace(self, source: Path, target: Path) -> None:
        return self._call("replace", source, target)

    def unlink(self, path: Path) -> None:
        return self._call("unlink", path)

    def sync_folder(self, folder: Path) -> None:
        return self._call("sync_folder", folder)


class Failing(_Counting):
    """Let the first call of one name fail with an error number, and every other one pass."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__()
        self.name, self.number, self.armed = name, number, True

    def before(self, name: str) -> None:
        if self.armed and name == self.name:
            self.armed = False
            raise OSError(self.number, os.strerror(self.number))


class Dying(_Counting):
    """End the process before call number ``n``: no later call happens, clean-up included."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def before(self, name: str) -> None:
        if len(self.calls) > self.n:
            raise Killed(name)


class Suicidal(_Counting):
    """Send this process SIGKILL before call number ``n``."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def before(self, name: str) -> None:
        if len(self.calls) > self.n:
            os.kill(os.getpid(), signal.SIGKILL)
