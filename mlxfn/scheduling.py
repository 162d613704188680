"""In which order, and how far ahead of the device, MLX evaluates: set before it first does."""

from __future__ import annotations

import os
import sys

_SIZE = "MLX_MAX_MB_PER_BUFFER"
FAST, TIGHT = 400, 100
"""Megabytes of inputs after which work is handed to a CUDA device; MLX's own is 1000 on Hopper."""

_given = _SIZE in os.environ


def setup() -> None:
    """Let MLX evaluate depth first, and run less far ahead of a CUDA device.

    MLX evaluates breadth first, up to 20 arrays wide, which makes gradients wait for their use
    with all that they are made of: depth first, a small model with every layer recomputed took
    152 MB instead of 267. It lets a device have ten buffers of work, and what these touch stays
    alive. Neither changes a value. What the environment says already is left as it is.

    Example:
        >>> setup()
        >>> os.environ["MLX_BFS_MAX_WIDTH"]
        '1'
    """
    os.environ.setdefault("MLX_BFS_MAX_WIDTH", "1")
    _hand_over_after(FAST)


def keep_close() -> None:
    """Hand work to the device in small buffers, for a run that was given a memory budget.

    On an H200 the update of a 7 B model peaked at 30.4 GB with buffers of 100 MB and at 33.3
    with 400, in the same time; with adapters on all linear layers the small ones took 13% longer.
    """
    _hand_over_after(TIGHT)


def _hand_over_after(megabytes: int) -> None:
    if not _given and sys.platform == "linux":  # on a Mac MLX chooses 40 to 50 itself
        os.environ[_SIZE] = str(megabytes)


def mb_per_buffer() -> int:
    """Return the megabytes of inputs after which work is handed to the device.

    Example:
        >>> mb_per_buffer() > 0
        True
    """
    given = os.environ.get(_SIZE, "")
    return int(given) if given.isdigit() and int(given) else 50
