"""A training run as numbers, how far two of them are apart, and where the truth is kept."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.reference import setting

TRUTH = Path(__file__).with_name("truth.npz")


class Trajectory(NamedTuple):
    """What a run did."""

    losses: np.ndarray  # float64 [updates]: mean loss per label token, before the update
    norms: np.ndarray  # float64 [updates]: gradient norm before clipping
    evaluation: np.ndarray  # float64 [2]: loss of all rows before and after the run
    moved: dict[str, np.ndarray]  # last minus first trainable values, by mlx-lm's names


class Deviation(NamedTuple):
    """How far a run is from the truth; each is relative, and the largest where there are many."""

    loss: float
    norm: float
    evaluation: float
    displacement: float  # distance of an array's last values, as a share of how far they moved

    def inside(self) -> bool:
        """Return whether the run is the truth but for the rounding of float32."""
        return all(got <= limit for got, limit in zip(self, LIMITS, strict=True))


LIMITS = Deviation(loss=2e-5, norm=5e-5, evaluation=2e-5, displacement=1e-4)


def displacement(model: str, kind: str, final: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return how far every trainable value went, float64.

    Raises:
        ValueError: These are not the parameters that the run started with.
    """
    start = setting.start(model, kind)
    if start.keys() != final.keys():
        raise ValueError(f"not the same parameters: {sorted(start.keys() ^ final.keys())}")
    return {name: final[name].astype(np.float64) - start[name] for name in start}


def deviation(run: Trajectory, truth: Trajectory) -> Deviation:
    """Return how far a run is from the truth."""
    relative = [np.max(np.abs(a - b) / np.abs(b)) for a, b in zip(run[:3], truth[:3], strict=True)]
    apart = [_norm(run.moved[name] - moved) / _norm(moved) for name, moved in truth.moved.items()]
    return Deviation(*map(float, relative), float(max(apart)))


def _norm(values: np.ndarray) -> np.floating:
    return np.linalg.norm(values.ravel())


@cache
def stored() -> dict[str, np.ndarray]:
    """Return the contents of the file that ``make_truth.py`` writes."""
    with np.load(TRUTH, allow_pickle=False) as file:
        return dict(file)


def truth(model: str, kind: str) -> Trajectory:
    """Return the float64 run of one combination as it is stored.

    Displacements are rounded to float32, a ten-thousandth of what they are compared to.
    """
    losses, norms, evaluation, moved = (
        stored()[f"{model}.{kind}.{field}"] for field in Trajectory._fields
    )
    shapes = {name: value.shape for name, value in setting.start(model, kind).items()}
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes.values()])
    parts = np.split(moved.astype(np.float64), ends[:-1])
    named = zip(shapes.items(), parts, strict=True)
    return Trajectory(
        losses, norms, evaluation, {name: part.reshape(shape) for (name, shape), part in named}
    )


def store(runs: dict[tuple[str, str], Trajectory]) -> None:
    """Write the float64 runs to the file that :func:`truth` reads."""
    arrays: dict[str, np.ndarray] = {}
    for (model, kind), run in runs.items():
        joined = np.concatenate([run.moved[name].ravel() for name in setting.start(model, kind)])
        fields = run._replace(moved=joined.astype(np.float32))._asdict()
        arrays |= {f"{model}.{kind}.{field}": value for field, value in fields.items()}
    np.savez_compressed(TRUTH, **arrays)
