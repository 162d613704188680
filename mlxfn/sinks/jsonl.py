"""events.jsonl: one event per line, appended as it happens; the source of every curve."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from mlxfn.events import Event, to_dict
from mlxfn.files import (
    atomic_write,
    json_text,
    open_regular,
    read_file,
    sync_file,
    utf8,
    write_error,
)


@attrs.define(eq=False)
class JsonlSink:
    """Append events to a file, each with one write, so that a kill can tear the last line only.

    The file is opened for every event: nothing is buffered here, and a log that was cut back in
    between is not written to by its old name. Events that could not be written, for the disk is
    full, are kept and written with the next one that can be.

    Args:
        path: The file; the first event makes it, its folder exists.
    """

    path: Path
    _waiting: list[bytes] = attrs.field(factory=list, init=False)

    def write(self, event: Event) -> None:
        """Append one event, and those that wait.

        Raises:
            RunDirError: The file cannot be written; the event is not half in it then, and waits.
        """
        self._waiting.append(utf8(json_text(to_dict(event)) + "\n"))
        self._write()

    def settle(self) -> int:
        """Write what waits and return the length of the file in bytes.

        Raises:
            RunDirError: The file cannot be written or asked.
        """
        if self._waiting:
            self._write()
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise write_error("the log of events", self.path, error) from error

    def sync(self) -> None:
        """Put what is written on the medium; any thread may ask for it.

        Raises:
            RunDirError: The file cannot be synced.
        """
        try:
            sync_file(self.path)
        except OSError as error:
            raise write_error("the log of events", self.path, error) from error

    def _write(self) -> None:
        try:
            _append(self.path, b"".join(self._waiting))
        except OSError as error:
            raise write_error("the log of events", self.path, error) from error
        self._waiting.clear()

    def close(self) -> None:
        """Do nothing: every event is written already."""


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    r"""Yield the events of a log in order; lines that are none, such as a torn one, are left out.

    Args:
        path: The file; where there is none, there are no events.

    Raises:
        OSError: It cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "events.jsonl"
        >>> _ = path.write_text('{"event": "step", "update": 1}\n{"event": "st')
        >>> list(read_events(path))
        [{'event': 'step', 'update': 1}]
    """
    for _, event in _lines(path):
        if event is not None:
            yield event


def cut_back(path: Path, update: float = float("inf")) -> int:
    """Remove the events after an update, and lines that are no events, from a log.

    A run that goes on from a checkpoint does these updates again; without the cut they would
    appear twice. The file is replaced as a whole, so a kill leaves the old or the new one.

    Args:
        path: The file; it need not exist.
        update: The last update that stays; every one if not given.

    Returns:
        How many lines were removed.

    Raises:
        OSError: The file cannot be read or written.
    """
    lines = list(_lines(path))
    kept = [line for line, event in lines if event and event.get("update", 0) <= update]
    if len(kept) < len(lines):
        atomic_write(path, kept)
    return len(lines) - len(kept)


def cut_to(path: Path, size: int) -> bool:
    """Cut a log to a length that it had before, where that is the end of one of its lines.

    Args:
        path: The file.
        size: Its length in bytes at an earlier time.

    Returns:
        Whether it has that length now. False where it is shorter, or was changed by hand: then
        nothing is done to it.

    Raises:
        OSError: The file cannot be read or written.
    """
    try:
        fd = open_regular(path, os.O_RDWR)
    except FileNotFoundError:
        return size == 0
    try:
        fits = os.fstat(fd).st_size >= size and (not size or os.pread(fd, 1, size - 1) == b"\n")
        if fits:
            os.ftruncate(fd, size)
    finally:
        os.close(fd)
    return fits


def _append(path: Path, line: bytes) -> None:
    fd = open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        size = os.fstat(fd).st_size
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(fd, rest) :]
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk must not leave half a line
                os.ftruncate(fd, size)
            raise
    finally:
        os.close(fd)


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Yield each line with its end, and the event in it unless it is torn or something else."""
    try:
        data = read_file(path)
    except FileNotFoundError:
        return
    for line in data.splitlines(keepends=True):
        yield line, _event(line)


def _event(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(event, dict) and isinstance(event.get("update", 0), int)
    return event if whole else None
