"""Files that are either old or new, never half: the one way mlxfn publishes what it writes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from mlxfn.errors import RunDirError

Bytes = bytes | bytearray | memoryview
"""Anything that can be handed to a write as it lies in memory."""

_SLICE = 64 << 20  # bytes in one write call; macOS refuses more than 2 GiB - 1 at once
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_HERE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.EISDIR,
    errno.ENAMETOOLONG, errno.ENOENT,
}  # fmt: skip
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOTTY}  # this file system has no such operation


class UncertainError(OSError):
    """The file is published and complete, but a power cut may still undo it."""


class System:
    """The system calls of a publication, in one place so that a test can let each of them fail."""

    def create(self, path: Path) -> int:
        """Open a file for writing that did not exist; a link in its place is refused."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, 0o666)

    def write(self, fd: int, data: memoryview) -> int:
        """Write some of the bytes and return how many."""
        return os.write(fd, data)

    def sync(self, fd: int) -> None:
        """Put a file on the medium, through the drive's own cache where the system can."""
        _sync(fd)

    def close(self, fd: int) -> None:
        """Close a file."""
        os.close(fd)

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file over another one, in one indivisible step."""
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()

    def sync_folder(self, folder: Path) -> None:
        """Put the names in a folder on the medium."""
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _sync(fd)
        finally:
            os.close(fd)


SYSTEM = System()
"""The real system calls."""


def atomic_write(path: Path, data: bytes | Iterable[Bytes], *, system: System = SYSTEM) -> None:
    """Write a file so that every kill and every power cut leaves the old one or the new one.

    The bytes go into a new temporary file beside the target, which is synced and renamed over
    it; then the folder is synced. After an error the temporary file is gone and the target is as
    it was.

    Args:
        path: The file to publish; its folder exists.
        data: Its content, in one piece or in several.
        system: The system calls to use.

    Raises:
        UncertainError: The file is published, but the folder could not be synced.
        OSError: Anything else went wrong; nothing is published.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "report.json"
        >>> atomic_write(path, b"{}")
        >>> path.read_bytes()
        b'{}'
    """
    pieces = (data,) if isinstance(data, bytes) else data
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    fd = system.create(temporary)
    try:
        _fill(fd, pieces, system)
        system.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            system.unlink(temporary)
        raise
    try:
        system.sync_folder(path.parent)
    except OSError as error:
        raise UncertainError(error.errno, error.strerror, str(path)) from error


def _fill(fd: int, pieces: Iterable[Bytes], system: System) -> None:
    try:
        for piece in pieces:
            rest = memoryview(piece).cast("B")
            while rest:
                rest = rest[system.write(fd, rest[:_SLICE]) :]
        system.sync(fd)
    finally:
        system.close(fd)


def _sync(fd: int) -> None:
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:  # macOS: fsync alone leaves the data in the drive's cache
        try:
            fcntl.fcntl(fd, full)
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise
        else:
            return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def sync_file(path: Path, *, system: System = SYSTEM) -> None:
    """Put what was written to a file on the medium; a file that is not there needs nothing.

    Raises:
        OSError: It cannot be opened or synced.
    """
    try:
        fd = open_regular(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        system.sync(fd)
    finally:
        os.close(fd)


def sweep(folder: Path) -> list[Path]:
    """Remove the temporary files that killed writers left in a folder, and return their paths.

    Only names that :func:`atomic_write` makes are touched, and a link is removed, not followed.
    Nobody else may be writing into the folder.

    Raises:
        OSError: The folder cannot be read, or a file in it cannot be removed.
    """
    if not folder.is_dir():
        return []
    orphans = [path for path in sorted(folder.iterdir()) if TEMPORARY.fullmatch(path.name)]
    orphans = [path for path in orphans if not stat.S_ISDIR(path.lstat().st_mode)]
    for path in orphans:
        path.unlink(missing_ok=True)
    return orphans


def expand(path: str | Path) -> Path:
    """Return a path with a leading ``~`` replaced by the home folder.

    Raises:
        OSError: There is no such user, so that one message serves for every wrong path.

    Example:
        >>> expand("runs/first").as_posix()
        'runs/first'
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(errno.ENOENT, "no such user", str(path)) from error


def open_regular(path: Path, flags: int) -> int:
    """Open a regular file and return its descriptor; links, pipes and devices are refused.

    Args:
        path: The file.
        flags: As for ``os.open``.

    Raises:
        OSError: It is not a regular file, or cannot be opened.
    """
    # O_NONBLOCK: opening a named pipe would otherwise wait for its other end for ever.
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading; see :func:`open_regular`."""
    return os.fdopen(open_regular(path, os.O_RDONLY), "rb")


def read_file(path: Path) -> bytes:
    """Return the content of a regular file; see :func:`open_file`."""
    with open_file(path) as file:
        return file.read()


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return JSON that every parser reads: NaN and the infinities, which JSON lacks, are null.

    Example:
        >>> json_text({"loss": float("nan"), "tokens": 3})
        '{"loss": null, "tokens": 3}'
    """
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False, indent=indent)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def utf8(text: str) -> bytes:
    """Return text as bytes; half a surrogate pair becomes its escape, which JSON understands."""
    return text.encode("utf-8", "backslashreplace")


def write_error(what: str, path: Path, error: OSError) -> RunDirError:
    """Return the error a user sees when a file of the run directory could not be written.

    Args:
        what: The thing that was written, as in "the checkpoint of update 100".
        path: Where it was to go.
        error: What the system said.

    Example:
        >>> print(write_error("the report", Path("r.json"), OSError(errno.ENOSPC, "No space left")))
        the report could not be written: No space left
          where:    r.json
          remedy:   free some disk space, then continue with --resume
    """
    said = error.strerror or str(error)
    if isinstance(error, UncertainError):
        return RunDirError(
            f"{what} is written, but a power cut may still undo it: {said}",
            where=path,
            remedy="check the disk; the file itself is complete",
        )
    if error.errno in _FULL:
        remedy = "free some disk space, then continue with --resume"
    elif error.errno in _NOT_HERE:
        remedy = "get write permission there, or choose another folder with --output"
    else:
        remedy = "check the disk, then continue with --resume"
    return RunDirError(f"{what} could not be written: {said}", where=path, remedy=remedy)
