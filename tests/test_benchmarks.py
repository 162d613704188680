"""Every benchmark still runs: the numbers of a page are worth what can be measured again."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
HELPERS = {"common", "peft_side", "plots"}  # no commands of their own
QUICK = {
    "against_mlx_lm": ["--quick"],
    "against_peft": ["--quick"],
    "checkpoint": ["--quick"],
    "data": ["padding"],
    "data_training": ["--quick"],
    "loss": ["--quick"],
    "scaling": ["--quick"],
    "startup": ["--quick"],
    "step": ["--quick"],
}


def names() -> set[str]:
    return {path.stem for path in FOLDER.glob("*.py")}


@pytest.mark.parametrize("name", QUICK)
def test_a_benchmark_prints_its_table(name):
    """A benchmark that nobody starts for a month has rotted by then."""
    command = [sys.executable, str(FOLDER / f"{name}.py"), *QUICK[name]]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("|"))
    assert lines[head + 1].startswith("|---")
    cells = lines[head].count("|")
    assert [line.count("|") for line in lines[head : head + 3]] == [cells] * 3


def test_no_benchmark_is_forgotten_here():
    """A new one comes with its quick form."""
    assert names() - HELPERS == set(QUICK)


def test_the_page_has_a_line_for_each_file():
    """Somebody who looks for a question finds the command that answers it."""
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [name for name in sorted(names()) if f"`{name}.py`" not in page] == []


def test_the_plots_show_the_figures_of_the_page():
    """A table that was measured again beside an old plot contradicts itself."""
    spec = importlib.util.spec_from_file_location("plots", FOLDER / "plots.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    drawn = module.plots(module.PAGE.read_text(encoding="utf-8"))
    old = [name for name, text in drawn.items() if (module.DOCS / name).read_text() != text]
    assert old == [], "run python benchmarks/plots.py"
