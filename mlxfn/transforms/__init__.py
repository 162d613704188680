"""Gradient transforms: pairs of pure functions that compose."""

from mlxfn.transforms.accumulate import Accumulated, accumulate
from mlxfn.transforms.base import Transform, apply_updates, chain, identity
from mlxfn.transforms.clip import clip_by_global_norm
from mlxfn.transforms.guard import skip_nonfinite
from mlxfn.transforms.optimizers import (
    OPTIMIZERS,
    adafactor,
    adam,
    adamw,
    lift,
    lion,
    muon,
    sgd,
)
from mlxfn.transforms.partition import partition, scale_by
from mlxfn.transforms.rate import adjustable_rate, with_rate_factor
from mlxfn.transforms.schedules import (
    SCHEDULES,
    Schedule,
    constant,
    warmup_constant,
    warmup_cosine,
    warmup_linear,
)

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Accumulated",
    "Schedule",
    "Transform",
    "accumulate",
    "adafactor",
    "adam",
    "adamw",
    "adjustable_rate",
    "apply_updates",
    "chain",
    "clip_by_global_norm",
    "constant",
    "identity",
    "lift",
    "lion",
    "muon",
    "partition",
    "scale_by",
    "sgd",
    "skip_nonfinite",
    "warmup_constant",
    "warmup_cosine",
    "warmup_linear",
    "with_rate_factor",
]
