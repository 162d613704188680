"""The private cache folder of a user: code that is loaded from it must be the user's own."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import stat
import tempfile
from pathlib import Path

_ELF_HEADER = 64  # bytes, of a 64-bit object


def private_cache(name: str) -> Path:
    """Return a folder that only this user can write, made when it is not there.

    It lies under ``$XDG_CACHE_HOME/mlxfn`` (``~/.cache/mlxfn`` where that is unset). Shared
    objects are loaded from it, so a folder that belongs to somebody else, or that others may
    write, is never used: a new private temporary folder takes its place, which costs a cold
    start but runs nobody else's code.

    Args:
        name: Folder inside the cache, for example ``"compiled"``.

    Returns:
        An existing folder of mode 0700, owned by the calling user.

    Example:
        >>> folder = private_cache("doctest")
        >>> oct(folder.stat().st_mode & 0o777)
        '0o700'
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlxfn"
    try:
        base.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _owned(_owned(base) / name)
    except (OSError, RuntimeError):  # RuntimeError: no home folder
        return _owned(_temporary() / name)


@functools.cache
def _temporary() -> Path:
    folder = tempfile.mkdtemp(prefix="mlxfn-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _owned(folder: Path) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(folder)
    if found.st_mode & 0o077:
        folder.chmod(0o700)
        if found.st_mode & 0o022:  # others could have put files there before
            raise PermissionError(folder)
    return folder


def sound(library: Path) -> bool:
    """Whether a shared object in the cache is the user's own and has all of its bytes.

    A library that a power cut or a full disk cut short would end the process that loads it, and
    one that somebody else put there would run their code. The table that ends an ELF file tells
    whether it is all there.

    Args:
        library: A file, or a place where none is.

    Example:
        >>> sound(Path("nothing.so"))
        False
    """
    try:
        with os.fdopen(os.open(library, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            head = file.read(_ELF_HEADER)
            own = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid()
            if not own or len(head) < _ELF_HEADER or head[:5] != b"\x7fELF\2":
                return False
            start = int.from_bytes(head[0x28:0x30], "little")  # of the table of sections
            size, count = (int.from_bytes(head[at : at + 2], "little") for at in (0x3A, 0x3C))
            file.seek(start + size * (count - 1))
            last = file.read(size)
    except (OSError, ValueError):
        return False
    return count > 0 and len(last) == size and any(last)
