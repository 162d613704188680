"""The private cache folder of a user: code that is loaded from it must be the user's own."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import stat
import tempfile
from pathlib import Path


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
