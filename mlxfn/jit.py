"""Where MLX keeps the kernels that it compiles at run time: in a private folder, kept warm.

On Linux, ``mx.compile`` on the CPU writes C++ into ``$TMPDIR/mlx/<version>/cpu``, runs ``g++``
and loads the result from there. The default, ``/tmp``, can be written by everybody, and two
processes (or one that was killed) can leave a half-written library that breaks the next run.
Here every process gets a private folder of its own, filled with hard links to kernels that
earlier processes finished; what it adds is published once it is loaded, and therefore whole.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from mlxfn import compiler
from mlxfn.cachedir import private_cache, sound

OFF = "MLXFN_COMPILE_CACHE"  # set to "off" to leave MLX's own folders alone
_KERNELS = "kernels-"
_TMPDIR_BEFORE = "MLXFN_TMPDIR"  # what TMPDIR was, for the processes that this one starts
MAX_KERNELS = 2000  # about 16 kB each; constants are part of a kernel, so they can pile up
ABANDONED_AFTER_S = 3600.0

_folder: Path | None = None
_shared: Path | None = None
_published: set[Path] = set()


def setup() -> Path | None:
    """Give this process a private, warm folder for compiled kernels.

    ``TMPDIR`` and ``PATH`` are changed for MLX's C++ only (``os.putenv``): ``os.environ`` and
    Python's ``tempfile`` keep what they had, in processes of mlxfn that this one starts as well.

    Returns:
        The folder, or None where MLX needs none (macOS, Windows, ``MLXFN_COMPILE_CACHE=off``).
    """
    global _folder, _shared  # noqa: PLW0603 - they belong to the process, like TMPDIR itself
    if _folder is not None or sys.platform != "linux" or os.environ.get(OFF) == "off":
        return _folder
    _forget_inherited()
    tempfile.gettempdir()  # let Python settle on its folder before C++ sees another one
    _shared = private_cache(_KERNELS + compiler.processor())
    _sweep(_shared)
    _folder = Path(tempfile.mkdtemp(prefix="process-", dir=_shared))
    _hold(_folder)
    whole = _shared / "whole"
    _link(_sound_ones(whole), whole, _folder / "mlx")
    os.putenv("TMPDIR", str(_folder))
    native = compiler.native(_shared)
    if native is not None:
        os.putenv("PATH", os.pathsep.join([str(native), os.environ.get("PATH", os.defpath)]))
    if "MLX_PTX_CACHE_DIR" not in os.environ:
        os.putenv("MLX_PTX_CACHE_DIR", str(private_cache("ptx")))
    atexit.register(_finish, _folder, os.getpid())
    if shutil.which("g++") is None:
        warnings.warn(
            "g++ is not in PATH, so MLX does not compile on the CPU and runs each operation on "
            "its own; install it, for example: apt install g++",
            RuntimeWarning,
            stacklevel=2,
        )
    return _folder


def _forget_inherited() -> None:
    """Take back what a process like this one has set for its own C++ and passed on to us."""
    if "PATH" in os.environ:
        os.environ["PATH"] = compiler.without(os.environ["PATH"], _KERNELS)
    if Path(os.environ.get("TMPDIR", "")).parent.name.startswith(_KERNELS):
        os.environ["TMPDIR"] = os.environ.get(_TMPDIR_BEFORE, "")  # empty counts as not set
        tempfile.tempdir = None  # whoever asked before this import was told the wrong folder
    os.environ[_TMPDIR_BEFORE] = os.environ.get("TMPDIR", "")


def publish() -> None:
    """Give the kernels that this process has loaded to those that start after it.

    Called when the process ends and after each save of a run, so that a kill does not lose what
    it has compiled. Only what is mapped into memory counts: a file that ``g++`` is still writing
    is not. Where nothing is new it takes a millisecond or two.

    Raises:
        OSError: It cannot be seen what is loaded.
    """
    if _folder is None or _shared is None:
        return
    own = _folder / "mlx"
    with Path("/proc/self/maps").open(encoding="utf-8", errors="surrogateescape") as maps:
        mapped = {Path(line.rstrip("\n")[line.index("/") :]) for line in maps if str(own) in line}
    if mapped - _published:
        _link(mapped - _published, own, _shared / "whole")
        _published.update(mapped)
        _prune(_shared / "whole")


def _hold(folder: Path) -> int:
    """Lock the folder for as long as this process lives; a kill frees it too."""
    handle = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def _finish(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child must not take the folder away from its parent
        with contextlib.suppress(OSError):  # the next process starts cold, no worse
            publish()
        shutil.rmtree(folder, ignore_errors=True)


def _link(libraries: Iterable[Path], source: Path, target: Path) -> None:
    """Hard-link libraries from below ``source`` to below ``target``; a link is never half."""
    for library in libraries:
        link = target / library.relative_to(source)
        try:
            link.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.link(library, link)
        except OSError:  # there already, or a file system without links: a cold start at worst
            continue


def _sound_ones(whole: Path) -> Iterator[Path]:
    """Yield the libraries that can be loaded, and remove the others to make room for new ones."""
    for library in whole.rglob("*.so"):
        if sound(library):
            yield library
        else:
            with contextlib.suppress(OSError):
                library.unlink()


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
