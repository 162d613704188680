"""Kernels for the processor at hand: MLX compiles its own for the oldest one of the family.

On x86-64, MLX compiles kernels on the CPU with plain ``g++ -O3``. Such code may use nothing that
came after 2003, so each exponential calls a function of libm six times for its fused multiply-adds,
and is a call itself. Compiled for this processor, with the exponential inlined, a loop over it
becomes vector instructions: 0.25 ns instead of 10 ns for each value. Every bit is the same:
contraction stays off, so that no product and sum are fused that MLX has not fused, and what is
given up is only what nobody reads, the exception flags and ``errno``.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

FLAGS = (
    "-march=native",
    "-ffp-contract=off",
    "-finline-limit=5000",  # MLX's exp is longer than what -O3 inlines; a call ends the vector
    "-fno-math-errno",
    "-fno-trapping-math",
)
BIN = "bin"
_TRIAL = b'extern "C" float f(float x) { return __builtin_fmaf(x, x, __builtin_floorf(x)); }\n'


@functools.cache
def processor() -> str:
    """Return a name for kernels that are compiled alike: one home may serve several processors.

    Example:
        >>> processor().startswith(platform.machine())
        True
    """
    instructions = _instructions()
    if not instructions:
        return platform.machine()
    made_for = f"{instructions} {FLAGS}"
    return f"{platform.machine()}-{hashlib.sha256(made_for.encode()).hexdigest()[:8]}"


def _instructions() -> str:
    """Return the instruction sets of an x86-64 with fused multiply-add; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    known = platform.machine() == "x86_64" and {"fma", "avx2"} <= set(flags.split())
    return " ".join(sorted(flags.split())) if known else ""


def native(shared: Path) -> Path | None:
    """Return a folder whose ``g++`` is the real one with :data:`FLAGS`, tried out once.

    Args:
        shared: A private folder that belongs to this :func:`processor`.

    Returns:
        The folder, to be put in front of ``PATH``; None where the flags do not help or do not work.
    """
    real = shutil.which("g++")
    if real is None or not _instructions():
        return None
    text = f'#!/bin/sh\nexec {shlex.quote(str(Path(real).absolute()))} "$@" {" ".join(FLAGS)}\n'
    wrapper = shared / BIN / "g++"
    try:
        if not wrapper.is_file() or wrapper.read_text(encoding="utf-8") != text:
            _install(wrapper, text)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return wrapper.parent


def _install(wrapper: Path, text: str) -> None:
    wrapper.parent.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=wrapper.parent) as folder:
        new = Path(folder) / wrapper.name
        new.write_text(text, encoding="utf-8")
        new.chmod(0o700)
        trial = [str(new), "-x", "c++", "-O3", "-fPIC", "-shared", "-", "-o", f"{folder}/trial.so"]
        subprocess.run(trial, input=_TRIAL, check=True, capture_output=True, timeout=60)
        new.replace(wrapper)  # whole or not at all, also when two processes do it at once


def without(path: str, prefix: str) -> str:
    """Return a ``PATH`` without the folders of wrappers.

    Args:
        path: Folders, separated by colons.
        prefix: How the names of the folders begin that wrappers lie under.

    Example:
        >>> without("/home/me/.cache/mlxfn/kernels-x86_64-1f/bin:/usr/bin", "kernels-")
        '/usr/bin'
    """

    def ours(part: str) -> bool:
        folder = Path(part)
        return folder.name == BIN and folder.parent.name.startswith(prefix)

    return os.pathsep.join(part for part in path.split(os.pathsep) if not ours(part))
