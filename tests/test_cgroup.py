"""The memory that a container leaves: both versions of control groups, and none."""

from __future__ import annotations

import mlx.core as mx
import pytest

from mlxfn import cgroup, memory

GB = 10**9


def machine(tmp_path, own: str, limits: dict[str, object]):
    """Write what Linux shows of a process's groups; return its two places."""
    (tmp_path / "own").write_text(own)
    for name, limit in limits.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{limit}\n")
    return tmp_path / "groups", tmp_path / "own"


@pytest.mark.parametrize(
    ("own", "limits", "expected"),
    [
        ("0::/\n", {"memory.max": 4 * GB}, 4 * GB),
        ("0::/\n", {"memory.max": "max"}, None),
        # A group inside another one has what both leave.
        ("0::/a/b\n", {"a/memory.max": 3 * GB, "a/b/memory.max": 5 * GB}, 3 * GB),
        ("0::/a/b\n", {"a/memory.max": "max", "a/b/memory.max": 2 * GB}, 2 * GB),
        ("0::/elsewhere\n", {"memory.max": GB}, GB),
        # Version 1, alone and beside version 2, in a container that does not see its own path.
        ("4:memory:/x\n0::/\n", {"memory/x/memory.limit_in_bytes": GB}, GB),
        ("3:cpu,memory:/docker/1\n", {"memory/memory.limit_in_bytes": 2 * GB}, 2 * GB),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": 9223372036854771712}, None),
        ("2:cpu:/\n", {"memory/memory.limit_in_bytes": GB, "memory.max": GB}, None),
        ("", {}, None),
        ("nonsense\n::\n", {"memory.max": "many"}, None),
    ],
)
def test_the_lowest_limit_around_a_process_is_found(tmp_path, own, limits, expected):
    """A run that believes in the whole machine is killed by its container, without a word."""
    assert cgroup.memory_limit(*machine(tmp_path, own, limits)) == expected


def test_a_system_without_groups_has_no_limit(tmp_path):
    """macOS, for example."""
    assert cgroup.memory_limit(tmp_path / "none", tmp_path / "nothing") is None


@pytest.mark.skipif(mx.default_device() != mx.cpu, reason="a GPU has its own memory")
def test_the_memory_of_a_device_is_what_the_container_leaves(monkeypatch):
    """Where the device is the CPU."""
    whole = memory.device_memory_gb()
    monkeypatch.setattr(cgroup, "memory_limit", lambda: GB)
    assert memory.device_memory_gb() == 1.0
    monkeypatch.setattr(cgroup, "memory_limit", lambda: 10**15)
    assert memory.device_memory_gb() >= whole
