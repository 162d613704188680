"""Recompute a layer's activations in the backward pass instead of keeping them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from mlxfn.errors import ConfigError
from mlxfn.models.dropout import current_scope, keyed
from mlxfn.models.slots import Slot, swapped, trainable_slots

_MLP = ("mlp", "feed_forward", "block_sparse_moe", "ffn", "moe")


def recompute(layer: nn.Module) -> None:
    """Make this one layer recompute its activations; the class and other layers keep theirs.

    The layer gets a class of its own, derived from the one it has, so that its path, its
    fields and its signature stay. It acts only inside a functional forward pass; generation
    through the same layer runs as before.

    Args:
        layer: A layer of a clone, whose output is an array or a tuple of arrays.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> recompute(layer)
        >>> isinstance(layer, nn.Linear), type(nn.Linear(2, 2)).__name__
        (True, 'Linear')
    """
    layer.__class__ = _recomputing(type(layer))


@functools.cache
def _recomputing(cls: type[nn.Module]) -> type[nn.Module]:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward = functools.partial(cls.__call__, self)
        if current_scope() is None:
            return forward(*args, **kwargs)
        return _checkpointed(self, forward, args, kwargs)

    return type(f"Recomputing{cls.__name__}", (cls,), {"__call__": call})


def _checkpointed(
    layer: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run the layer, keeping only its inputs for the backward pass.

    What carries a gradient is handed over: the floating-point inputs and the layer's trainable
    arrays. The rest (masks, caches) is closed over.
    """
    call = _Arguments(args, kwargs)
    single = True

    def again(*arrays: mx.array) -> list[mx.array]:
        nonlocal single
        new_args, new_kwargs = call.filled(arrays)
        out = forward(*new_args, **new_kwargs)
        single = isinstance(out, mx.array)
        return _as_list(out, layer)

    outputs = checkpointed(again, call.arrays, trainable_slots(layer))
    return outputs[0] if single else tuple(outputs)


def checkpointed(
    forward: Callable[..., list[mx.array]], inputs: Sequence[mx.array], slots: Mapping[str, Slot]
) -> list[mx.array]:
    """Return ``forward(*inputs)``; for the backward pass only the inputs are kept.

    Args:
        forward: Runs once more in the backward pass, as far as a gradient needs it: what it
            makes along the way is not kept.
        inputs: Floating-point arrays that a gradient may flow to.
        slots: Trainable arrays that ``forward`` reads from a module.
    """
    scope = current_scope()
    # Closed over: a key passed as an argument could not be differentiated through.
    key = scope.key if scope else None
    count = len(inputs)

    def pure(*arrays: mx.array) -> list[mx.array]:
        values = dict(zip(slots, arrays[count:], strict=True))
        with swapped(slots, values), keyed(key):
            return forward(*arrays[:count])

    return _recomputed(pure)(*inputs, *(slot.get() for slot in slots.values()))


def _recomputed(pure: Callable[..., list[mx.array]]) -> Callable[..., list[mx.array]]:
    function: Any = mx.custom_function(pure)

    @function.vjp
    def backward(primals: Any, cotangents: Any, _: Any) -> list[mx.array]:
        # MLX hands over a single primal bare, several as a tuple.
        inputs = [primals] if isinstance(primals, mx.array) else list(primals)
        # Ordered after the cotangents, or compile would merge the recompute into the forward
        # pass, and the scheduler could run it early: both keep the activations after all.
        ordered = mx.depends(inputs, list(cotangents))
        _, gradients = mx.vjp(pure, ordered, list(cotangents))
        return gradients

    return function


def _as_list(out: Any, layer: nn.Module) -> list[mx.array]:
    if isinstance(out, mx.array):
        return [out]
    if isinstance(out, tuple) and all(isinstance(part, mx.array) for part in out):
        return list(out)
    raise ConfigError(
        "the activations of this model's layers cannot be recomputed",
        where=type(layer).__mro__[1].__name__,
        got=f"a layer that returns {type(out).__name__}",
        expected="an array or a tuple of arrays",
        remedy='train.remat = "none"',
    )


class _Arguments:
    """The arguments of a call, with the floating-point arrays taken out of them."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._args = args
        self._kwargs = kwargs
        self.arrays = [value for value in (*args, *kwargs.values()) if _is_float(value)]

    def filled(self, arrays: Sequence[mx.array]) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments with other arrays in the places of the ones taken out."""
        rest: Iterator[mx.array] = iter(arrays)
        args = [next(rest) if _is_float(value) else value for value in self._args]
        kwargs = {k: next(rest) if _is_float(v) else v for k, v in self._kwargs.items()}
        return args, kwargs


def _is_float(value: Any) -> bool:
    return isinstance(value, mx.array) and mx.issubdtype(value.dtype, mx.floating)


def layers_to_recompute(
    layers: Sequence[nn.Module],
    slots: Mapping[str, Slot],
    prefixes: Sequence[str],
    remat: str | int,
) -> list[nn.Module]:
    """Return the modules that a ``remat`` setting names: decoder layers, or MLPs of them.

    Args:
        layers: The decoder layers.
        slots: Where the trainable arrays are.
        prefixes: The layers' paths.
        remat: ``"none"``, ``"all"``, ``"mlp"`` for the MLP of every layer, or n for the first
            n of the layers that gradients flow through: their recompute comes when the later
            layers are done, so it adds nothing to the peak.

    Raises:
        ConfigError: Something else.
    """
    if remat == "none":
        return []
    reached = list(layers[first_reached(slots, prefixes) :])
    if remat == "all":
        return reached
    if remat == "mlp":
        return [mlp for layer in reached for mlp in mlps(layer)]
    if isinstance(remat, int) and not isinstance(remat, bool) and remat >= 0:
        return reached[:remat]
    raise ConfigError(
        "no such recompute setting",
        where="train.remat",
        got=repr(remat),
        expected='"none", "mlp", "all" or a number of layers',
    )


def mlps(layer: nn.Module) -> list[nn.Module]:
    """Return the feed-forward modules of a decoder layer, by the names mlx-lm gives them.

    Example:
        >>> mlps(nn.Linear(2, 2))
        []
    """
    found = (layer.get(name) for name in _MLP)
    return [module for module in found if isinstance(module, nn.Module)]


def first_reached(slots: Mapping[str, Slot], prefixes: Sequence[str]) -> int:
    """Return the index of the first layer that a gradient reaches.

    The slots come in the model's order, so the first one decides; one that is in no layer is
    an embedding in front of them.
    """
    first = next(iter(slots), "")
    inside = (n for n, prefix in enumerate(prefixes) if first.startswith(prefix + "."))
    return next(inside, 0)
