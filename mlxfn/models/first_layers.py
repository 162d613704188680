"""The linear layers that a block feeds its input to, computed together and put into its code."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from mlxfn.models.dora import DoRALinear
from mlxfn.models.dropout import current_scope, keyed
from mlxfn.models.joint import joint_outputs
from mlxfn.models.layers import LoRALinear
from mlxfn.models.quantized import sizes

_FIRST = "_mlxfn_first"
_LINEAR = (nn.Linear, nn.QuantizedLinear, LoRALinear, DoRALinear)


def share_input(block: nn.Module) -> bool:
    """Make this one block compute its first linear layers together.

    The block's own code is what runs, with its first layers replaced by what they gave. A block
    that uses its input in another way is left as it is. It acts on this block only, and only
    inside a functional forward pass.

    Args:
        block: An attention or MLP module of a clone, called as ``block(x, ...)``.

    Returns:
        Whether the block has such layers.

    Example:
        >>> from types import SimpleNamespace
        >>> from mlx_lm.models.llama import MLP
        >>> block = MLP(SimpleNamespace(hidden_size=4, intermediate_size=8))
        >>> share_input(block), share_input(nn.Linear(4, 4))
        (True, False)
    """
    names = first_layers(block)
    if not names:
        return False
    vars(block)[_FIRST] = names
    block.__class__ = _sharing(type(block))
    return True


@functools.cache
def _sharing(cls: type[nn.Module]) -> type[nn.Module]:
    def call(self: nn.Module, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        if current_scope() is None:
            return cls.__call__(self, x, *args, **kwargs)
        names = vars(self)[_FIRST]
        outputs = joint_outputs(x, [self[name] for name in names])
        with given(self, names, outputs):
            return cls.__call__(self, mx.stop_gradient(x), *args, **kwargs)

    return type(f"Sharing{cls.__name__}", (cls,), {"__call__": call})


def first_layers(block: nn.Module) -> tuple[str, ...]:
    """Return the linear layers that are fed the block's input; none where others see it too.

    Example:
        >>> first_layers(nn.TransformerEncoderLayer(4, 2))
        ()
    """
    linear = linear_layers(block)
    if len(linear) < 2:
        return ()
    x = mx.random.normal((1, 3, input_size(next(iter(linear.values())))), key=mx.random.key(0))
    spies = {name: Spy(child) for name, child in linear.items()}
    try:
        with keyed(None):
            with in_place(block, spies):
                plain = block(x)
            first = tuple(name for name, spy in spies.items() if spy.fed is x)
            with given(block, first, [linear[name](x) for name in first]):
                holds = mx.array_equal(block(mx.zeros_like(x)), plain)
        return first if len(first) < len(linear) and bool(holds) else ()
    except Exception:  # noqa: BLE001 - whatever it takes, it is not a block of this kind
        return ()


def linear_layers(block: nn.Module) -> dict[str, Any]:
    """Return the linear layers directly in a block, adapted or not, by name."""
    return {name: child for name, child in block.items() if isinstance(child, _LINEAR)}


def input_size(layer: nn.Module) -> int:
    """Return the input size of a linear layer, adapted or not."""
    base: Any = getattr(layer, "linear", layer)
    return sizes(base)[0]


@contextlib.contextmanager
def in_place(block: nn.Module, layers: Mapping[str, Any]) -> Generator[None]:
    """Put other callables in the place of a block's layers for a while."""
    before = {name: block[name] for name in layers}
    try:
        dict.update(block, layers)
        yield
    finally:
        dict.update(block, before)


def given(
    block: nn.Module, names: Sequence[str], outputs: Sequence[mx.array]
) -> contextlib.AbstractContextManager[None]:
    """Put what layers gave in the place of the layers for a while."""
    stand_ins: dict[str, Callable[[mx.array], mx.array]] = {
        name: functools.partial(_answer, out) for name, out in zip(names, outputs, strict=True)
    }
    return in_place(block, stand_ins)


def _answer(out: mx.array, _: mx.array) -> mx.array:
    return out


class Spy:
    """A layer that remembers what it was fed, and what it gave."""

    def __init__(self, layer: Callable[[mx.array], mx.array]) -> None:
        self._layer = layer
        self.fed: Any = None
        self.gave: Any = None

    def __call__(self, x: mx.array) -> mx.array:
        """Call the layer."""
        self.fed, self.gave = x, self._layer(x)
        return self.gave
