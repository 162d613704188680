"""Compiled kernels: in a private folder, whole or not at all, warm the next time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlxfn import blas, cachedir, jit

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or blas._has_cuda(), reason="MLX compiles to files on a Linux CPU only"
)

COMPILE = """
import mlxfn, mlx.core as mx
print(mlxfn.jit.setup())
mx.eval(mx.compile(lambda x: mx.exp(x) * 2 + 1)(mx.ones((3,))))
"""


def run(code: str, cache: Path, **environment: str) -> str:
    """Run code in a process of its own with this cache; an empty variable is taken away."""
    full = {**os.environ, "XDG_CACHE_HOME": str(cache), **environment}
    full = {name: value for name, value in full.items() if value}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=full, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def kernels(cache: Path) -> list[Path]:
    """List the libraries that processes have published."""
    return sorted((cache / "mlxfn").glob("kernels-*/whole/**/*.so"))


def test_kernels_are_published_whole_and_found_by_the_next_process(tmp_path):
    """Each cold kernel costs a second of g++: the second process must do without g++."""
    folder = run(COMPILE, tmp_path).split()[-1]
    assert len(kernels(tmp_path)) == 1
    assert not Path(folder).exists()
    run(COMPILE, tmp_path, PATH="/nonexistent", PYTHONWARNINGS="ignore", MLX_DISABLE_COMPILE="")
    code = (
        COMPILE.replace("import mlxfn", "import mlxfn, os").replace(
            "print(mlxfn.jit.setup())", "folder = mlxfn.jit.setup()"
        )
        + "print([p.name for p in folder.rglob('*.cpp')])"
    )
    assert run(code, tmp_path).strip() == "[]"


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "link", "foreign"])
def test_a_damaged_or_foreign_kernel_is_never_loaded_and_made_anew(tmp_path, damage):
    """A library cut short ends every later run with a bus error; a planted one runs its code."""
    run(COMPILE, tmp_path)
    (kernel,) = kernels(tmp_path)
    good = kernel.read_bytes()
    bad = {"cut": good[:-1], "empty": b"", "zeros": good[:-64] + bytes(64)}.get(damage, good)
    kernel.unlink()
    if damage == "link":
        (tmp_path / "planted.so").write_bytes(good)
        kernel.symlink_to(tmp_path / "planted.so")
    else:
        kernel.write_bytes(bad)
    if damage == "foreign":
        if os.getuid() != 0:
            pytest.skip("only root can give files away")
        os.chown(kernel, 65534, 65534)
    assert not cachedir.sound(kernel)
    code = COMPILE.replace("print(mlxfn.jit.setup())", "print(*mlxfn.jit.setup().rglob('*.so'))")
    assert run(code, tmp_path).split() == []
    (again,) = kernels(tmp_path)
    assert cachedir.sound(again)


def test_a_process_that_is_killed_publishes_nothing(tmp_path):
    """A library that g++ had half written would break every later run."""
    code = COMPILE + "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    full = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=full, capture_output=True, check=False)
    assert kernels(tmp_path) == []


def test_what_is_loaded_is_published_at_any_time_and_what_is_not_never_is(tmp_path):
    """A run that is killed later keeps its kernels warm, but a file still being written is none."""
    code = (
        COMPILE
        + """
folder = mlxfn.jit.setup()
(next(folder.rglob("*.so")).parent / "libhalf.so").write_bytes(b"ELF")
mlxfn.jit.publish()
import os, signal; os.kill(os.getpid(), signal.SIGKILL)
"""
    )
    full = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=full, capture_output=True, check=False)
    (kernel,) = kernels(tmp_path)
    assert kernel.name != "libhalf.so"


def test_a_run_that_is_killed_keeps_the_kernels_of_its_last_save(tmp_path):
    """A machine that is taken away every hour would compile for the first minutes of each."""
    code = f"""{COMPILE}
mx.disable_compile()  # one kernel is enough
import os, signal
from pathlib import Path
from mlxfn import ending
from tests.support.runs import small_config
ending.export = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
mlxfn.train(small_config(Path("run"), train__max_steps=2, eval__eval_at_start=False))
"""
    place = {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])}
    place = {**os.environ, **place}
    place.pop("MLX_DISABLE_COMPILE", None)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=place, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(kernels(tmp_path)) == 1


def test_folders_of_killed_processes_are_swept_and_living_ones_are_not(tmp_path):
    """A kill must not fill the disk; a run of two days must keep its folder."""
    old = time.time() - 2 * jit.ABANDONED_AFTER_S
    for name in ("process-dead", "process-alive"):
        (tmp_path / name).mkdir()
    handle = jit._hold(tmp_path / "process-alive")
    for name in ("process-dead", "process-alive"):
        os.utime(tmp_path / name, (old, old))
    jit._sweep(tmp_path)
    os.close(handle)
    assert [path.name for path in tmp_path.iterdir()] == ["process-alive"]


def test_a_folder_that_was_just_made_is_left_alone(tmp_path):
    """Between making a folder and locking it, another process may sweep."""
    (tmp_path / "process-new").mkdir()
    jit._sweep(tmp_path)
    assert (tmp_path / "process-new").exists()


def test_the_oldest_kernels_go_first(tmp_path, monkeypatch):
    """Constants are part of a kernel's name, so a cache without a bound grows for ever."""
    monkeypatch.setattr(jit, "MAX_KERNELS", 2)
    for age, name in enumerate(("a", "b", "c")):
        (tmp_path / f"{name}.so").write_bytes(b"")
        os.utime(tmp_path / f"{name}.so", (age, age))
    jit._prune(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.so", "c.so"]


def test_python_keeps_its_own_temporary_folder(tmp_path):
    """Only MLX's C++ is to see another TMPDIR."""
    code = "import mlxfn, os, tempfile; print(tempfile.gettempdir(), os.environ.get('TMPDIR'))"
    plain = run(code.replace("mlxfn, ", ""), tmp_path, TMPDIR="")
    assert run(code, tmp_path, TMPDIR="") == plain
    assert run(code, tmp_path, TMPDIR=str(tmp_path)).split() == [str(tmp_path)] * 2


def test_a_forked_child_leaves_its_parents_folder_alone(tmp_path):
    """A child that ends would otherwise take the parent's kernels away in the middle of a run."""
    code = """
import mlxfn, os, sys
folder = mlxfn.jit.setup()
if os.fork() == 0:
    sys.exit(0)
os.wait()
print(folder.is_dir())
"""
    assert run(code, tmp_path).strip() == "True"


def test_a_machine_without_gpp_is_warned(tmp_path):
    """Without it mx.compile silently becomes the identity, several times slower."""
    code = "import warnings; warnings.simplefilter('error'); import mlxfn"
    full = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=full, check=False
    )
    assert "g++ is not in PATH" in done.stderr


def test_it_can_be_switched_off(tmp_path):
    """Somebody who inspects what MLX writes wants it in MLX's own place."""
    code = "import mlxfn; print(mlxfn.jit.setup())"
    assert run(code, tmp_path, MLXFN_COMPILE_CACHE="off").strip() == "None"


def test_a_process_started_by_another_one_keeps_its_own_temporary_folder(tmp_path):
    """TMPDIR is inherited; Python's tempfile of a child must not write among the kernels."""
    child = "import tempfile; tempfile.gettempdir(); import mlxfn; print(tempfile.gettempdir())"
    parent = f"import mlxfn, subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    environment.pop("MLXFN_TMPDIR", None)
    done = subprocess.run(
        [sys.executable, "-c", parent], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(tmp_path)
