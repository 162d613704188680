"""One table per family: whoever adds an optimizer, loss or schedule adds a row and gets every law."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import mlx.optimizers as optim
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from mlxfn.losses import causal_lm_loss, chunked_causal_lm_loss
from mlxfn.models.lora import dora, full, lora
from mlxfn.models.model import Model
from mlxfn.monitors import Monitor, divergence, early_stopping, nonfinite
from mlxfn.state import ApplyFn, LossFn
from mlxfn.testing import strategies
from mlxfn.transforms import (
    OPTIMIZERS,
    SCHEDULES,
    Transform,
    adamw,
    adjustable_rate,
    chain,
    clip_by_global_norm,
    identity,
    partition,
    scale_by,
    skip_nonfinite,
    warmup_cosine,
)
from tests.support.models import load, write_model

EXAMPLES = 200
many = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
"""The settings of every law."""


class Lifted(NamedTuple):
    """An optimizer, and the mlx object that it was lifted from."""

    transform: Callable[[float], Transform]
    build: Callable[[float], optim.Optimizer]


LIFTED: dict[str, Lifted] = {
    "adamw": Lifted(adamw, lambda rate: optim.AdamW(rate, bias_correction=True)),
    "adam": Lifted(OPTIMIZERS["adam"], lambda rate: optim.Adam(rate, bias_correction=True)),
    "sgd": Lifted(
        lambda rate: OPTIMIZERS["sgd"](rate, momentum=0.9),
        lambda rate: optim.SGD(rate, momentum=0.9),
    ),
    "lion": Lifted(OPTIMIZERS["lion"], optim.Lion),
    "adafactor": Lifted(
        OPTIMIZERS["adafactor"],
        lambda rate: optim.Adafactor(rate, relative_step=False, scale_parameter=False),
    ),
    "muon": Lifted(OPTIMIZERS["muon"], optim.Muon),
}

TRANSFORMS: dict[str, Callable[[], Transform]] = {
    **{name: (lambda make=make: make(0.1)) for name, make in OPTIMIZERS.items()},
    "adamw on a schedule": lambda: adamw(warmup_cosine(0.1, warmup=2, total=9), weight_decay=0.1),
    "adamw with a decay mask": lambda: adamw(0.1, decay_mask=lambda path: "bias" not in path),
    "clip_by_global_norm": lambda: clip_by_global_norm(0.5),
    "scale_by": lambda: scale_by(0.3),
    "adjustable_rate": adjustable_rate,
    "identity": identity,
    "skip_nonfinite": lambda: skip_nonfinite(adamw(0.1)),
    "partition": lambda: partition(
        lambda path: "b" if path.endswith("lora_b") else "rest",
        {"b": scale_by(16.0), "rest": adamw(0.1)},
    ),
    "a chain": lambda: chain(clip_by_global_norm(1.0), adamw(0.1), adjustable_rate()),
}

CLIPS: dict[str, Callable[[float], Transform]] = {"clip_by_global_norm": clip_by_global_norm}


class Loss(NamedTuple):
    """A maker of losses, and the exact thing it stands for."""

    make: Callable[[ApplyFn], LossFn]
    label_smoothing: float = 0.0


def _chunked(smoothing: float) -> Callable[[ApplyFn], LossFn]:
    return lambda apply: chunked_causal_lm_loss(
        apply, lambda _, rows: rows, chunk_size=3, label_smoothing=smoothing
    )


LOSSES: dict[str, Loss] = {
    "causal_lm_loss": Loss(causal_lm_loss),
    "causal_lm_loss, smoothed": Loss(lambda a: causal_lm_loss(a, label_smoothing=0.1), 0.1),
    "chunked_causal_lm_loss": Loss(_chunked(0.0)),
    "chunked_causal_lm_loss, smoothed": Loss(_chunked(0.1), 0.1),
}

RATES: dict[str, Callable[..., Any]] = dict(SCHEDULES)


class Watch(NamedTuple):
    """A monitor, what it may observe, and the bad value it must not let pass."""

    monitor: Monitor
    values: st.SearchStrategy[float]
    bad: float
    within: int


_losses = st.floats(allow_nan=True, allow_infinity=True)
MONITORS: dict[str, Watch] = {
    "early_stopping": Watch(
        early_stopping(patience=2, min_delta=0.01), _losses, float("nan"), within=2
    ),
    "divergence": Watch(divergence(window=20, threshold=1.5), _losses, float("nan"), within=1),
    "nonfinite, skip": Watch(
        nonfinite(policy="skip", max_in_a_row=2), st.sampled_from([1.0, 0.0]), 0.0, within=1
    ),
    "nonfinite, halt": Watch(
        nonfinite(policy="halt", max_in_a_row=2), st.sampled_from([1.0, 0.0]), 0.0, within=1
    ),
}

STREAMS = {name: st.lists(watch.values, max_size=30) for name, watch in MONITORS.items()}

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 400,
}

_TARGETS = ("q_proj", "v_proj", "down_proj")
ADAPTERS: dict[str, Callable[..., Any]] = {
    "lora": lambda model, **options: lora(model, rank=2, target_modules=_TARGETS, **options),
    "dora": lambda model, **options: dora(model, rank=2, target_modules=_TARGETS, **options),
    "full": full,
}


@cache
def tiny_model(kind: str = "llama") -> Model:
    """Return a model of two narrow layers, written and loaded once."""
    return load(write_model(Path(mkdtemp(prefix="mlxfn-tiny-")), kind, **TINY))


@cache
def tiny_adapter(name: str, **options: Any) -> Any:
    """Return an adapter of :data:`ADAPTERS` on the tiny model, made once for the same options."""
    return ADAPTERS[name](tiny_model(), **options)


def small_batches(**options: Any) -> st.SearchStrategy[Any]:
    """Return batches for the tiny models: ids of the whole vocabulary, few and short rows."""
    return strategies.batches(vocab=400, max_rows=2, max_length=5, **options)
