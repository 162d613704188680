"""A structural copy of a module tree: new containers, the same arrays."""

from __future__ import annotations

import types
from typing import Any

from mlx import nn


def clone_module(module: nn.Module) -> nn.Module:
    """Return a copy whose modules, lists and dicts are new and whose arrays are shared.

    Replacing a layer or an array in the copy leaves the original as it was, and the copy
    costs no array memory. A module that sits in two places sits in the same two places of
    the copy.

    Args:
        module: The tree to copy; it is only read.

    Returns:
        A module of the same classes.

    Example:
        >>> linear = nn.Linear(2, 3)
        >>> copy = clone_module(linear)
        >>> copy is linear, copy.weight is linear.weight
        (False, True)
    """
    return _clone(module, {})


def _clone(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, nn.Module):
        return _clone_module(value, memo)
    if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
        # A method kept as an attribute would otherwise go on calling the original.
        return types.MethodType(value.__func__, _clone(value.__self__, memo))
    return _clone_container(value, memo)


def _clone_module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    # Not __init__, which would draw random weights: the fields are filled in below.
    copy = memo[id(module)] = type(module).__new__(type(module))
    for name, child in module.items():
        dict.__setitem__(copy, name, _clone(child, memo))
    # Module.__setattr__ sorts values into the dict by type, so plain attributes go around it.
    vars(copy).update({name: _clone(value, memo) for name, value in vars(module).items()})
    return copy


def _clone_container(value: Any, memo: dict[int, Any]) -> Any:
    copy: Any = value
    if type(value) is dict:
        copy = memo[id(value)] = {}
        copy.update({key: _clone(child, memo) for key, child in value.items()})
    elif type(value) is list:
        copy = memo[id(value)] = []
        copy.extend(_clone(child, memo) for child in value)
    elif type(value) is tuple:
        copy = tuple(_clone(child, memo) for child in value)
    elif type(value) is set:
        copy = set(value)
    return copy
