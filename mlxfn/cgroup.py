"""What memory a container leaves its processes: Linux control groups of both versions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_NONE = 1 << 60  # version 1 says "no limit" with a number that no machine has


def memory_limit(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Return the lowest limit of the control groups that this process is in, in bytes.

    Args:
        root: Where the groups are mounted.
        own: The file that names those of the process.

    Returns:
        The limit; None where there is none, and on other systems than Linux.

    Example:
        >>> limit = memory_limit()
        >>> limit is None or limit > 0
        True
    """
    limits = [limit for file in _files(root, own) if (limit := _read(file)) is not None]
    return min(limits, default=None)


def _files(root: Path, own: Path) -> Iterator[Path]:
    """Yield the limit of each group and of those around it; a container may not see them all."""
    try:
        lines = own.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            base, name = root, "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = Path(path.lstrip("/"))
        yield from (base / part / name for part in (group, *group.parents))


def _read(file: Path) -> int | None:
    try:
        limit = int(file.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None
    return limit if 0 < limit < _NONE else None
