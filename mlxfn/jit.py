"""Where MLX keeps the kernels that it compiles at run time: in a private folder, kept warm.

On Linux, ``mx.compile`` on the CPU writes C++ into ``$TMPDIR/mlx/<version>/cpu``, runs ``g++``
and loads the result from there. The default, ``/tmp``, can be written by everybody, and two
processes (or one that was killed) can leave a half-written library that breaks the next run.
Here every process gets a private folder of its own, filled with hard links to kernels that
earlier processes finished; what it adds is published, whole, when it ends.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import platform
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

from mlxfn.cachedir import private_cache

OFF = "MLXFN_COMPILE_CACHE"  # set to "off" to leave MLX's own folders alone
MAX_KERNELS = 2000  # about 16 kB each; constants are part of a kernel, so they can pile up
ABANDONED_AFTER_S = 3600.0

_folder: Path | None = None


def setup() -> Path | None:
    """Give this process a private, warm folder for compiled kernels.

    ``TMPDIR`` is changed for MLX's C++ only (``os.putenv``): ``os.environ`` and Python's
    ``tempfile`` keep what they had. Programs that this process starts do inherit it.

    Returns:
        The folder, or None where MLX needs none (macOS, Windows, ``MLXFN_COMPILE_CACHE=off``).
    """
    global _folder  # noqa: PLW0603 - the folder belongs to the process, like TMPDIR itself
    if _folder is not None or sys.platform != "linux" or os.environ.get(OFF) == "off":
        return _folder
    tempfile.gettempdir()  # let Python settle on its folder before C++ sees another one
    shared = private_cache("kernels-" + platform.machine())
    _sweep(shared)
    _folder = Path(tempfile.mkdtemp(prefix="process-", dir=shared))
    _hold(_folder)
    _link_all(shared / "whole", _folder / "mlx")
    os.putenv("TMPDIR", str(_folder))
    if "MLX_PTX_CACHE_DIR" not in os.environ:
        os.putenv("MLX_PTX_CACHE_DIR", str(private_cache("ptx")))
    atexit.register(_finish, shared, _folder, os.getpid())
    if shutil.which("g++") is None:
        warnings.warn(
            "g++ is not in PATH, so MLX does not compile on the CPU and runs each operation on "
            "its own; install it, for example: apt install g++",
            RuntimeWarning,
            stacklevel=2,
        )
    return _folder


def _hold(folder: Path) -> int:
    """Lock the folder for as long as this process lives; a kill frees it too."""
    handle = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def _finish(shared: Path, folder: Path, owner: int) -> None:
    if os.getpid() != owner:  # a forked child must not take the folder away from its parent
        return
    _link_all(folder / "mlx", shared / "whole")
    _prune(shared / "whole")
    shutil.rmtree(folder, ignore_errors=True)


def _link_all(source: Path, target: Path) -> None:
    """Hard-link every library below ``source`` into ``target``; a link appears whole or not."""
    for library in source.rglob("*.so"):
        link = target / library.relative_to(source)
        try:
            link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.link(library, link)
        except OSError:  # there already, or a file system without links: a cold start at worst
            continue


def _prune(whole: Path) -> None:
    libraries = sorted(whole.rglob("*.so"), key=lambda file: file.stat().st_mtime)
    for library in libraries[: max(0, len(libraries) - MAX_KERNELS)]:
        library.unlink(missing_ok=True)


def _sweep(shared: Path) -> None:
    """Remove the folders of processes that were killed."""
    for folder in shared.glob("process-*"):
        try:
            if time.time() - folder.stat().st_mtime > ABANDONED_AFTER_S and _is_free(folder):
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # another process swept it first
            continue


def _is_free(folder: Path) -> bool:
    handle = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True
