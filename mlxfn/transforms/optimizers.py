"""mlx's optimizers as pure transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
from mlx.utils import tree_map

from mlxfn.transforms.base import Transform
from mlxfn.transforms.partition import partition
from mlxfn.transforms.schedules import Schedule
from mlxfn.transforms.schedules import constant as constant_rate
from mlxfn.tree import Grads, Params, Tree


def lift(
    make: Callable[[], optim.Optimizer], rate: float | Schedule, *, elementwise: bool = False
) -> Transform:
    """Return the pure transform that does what an mlx optimizer does to its object's state.

    A new object is built for each call, given the state, and thrown away: nothing that
    outlives the call is changed, also when the optimizer raises.

    Args:
        make: Builds the optimizer. Its own learning rate is not used.
        rate: The learning rate, or a schedule of the update's number (the first is 1).
        elementwise: Whether the optimizer treats every value alike, whatever its array's shape.

    Returns:
        A transform whose state is the optimizer's: ``step`` (uint64 []), ``learning_rate``
        (fp32 []) and the moments of each leaf.

    Example:
        >>> tx = lift(lambda: optim.SGD(learning_rate=0.0), 0.5)
        >>> params = {"w": mx.array([1.0])}
        >>> tx.update({"w": mx.array([1.0])}, tx.init(params), params)[0]
        {'w': array([-0.5], dtype=float32)}
    """
    schedule = rate if callable(rate) else constant_rate(rate)

    def init(params: Params) -> Tree:
        optimizer = make()
        optimizer.init(params)
        optimizer.state["learning_rate"] = mx.array(0.0)
        return optimizer.state

    def update(grads: Grads, state: Tree, params: Params) -> tuple[Grads, Tree]:
        optimizer = make()
        optimizer.state = tree_map(lambda leaf: leaf, state)  # apply_gradients writes into it
        optimizer.init(params)
        number = state["step"].astype(mx.int32) + 1
        optimizer.state["learning_rate"] = schedule(number)
        after = optimizer.apply_gradients(grads, params)
        return tree_map(lambda new, old: new - old, after, params), optimizer.state

    def report(state: Tree) -> dict[str, mx.array]:
        return {"learning_rate": state["learning_rate"]}

    return Transform(init, update, report, elementwise)


def adamw(
    rate: float | Schedule,
    *,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    decay_mask: Callable[[str], bool] | None = None,
) -> Transform:
    """Return AdamW (Loshchilov and Hutter, 2019) with bias correction.

    Args:
        rate: Learning rate or schedule.
        weight_decay: Decoupled decay, multiplied by the learning rate.
        betas: Decay of the first and second moment.
        eps: Added to the root of the second moment.
        decay_mask: Dotted path of a parameter -> whether it decays; without it all do.

    Example:
        >>> tx = adamw(0.1, weight_decay=0.0)
        >>> params = {"w": mx.array([1.0])}
        >>> updates, _ = tx.update({"w": mx.array([5.0])}, tx.init(params), params)
        >>> f"{updates['w'].item():.4f}"  # with bias correction the first step is the rate
        '-0.1000'
    """

    def build(decay: float) -> Transform:
        return lift(
            lambda: optim.AdamW(
                learning_rate=0.0,
                betas=list(betas),
                eps=eps,
                weight_decay=decay,
                bias_correction=True,
            ),
            rate,
            elementwise=True,
        )

    if decay_mask is None or not weight_decay:
        return build(weight_decay)
    return partition(
        lambda path: "decay" if decay_mask(path) else "no_decay",
        {"decay": build(weight_decay), "no_decay": build(0.0)},
    )


def adam(
    rate: float | Schedule, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> Transform:
    """Return Adam (Kingma and Ba, 2015) with bias correction and no weight decay."""
    return adamw(rate, weight_decay=0.0, betas=betas, eps=eps)


def sgd(rate: float | Schedule, *, momentum: float = 0.0, weight_decay: float = 0.0) -> Transform:
    """Return stochastic gradient descent, with momentum and L2 decay if they are given."""
    return lift(
        lambda: optim.SGD(learning_rate=0.0, momentum=momentum, weight_decay=weight_decay),
        rate,
        elementwise=True,
    )


def lion(
    rate: float | Schedule,
    *,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
) -> Transform:
    """Return Lion (Chen et al., 2023)."""
    return lift(
        lambda: optim.Lion(learning_rate=0.0, betas=list(betas), weight_decay=weight_decay),
        rate,
        elementwise=True,
    )


def adafactor(rate: float | Schedule, *, weight_decay: float = 0.0) -> Transform:
    """Return Adafactor (Shazeer and Stern, 2018) at a given rate, unscaled by parameter size."""
    return lift(
        lambda: optim.Adafactor(
            learning_rate=0.0,
            relative_step=False,
            scale_parameter=False,
            weight_decay=weight_decay,
        ),
        rate,
    )


def muon(
    rate: float | Schedule, *, momentum: float = 0.95, weight_decay: float = 0.01
) -> Transform:
    """Return Muon (Jordan et al., 2024); leaves that are not matrices get plain momentum."""
    return lift(
        lambda: optim.Muon(learning_rate=0.0, momentum=momentum, weight_decay=weight_decay), rate
    )


OPTIMIZERS: dict[str, Callable[..., Transform]] = {
    "adamw": adamw,
    "adam": adam,
    "sgd": sgd,
    "lion": lion,
    "adafactor": adafactor,
    "muon": muon,
}
"""Optimizers by their name in the configuration."""


def build_optimizer(name: str, rate: float | Schedule, **options: Any) -> Transform:
    """Return an optimizer by name with those of the options that it knows.

    Args:
        name: A key of :data:`OPTIMIZERS`.
        rate: Learning rate or schedule.
        options: ``weight_decay``, ``betas``, ``eps``, ``decay_mask``; left out where the
            optimizer has no such argument.

    Raises:
        KeyError: No optimizer has this name.
    """
    make = OPTIMIZERS[name]
    known = make.__kwdefaults__ or {}
    return make(rate, **{key: value for key, value in options.items() if key in known})
