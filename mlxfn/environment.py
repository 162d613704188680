"""Where a run happens: versions, device, BLAS, platform and the commit of the working folder."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxfn import blas

PACKAGES = ("mlxfn", "mlx", "mlx-lm", "numpy", "transformers", "tokenizers", "safetensors")


def environment() -> dict[str, Any]:
    """Return a description of this process's surroundings as JSON values.

    Example:
        >>> sorted(environment())
        ['blas', 'cpus', 'device', 'device_info', 'git', 'platform', 'python', 'versions']
    """
    return {
        "versions": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "device": str(mx.default_device()),
        "device_info": {name: value for name, value in mx.device_info().items() if _plain(value)},
        "blas": blas.info().line(),
        "git": git_commit(Path.cwd()),
    }


def git_commit(folder: Path) -> dict[str, Any] | None:
    """Return the commit a folder is at and whether tracked files differ from it.

    Returns:
        ``commit`` and ``changed``, or None outside a repository or without git.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plain(value: object) -> bool:
    return isinstance(value, str | int | float)
