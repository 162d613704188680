"""In which order, and how far ahead of the device, MLX evaluates: set before it first does."""

from __future__ import annotations

import os
import sys

_SIZE = "MLX_MAX_MB_PER_BUFFER"
MEGABYTES = 100
"""Inputs after which work is handed to a CUDA device; MLX's own choice is 1000 on Hopper."""


def setup() -> None:
    """Let MLX evaluate depth first, and run less far ahead of a CUDA device.

    MLX evaluates breadth first, up to 20 arrays wide, which makes gradients wait for their use
    with all that they are made of: depth first, a small model with every layer recomputed took
    152 MB instead of 267. It lets a device have ten buffers of work, and what these touch stays
    alive: on an H200 the update of a 7 B model peaked at 30.0 GB with buffers of 100 MB and at
    33.2 with 400, in the same time. Neither changes a value. What the environment says already
    is left as it is.

    Example:
        >>> setup()
        >>> os.environ["MLX_BFS_MAX_WIDTH"]
        '1'
    """
    os.environ.setdefault("MLX_BFS_MAX_WIDTH", "1")
    if sys.platform == "linux":  # on a Mac MLX chooses 40 to 50 itself
        os.environ.setdefault(_SIZE, str(MEGABYTES))


def mb_per_buffer() -> int:
    """Return the megabytes of inputs after which work is handed to the device.

    Example:
        >>> mb_per_buffer() > 0
        True
    """
    given = os.environ.get(_SIZE, "")
    return int(given) if given.isdigit() and int(given) else 50
