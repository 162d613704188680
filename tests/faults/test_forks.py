"""Runs killed, stopped and resumed in numbers: see ``driver.py`` for how, ``soak.py`` for more."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KILLS = 190  # and ten through the installed command, in test_kill.py
JOBS = 2
ROOT = Path(__file__).parents[2]
# Eager: the kernels' compiler is not what is tested here, and it is slow on a cold machine.
ENVIRONMENT = {"MLX_DISABLE_COMPILE": "1", "HF_HUB_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Metal cannot be used after a fork")


def campaign(folder: Path, name: str, count: int, seeds: list[int]) -> list[dict[str, Any]]:
    """Run a campaign in parallel processes, one for each seed, and return their tallies."""
    print("seeds", seeds)  # shown where the test fails
    words = [sys.executable, "-m", "tests.faults.driver"]
    jobs = [
        subprocess.Popen(
            [*words, folder / str(seed), name, f"--count={count}", f"--seed={seed}"],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in seeds
    ]
    said = [job.communicate(timeout=900) for job in jobs]
    assert all(out for out, _ in said), said
    tallies = [json.loads(out) for out, _ in said]
    for tally in tallies:
        assert (tally["wrong"], tally["errors"]) == ([], "")
    return tallies


def draw() -> list[int]:
    """Return a new seed for each process."""
    return [secrets.randbelow(2**32) for _ in range(JOBS)]


def test_190_runs_killed_at_random_moments_end_with_the_same_bytes(tmp_path):
    """While loading, training, evaluating, saving, exporting and resuming: SIGKILL asks nobody."""
    tallies = campaign(tmp_path, "kill", KILLS // JOBS, draw())
    assert sum(tally["kills"] for tally in tallies) == KILLS
    assert sum(tally.get("in the training", 0) for tally in tallies) > 0


def test_a_run_resumed_from_every_update_ends_with_the_same_bytes(tmp_path):
    """With accumulation, packing, dropout and evaluation, until early stopping ends it."""
    tallies = campaign(tmp_path, "resume", JOBS, list(range(JOBS)))
    resumed = sum(tally["the same bytes, history and log"] for tally in tallies)
    assert resumed == tallies[0]["updates"] >= 50
    assert all(tally["ended by early_stopping"] for tally in tallies)


def test_runs_asked_to_stop_at_random_moments_do_and_go_on(tmp_path):
    """SIGINT, SIGTERM and SIGHUP, ten of each: the right exit code, and nothing lost."""
    tallies = campaign(tmp_path, "stop", 10 // JOBS, draw())
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        assert sum(tally[name] for tally in tallies) == 10
