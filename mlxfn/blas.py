"""A fast BLAS for MLX on a Linux CPU, loaded before MLX is.

The ``mlx-cpu`` wheel for Linux brings the reference BLAS, which multiplies matrices about 18
times slower than OpenBLAS. MLX takes three functions from it: ``cblas_sgemm``, ``cblas_dgemm``
and ``cblas_cgemm``. A library that offers them globally before ``mlx.core`` is imported takes
its place. This module must therefore import nothing of mlx, and ``mlxfn`` calls
:func:`setup` before anything else.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from attrs import frozen

from mlxfn.cachedir import private_cache, sound

OFF = "MLXFN_BLAS"  # set to "off" to keep the library that MLX bundles
REMEDY = "pip install scipy-openblas32 (and a C compiler), or apt install libopenblas0"

# Every function forwards to the same one under another name; `int` and the target's integer
# type are the only differences. {p}: prefix, {s}: suffix, {i}: the target's integer type.
_FUNCTION = """\
void {p}cblas_{x}gemm{s}(int, int, int, {i}, {i}, {i}, {scalar}, const {t} *, {i}, const {t} *,
                         {i}, {scalar}, {t} *, {i});
void cblas_{x}gemm(int order, int ta, int tb, int m, int n, int k, {scalar} alpha, const {t} *a,
                   int lda, const {t} *b, int ldb, {scalar} beta, {t} *c, int ldc) {{
  {p}cblas_{x}gemm{s}(order, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}}
"""
_KINDS = (
    {"x": "s", "t": "float", "scalar": "float"},
    {"x": "d", "t": "double", "scalar": "double"},
    {"x": "c", "t": "void", "scalar": "const void *"},
)


@frozen
class BlasInfo:
    """Which BLAS multiplies matrices on the CPU.

    Args:
        name: The library, in words.
        fast: False when it is the slow reference BLAS and a faster one could be had.
        detail: Where it comes from, or why it is not a faster one.
        remedy: What to install when it is the slow one, else empty.
    """

    name: str
    fast: bool
    detail: str = ""
    remedy: str = ""

    def line(self) -> str:
        """Return one line for a person.

        Example:
            >>> BlasInfo("reference BLAS", False, "nothing faster found", "install one").line()
            'reference BLAS (slow: nothing faster found; install one)'
        """
        if self.fast:
            return f"{self.name} ({self.detail})" if self.detail else self.name
        return f"{self.name} (slow: {self.detail}; {self.remedy})"


@frozen
class _Candidate:
    name: str
    library: Path
    prefix: str
    suffix: str
    integer: str


SMALL_WIDTH = 512
_THREAD_SETTERS = (
    "openblas_set_num_threads",
    "scipy_openblas_set_num_threads",
    "scipy_openblas_set_num_threads64_",
)

_info: BlasInfo | None = None


def setup() -> BlasInfo:
    """Load the fastest BLAS that can be found, once per process.

    Returns:
        What is in use now. Nothing is raised and nothing is printed: a machine without a fast
        BLAS still trains, and :func:`info` says what to install.
    """
    global _info  # noqa: PLW0603 - what a process has loaded is global by nature
    if _info is None:
        _info = _choose()
    return _info


def info() -> BlasInfo:
    """Return what :func:`setup` found.

    Example:
        >>> info() == setup()
        True
    """
    return setup()


def suit_threads(width: int) -> None:
    """Let a small model's matrix products run on one thread each.

    Its products are too short to be shared: more threads bring nothing on an idle machine, and on
    a busy one they wait for each other (measured: 4 s or 61 s for the same 30 updates). Where
    ``OPENBLAS_NUM_THREADS`` is set, that stays.

    Args:
        width: Width of the model's residual stream.
    """
    if width >= SMALL_WIDTH or "OPENBLAS_NUM_THREADS" in os.environ or not info().fast:
        return
    process = ctypes.CDLL(None)
    for name in _THREAD_SETTERS:
        if hasattr(process, name):
            getattr(process, name)(1)


def _choose() -> BlasInfo:
    if sys.platform != "linux":
        return BlasInfo("the system's BLAS", fast=True)
    if _has_cuda():
        return BlasInfo("CUDA", fast=True)
    if os.environ.get(OFF) == "off":
        return _slow(f"{OFF}=off", f"unset {OFF}")
    if _is_global("cblas_sgemm"):
        return BlasInfo("a BLAS that was loaded before mlxfn", fast=True)
    if "mlx.core" in sys.modules:
        return _slow("mlx was imported before mlxfn", "import mlxfn before mlx")
    return _load_shimmed() or _load_system() or _slow("no faster library was found", REMEDY)


def _slow(detail: str, remedy: str) -> BlasInfo:
    return BlasInfo("reference BLAS", fast=False, detail=detail, remedy=remedy)


def _has_cuda() -> bool:
    return any(_version(name) for name in ("mlx-cuda-12", "mlx-cuda-13"))


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _is_global(symbol: str) -> bool:
    return hasattr(ctypes.CDLL(None), symbol)


def _load_system() -> BlasInfo | None:
    with contextlib.suppress(OSError):  # some builds of OpenBLAS do without it
        ctypes.CDLL("libgfortran.so.5", mode=ctypes.RTLD_GLOBAL)
    try:
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return None
    return BlasInfo("OpenBLAS", fast=True, detail="libopenblas.so.0 of the system")


def _load_shimmed() -> BlasInfo | None:
    for candidate in _candidates():
        try:
            shim = _compiled_shim(candidate)
            ctypes.CDLL(str(candidate.library), mode=ctypes.RTLD_GLOBAL)
            ctypes.CDLL(str(shim), mode=ctypes.RTLD_GLOBAL)
        except (OSError, subprocess.CalledProcessError):
            continue  # no compiler, or a build without these names: the next one
        return BlasInfo("OpenBLAS", fast=True, detail=candidate.name)
    return None


def _candidates() -> list[_Candidate]:
    """List the OpenBLAS builds that Python packages bring, under their own names."""
    found = [
        _Candidate("scipy-openblas32 " + _version("scipy-openblas32"), library, "scipy_", "", "int")
        for library in _beside("scipy_openblas32", "lib/libscipy_openblas.so")
    ]
    found += [
        _Candidate("the one of numpy " + _version("numpy"), library, "scipy_", "64_", "long")
        for library in _beside("numpy", "../numpy.libs/libscipy_openblas64_*.so")
    ]
    return found


def _beside(package: str, pattern: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return []
    folder, _, name = pattern.rpartition("/")
    return sorted((Path(spec.origin).parent / folder).resolve().glob(name))


def _compiled_shim(candidate: _Candidate) -> Path:
    """Return the forwarding library, compiled at most once per user and content."""
    names = {"p": candidate.prefix, "s": candidate.suffix, "i": candidate.integer}
    source = "".join(_FUNCTION.format(**names, **kind) for kind in _KINDS)
    key = hashlib.sha256((platform.machine() + source).encode()).hexdigest()[:16]
    shim = private_cache("blas") / f"gemm-{key}.so"
    if not sound(shim):  # missing, or cut short by a power cut
        _compile(source, shim)
    return shim


def _compile(source: str, shim: Path) -> None:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise FileNotFoundError("cc")
    with tempfile.TemporaryDirectory(dir=shim.parent) as folder:
        built = Path(folder) / shim.name
        command = [compiler, "-O2", "-shared", "-fPIC", "-x", "c", "-", "-o", str(built)]
        subprocess.run(command, input=source.encode(), check=True, capture_output=True)
        built.replace(shim)  # whole or not at all, also when two processes build it at once
