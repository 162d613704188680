"""How a forward and backward pass runs: the same values, at another cost in time and memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs
from mlx import nn

from mlxfn.device import device_kind
from mlxfn.errors import ConfigError
from mlxfn.models.exponentials import spell_out
from mlxfn.models.first_layers import share_input
from mlxfn.models.lean import lean
from mlxfn.models.remat import first_reached, layers_to_recompute, mlps, recompute
from mlxfn.models.slots import Slot
from mlxfn.models.targets import decoder_layers
from mlxfn.models.unpack import Route, unpack_first

Lean = Literal["none", "mlp", "all"]


@attrs.frozen
class Execution:
    """What is kept, what is computed again, and how packed weights are multiplied by.

    Args:
        remat: ``"none"``, ``"mlp"``, ``"all"``, or n: what recomputes its activations.
        lean: ``"none"``, ``"mlp"`` or ``"all"``: the blocks that keep only the outputs of
            their first linear layers (``"all"``: attention too).
        quantized: ``"packed"`` or ``"unpacked"``: how quantized layers multiply.

    Example:
        >>> Execution(remat=4).lean
        'none'
    """

    remat: str | int = "none"
    lean: Lean = "none"
    quantized: Route = "packed"


PLAIN = Execution()


def carry_out(execution: Execution, clone: nn.Module, slots: Mapping[str, Slot]) -> None:
    """Make a clone run as an execution says.

    Args:
        execution: How to run.
        clone: The module of an adapter, its weights evaluated.
        slots: Where its trainable arrays are.

    Raises:
        ConfigError: A setting that does not exist.
    """
    if execution.lean not in ("none", "mlp", "all"):
        raise ConfigError(
            "no such setting",
            where="train.lean",
            got=repr(execution.lean),
            expected='"none", "mlp" or "all"',
        )
    if device_kind() == "cpu":  # elsewhere MLX has fused kernels of its own
        spell_out(clone, attends="all" not in (execution.remat, execution.lean))
    if execution.quantized == "unpacked":
        unpack_first(clone)
    sites = decoder_layers(clone)
    prefixes = [site.path for site in sites]
    layers = [site.module for site in sites]
    for layer in layers[first_reached(slots, prefixes) :]:
        chosen = {id(block) for block in blocks(layer, execution.lean)}
        for block in blocks(layer, "all"):
            if not (id(block) in chosen and lean(block)):
                share_input(block)
    for module in layers_to_recompute(layers, slots, prefixes, execution.remat):
        recompute(module)


def blocks(layer: nn.Module, which: Lean) -> list[nn.Module]:
    """Return the modules of a decoder layer that may become lean."""
    if which == "none":
        return []
    if which == "mlp":
        return mlps(layer)
    return [child for child in layer.values() if isinstance(child, nn.Module)]
