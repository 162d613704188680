"""Run every check of the project: ``python -m tests``, from the root of the repository.

Formatting, lint, types and the documentation come first, the tests last. All of them run even
when an early one fails; the exit code says whether any did. Arguments go to pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
WORKERS = min(os.cpu_count() or 1, 4)


def main(arguments: list[str]) -> int:
    """Run the checks one after another and return 0 when all of them passed."""
    commands = {
        "format": ["ruff", "format", "--check", "."],
        "lint": ["ruff", "check", "."],
        "types": ["pyright", "--pythonpath", sys.executable],
        # without --quiet, which would swallow the warnings that it is to fail on
        "docs": ["mkdocs", "build", "--strict"],
        "tests": ["pytest", "-n", str(WORKERS), *arguments],
    }
    failed = [name for name, command in commands.items() if not _passes(name, command)]
    if failed:
        print("failed:", ", ".join(failed), file=sys.stderr)
    return 1 if failed else 0


def _passes(name: str, command: list[str]) -> bool:
    print(f"== {name}: {' '.join(command)}", flush=True)
    # One BLAS thread for each of several workers; the material theme prints an advertisement.
    defaults = {"OPENBLAS_NUM_THREADS": "1", "NO_MKDOCS_2_WARNING": "1"}
    environment = {**defaults, **os.environ}
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, check=False)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
