"""Kernels compiled for the processor at hand: faster, with the same bits, and in nobody's way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlxfn import blas, compiler

pytestmark = pytest.mark.skipif(
    not compiler._instructions() or shutil.which("g++") is None or blas._has_cuda(),
    reason="for x86-64 with fused multiply-add and a compiler",
)

EDGES = """
EDGES = [0.0, -0.0, 1e-40, 0.5, 87.9, 88.0, 88.1, -87.9, -88.0, -88.1, 3e38, -3e38]
EDGES += [float("inf"), float("-inf"), float("nan")]
"""
DIGEST = (
    EDGES
    + """
import mlxfn, hashlib, mlx.core as mx, numpy as np
x = 9 * mx.random.normal((4, 133), key=mx.random.key(0))
x = mx.concatenate([x, mx.broadcast_to(mx.array(EDGES)[:, None], (len(EDGES), 133))])
f = mx.compile(lambda x: (mx.tanh(mx.exp(x) * 2 + x / 3) - mx.sigmoid(x), x * x + x))
print([hashlib.sha256(np.array(part)).hexdigest() for part in f(x)])
"""
)


def run(code: str, cache: Path, **environment: str) -> str:
    full = {**os.environ, "XDG_CACHE_HOME": str(cache), "TMPDIR": str(cache), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=full, check=True
    ).stdout


def test_kernels_for_this_processor_give_the_bits_of_kernels_for_any(tmp_path):
    """A run's result must not depend on which of the two compiled it; only its time may."""
    plain = run(DIGEST, tmp_path, MLXFN_COMPILE_CACHE="off")
    native = run(DIGEST, tmp_path)
    assert native == plain
    kernels = (tmp_path / "mlxfn").glob(f"kernels-{compiler.processor()}/whole/**/*.so")
    texts = {
        name: [file.read_bytes() for file in files]
        for name, files in {"native": kernels, "plain": tmp_path.glob("mlx/**/*.so")}.items()
    }
    assert any(b"fmaf" in text for text in texts["plain"])
    assert texts["native"]
    assert not any(b"fmaf" in text for text in texts["native"])


def test_exponentials_are_inlined_so_that_loops_over_them_become_vectors(tmp_path):
    """A call in a loop keeps it from being vectorised, and costs eight times the whole of it."""
    called = b"simd3exp"  # a function of its own keeps its name in the library
    run(DIGEST, tmp_path, MLXFN_COMPILE_CACHE="off")
    run(DIGEST, tmp_path)
    assert any(called in file.read_bytes() for file in tmp_path.glob("mlx/**/*.so"))
    kernels = list((tmp_path / "mlxfn").glob("kernels-*/whole/**/*.so"))
    assert kernels
    assert not any(called in file.read_bytes() for file in kernels)


def test_a_compiler_that_refuses_the_flags_is_left_alone(tmp_path, monkeypatch):
    """A run with slow kernels is better than none."""
    fake = tmp_path / "path" / "g++"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o700)
    monkeypatch.setenv("PATH", str(fake.parent))
    assert compiler.native(tmp_path) is None
    assert not (tmp_path / compiler.BIN / "g++").exists()


def test_a_wrapper_that_somebody_changed_is_written_anew(tmp_path):
    """It is run for every kernel: only the content that belongs there may be."""
    folder = compiler.native(tmp_path)
    assert folder is not None
    text = (folder / "g++").read_text()
    (folder / "g++").write_text(text + "echo planted\n")
    compiler.native(tmp_path)
    assert (folder / "g++").read_text() == text


def test_other_programs_are_not_compiled_with_these_flags(tmp_path):
    """A child that builds something for other machines must find the compiler of its user."""
    child = "import mlxfn, os, shutil; print(os.environ['PATH'], shutil.which('g++'))"
    parent = f"import mlxfn, subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert run(parent, tmp_path).split() == [os.environ["PATH"], shutil.which("g++")]
