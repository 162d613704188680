"""Let attention and MLP keep what their first layers give, and compute the rest of it again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from mlxfn.models.dropout import current_scope, keyed
from mlxfn.models.first_layers import (
    Spy,
    first_layers,
    given,
    in_place,
    input_size,
    linear_layers,
)
from mlxfn.models.joint import joint_outputs
from mlxfn.models.remat import checkpointed
from mlxfn.models.slots import trainable_slots

_FIRST, _LAST = "_mlxfn_first", "_mlxfn_last"


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
    names = first_layers(block)
    if not names:
        return False
    vars(block)[_FIRST], vars(block)[_LAST] = names, _behind_activation(block, names)
    block.__class__ = _leaning(type(block))
    return True


@functools.cache
def _leaning(cls: type[nn.Module]) -> type[nn.Module]:
    def call(self: nn.Module, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        forward = functools.partial(cls.__call__, self)
        if current_scope() is None or _carry_gradients(*args, *kwargs.values()):
            return forward(x, *args, **kwargs)
        names, last = vars(self)[_FIRST], vars(self)[_LAST]

        def rest(*outputs: mx.array) -> list[mx.array]:
            if last is not None:
                return [self[last](_elementwise(activation)(*outputs))]
            with given(self, names, outputs):
                return [forward(mx.stop_gradient(x), *args, **kwargs)]

        def activation(*outputs: mx.array) -> mx.array:
            # In a scope of its own, since its gradient is taken when the forward pass is over;
            # without a key: every layer that may drop out has been replaced.
            stand_in = {last: lambda h: h}
            with keyed(None), given(self, names, outputs), in_place(self, stand_in):
                return forward(mx.stop_gradient(x), *args, **kwargs)

        first = joint_outputs(x, [self[name] for name in names])
        slots = trainable_slots(self)
        behind = {path: slot for path, slot in slots.items() if path.split(".")[0] not in names}
        (out,) = checkpointed(rest, first, behind)
        return out

    return type(f"Lean{cls.__name__}", (cls,), {"__call__": call})


def _carry_gradients(*values: Any) -> bool:
    return any(isinstance(v, mx.array) and mx.issubdtype(v.dtype, mx.floating) for v in values)


def _behind_activation(block: nn.Module, names: Sequence[str]) -> str | None:
    """Return the last layer of a block that is ``last(activation(first...))``, elementwise.

    That it is elementwise is seen from a part of its inputs: they give that part of the result.
    """
    linear = linear_layers(block)
    rest = [name for name in linear if name not in names]
    if len(rest) != 1:
        return None
    x = mx.zeros((1, 3, input_size(linear[names[0]])))
    shape = (1, 3, input_size(linear[rest[0]]))
    keys = mx.random.split(mx.random.key(0), len(names))
    inputs = [mx.random.normal(shape, key=key) for key in keys]
    parts = [values[:, 1:2, : shape[-1] // 2] for values in inputs]
    ends, begins = Spy(linear[rest[0]]), Spy(lambda h: h)
    try:
        with keyed(None):
            with given(block, names, inputs), in_place(block, {rest[0]: ends}):
                whole = block(x)
            with given(block, names, parts), in_place(block, {rest[0]: begins}):
                part = block(x)
        holds = whole is ends.gave and mx.array_equal(part, ends.fed[:, 1:2, : shape[-1] // 2])
        return rest[0] if bool(holds) else None
    except Exception:  # noqa: BLE001 - it is not a block of this kind
        return None


def _elementwise(function: Callable[..., mx.array]) -> Callable[..., mx.array]:
    """Return an elementwise function whose gradient for each input is computed apart.

    Together, they would share what both need, which keeps compile from making one kernel of
    each: of ``silu(gate) * up`` the sigmoid would be written and read again.
    """
    apart: Any = mx.custom_function(function)

    @apart.vjp
    def backward(primals: Any, cotangent: mx.array, _: mx.array) -> list[mx.array]:
        gradients: list[mx.array] = []
        for i in range(len(primals)):
            inputs = mx.depends(list(primals), [cotangent])  # copies that compile cannot merge

            def of_one(x: mx.array, i: int = i, inputs: list[mx.array] = inputs) -> mx.array:
                return function(*inputs[:i], x, *inputs[i + 1 :])

            gradients += mx.vjp(of_one, [inputs[i]], [cotangent])[1]
        return gradients

    return apart
