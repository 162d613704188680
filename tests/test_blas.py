"""The fast BLAS: found, compiled privately, bound by MLX, and honest about what is in use."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from mlxfn import blas

LINUX_CPU = sys.platform == "linux" and "mlx-cpu" in packages_distributions().get("mlx", [])
on_linux_cpu = pytest.mark.skipif(not LINUX_CPU, reason="mlx brings its own fast BLAS here")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own: what is loaded cannot be unloaded."""
    full = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=full, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


@on_linux_cpu
def test_mlx_binds_to_the_shim_and_not_to_its_own_blas():
    """The loader's own words: a library that is merely loaded would change nothing."""
    code = "import mlxfn, mlx.core as mx; a = mx.ones((8, 8)); mx.eval(a @ a)"
    bindings = run(code, LD_DEBUG="bindings").stderr
    bound = [
        line
        for line in bindings.splitlines()
        if "symbol `cblas_sgemm'" in line and "libmlx.so" in line.split(" to ")[0]
    ]
    assert bound
    assert all("libblas-" not in line.split(" to ")[1] for line in bound)


@on_linux_cpu
@pytest.mark.parametrize("index", range(len(blas._candidates())))
def test_every_build_of_openblas_multiplies_like_numpy(index):
    """A wrong integer type or argument order in the shim gives wrong numbers, not an error."""
    code = f"""
import sys, types
# blas.py alone, without the package's own call of setup()
package = types.ModuleType("mlxfn"); package.__path__ = [{str(Path(blas.__file__).parent)!r}]
sys.modules["mlxfn"] = package
from mlxfn import blas
chosen = blas._candidates()[{index}]
blas._candidates = lambda: [chosen]
assert blas.setup() == blas.BlasInfo("OpenBLAS", True, chosen.name), blas.setup()
import mlx.core as mx, numpy as np
for dtype in (np.float32, np.complex64):
    a = np.random.default_rng([1]).normal(size=(33, 65)).astype(dtype)
    b = np.random.default_rng([2]).normal(size=(29, 65)).astype(dtype)
    got = np.array(mx.array(a) @ mx.array(b).T)
    assert np.allclose(got, a @ b.T, atol=1e-4), dtype
"""
    run(code)


@on_linux_cpu
def test_a_mlx_that_came_first_is_reported_with_the_remedy():
    """Nothing can be changed then; the line must say why the run is slow, and what to do."""
    code = "import mlx.core, mlxfn; print(mlxfn.blas.info().line())"
    assert "slow: mlx was imported before mlxfn; import mlxfn before mlx" in run(code).stdout


@on_linux_cpu
def test_it_can_be_switched_off():
    """Somebody who compares libraries needs the bundled one back."""
    code = "import mlxfn; print(mlxfn.blas.info().line())"
    assert "slow: MLXFN_BLAS=off" in run(code, MLXFN_BLAS="off").stdout


@on_linux_cpu
def test_a_blas_that_was_preloaded_is_kept():
    """A user who chose a library with LD_PRELOAD, or through another package, keeps it."""
    shim = blas._compiled_shim(blas._candidates()[0])
    library = str(blas._candidates()[0].library)
    code = "import mlxfn; print(mlxfn.blas.info().line())"
    assert "loaded before mlxfn" in run(code, LD_PRELOAD=f"{library} {shim}").stdout


@on_linux_cpu
def test_without_a_compiler_it_says_what_to_install(tmp_path):
    """No compiler and no system library: the run works, slowly, and says what would help."""
    code = "import mlxfn; print(mlxfn.blas.info().line())"
    done = run(code, XDG_CACHE_HOME=str(tmp_path), PATH="", PYTHONWARNINGS="ignore")
    line = done.stdout
    assert "libopenblas.so.0" in line or "pip install scipy-openblas32" in line


@on_linux_cpu
def test_a_shim_is_compiled_once_and_privately(tmp_path):
    """The second start must not pay for a compiler, and nobody else may write what is loaded."""
    code = "import mlxfn; print(mlxfn.blas.info().line())"
    run(code, XDG_CACHE_HOME=str(tmp_path))
    (shim,) = (tmp_path / "mlxfn" / "blas").iterdir()
    first = shim.stat()
    line = run(code, XDG_CACHE_HOME=str(tmp_path)).stdout
    assert (shim.stat().st_mtime_ns, shim.stat().st_ino) == (first.st_mtime_ns, first.st_ino)
    assert line.startswith("OpenBLAS (")
    assert (tmp_path / "mlxfn" / "blas").stat().st_mode & 0o777 == 0o700


@on_linux_cpu
def test_a_shim_that_was_cut_short_is_compiled_again(tmp_path):
    """A power cut must not cost the fast BLAS for ever, nor end the process that loads it."""
    code = "import mlxfn; print(mlxfn.blas.info().line())"
    run(code, XDG_CACHE_HOME=str(tmp_path))
    (shim,) = (tmp_path / "mlxfn" / "blas").iterdir()
    good = shim.read_bytes()
    os.truncate(shim, len(good) // 2)
    assert run(code, XDG_CACHE_HOME=str(tmp_path)).stdout.startswith("OpenBLAS (")
    assert shim.stat().st_size == len(good)
