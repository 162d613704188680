"""Let attention and MLP keep what their first layers give, and compute the rest of it again."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from mlxfn.models.dora import DoRALinear
from mlxfn.models.dropout import current_scope, keyed
from mlxfn.models.layers import LoRALinear
from mlxfn.models.quantized import sizes
from mlxfn.models.remat import checkpointed
from mlxfn.models.slots import trainable_slots

_FIRST = "_mlxfn_first"
_LINEAR = (nn.Linear, nn.QuantizedLinear, LoRALinear, DoRALinear)


def lean(block: nn.Module) -> bool:
    """Make this one block keep only the outputs of its first linear layers for the backward pass.

    Of ``down(silu(gate(x)) * up(x))`` the plain backward pass keeps gate, up, the sigmoid, the
    activation and the product; here it keeps gate and up. Of attention it keeps queries, keys
    and values, and neither their rotated copies nor the probabilities [B, H, T, T]. What is not
    kept is computed again once the gradient arrives, as far as the gradient needs it: the
    elementwise rest and the scores, but no product with a frozen weight. The values are the same.

    The block's own code is what runs, with its first layers replaced by what they gave. A block
    that uses its input in another way is left as it is. Like
    :func:`mlxfn.models.remat.recompute` it acts on this block only, and only inside a functional
    forward pass.

    Args:
        block: An attention or MLP module of a clone, called as ``block(x, ...)``.

    Returns:
        Whether it was made lean.

    Example:
        >>> from types import SimpleNamespace
        >>> from mlx_lm.models.llama import MLP
        >>> lean(MLP(SimpleNamespace(hidden_size=4, intermediate_size=8))), lean(nn.Linear(4, 4))
        (True, False)
    """
    names = _first_layers(block)
    if not names:
        return False
    vars(block)[_FIRST] = names
    block.__class__ = _leaning(type(block))
    return True


def _first_layers(block: nn.Module) -> tuple[str, ...]:
    """Return the linear layers that are fed the block's input; none where others see it too."""
    linear = {name: child for name, child in block.items() if isinstance(child, _LINEAR)}
    if len(linear) < 2:
        return ()
    one: Any = next(iter(linear.values()))
    width, _ = sizes(getattr(one, "linear", one))
    x = mx.random.normal((1, 3, width), key=mx.random.key(0))
    spies = {name: _Spy(child) for name, child in linear.items()}
    try:
        with keyed(None):
            with _in_place(block, spies):
                plain = block(x)
            first = tuple(name for name, spy in spies.items() if spy.fed is x)
            with _in_place(block, {name: _Given(linear[name](x)) for name in first}):
                holds = mx.array_equal(block(mx.zeros_like(x)), plain)
        return first if len(first) < len(linear) and bool(holds) else ()
    except Exception:  # noqa: BLE001 - whatever it takes, it is not a block of this kind
        return ()


@functools.cache
def _leaning(cls: type[nn.Module]) -> type[nn.Module]:
    def call(self: nn.Module, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        forward = functools.partial(cls.__call__, self)
        if current_scope() is None or _carry_gradients(*args, *kwargs.values()):
            return forward(x, *args, **kwargs)
        names = vars(self)[_FIRST]

        def rest(*outputs: mx.array) -> list[mx.array]:
            given = {name: _Given(out) for name, out in zip(names, outputs, strict=True)}
            with _in_place(self, given):
                return [forward(mx.stop_gradient(x), *args, **kwargs)]

        (out,) = checkpointed(rest, [self[name](x) for name in names], _behind(self, names))
        return out

    return type(f"Lean{cls.__name__}", (cls,), {"__call__": call})


def _carry_gradients(*values: Any) -> bool:
    return any(isinstance(v, mx.array) and mx.issubdtype(v.dtype, mx.floating) for v in values)


def _behind(block: nn.Module, names: Sequence[str]) -> dict[str, Any]:
    """Return the trainable arrays of the block outside of its first layers."""
    slots = trainable_slots(block)
    return {path: slot for path, slot in slots.items() if path.split(".")[0] not in names}


@contextlib.contextmanager
def _in_place(block: nn.Module, layers: Mapping[str, Any]) -> Generator[None]:
    """Put other callables in the place of a block's layers for a while."""
    before = {name: block[name] for name in layers}
    try:
        dict.update(block, layers)
        yield
    finally:
        dict.update(block, before)


class _Spy:
    """A layer that remembers what it was fed."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self.fed: mx.array | None = None

    def __call__(self, x: mx.array) -> mx.array:
        self.fed = x
        return self._layer(x)


class _Given:
    """A layer whose output is there already."""

    def __init__(self, out: mx.array) -> None:
        self._out = out

    def __call__(self, _: mx.array) -> mx.array:
        return self._out
