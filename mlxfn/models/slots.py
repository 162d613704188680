"""Where the arrays of a module live, and how other arrays stand in for them for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple

import mlx.core as mx
from mlx import nn


class Site(NamedTuple):
    """A module inside a tree, and the container that holds it."""

    path: str
    module: nn.Module
    container: Any  # the dict or list that holds the module
    key: Any  # its key or index there


class Slot(NamedTuple):
    """The place of one array: ``container[key]``."""

    container: Any
    key: Any

    def get(self) -> mx.array:
        """Return the array that is there now."""
        return self.container[self.key]

    def set(self, value: mx.array) -> None:
        """Put another array there."""
        self.container[self.key] = value


def walk(module: nn.Module) -> Iterator[Site]:
    """Yield every module below ``module`` in the order it was built, with its dotted path.

    Args:
        module: The root, which is not yielded.

    Example:
        >>> [site.path for site in walk(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))]
        ['layers.0', 'layers.1']
    """
    for path, value, container, key in _children(module, ""):
        if isinstance(value, nn.Module):
            yield Site(path, value, container, key)


def _children(node: Any, prefix: str) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield (path, value, container, key) of everything below a module, dict or list."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        path = f"{prefix}.{key}" if prefix else str(key)
        yield path, value, node, key
        if isinstance(value, dict | list):
            yield from _children(value, path)


def trainable_slots(module: nn.Module) -> dict[str, Slot]:
    """Return the places of all trainable floating-point arrays by dotted path.

    Trainable is what the module has not frozen; an array in a module that sits in two places
    is found once, under the first path.

    Args:
        module: The root of the tree.

    Example:
        >>> linear = nn.Linear(2, 3)
        >>> sorted(trainable_slots(linear.freeze(keys="bias")))
        ['weight']
    """
    found: dict[str, Slot] = {}
    seen: set[tuple[int, str]] = set()
    for path, slot, frozen in _arrays(module, module, "", ""):
        place = (id(slot.container), str(slot.key))
        if not frozen and place not in seen and mx.issubdtype(slot.get().dtype, mx.floating):
            found[path] = slot
        seen.add(place)
    return found


def _arrays(
    node: Any, owner: nn.Module, prefix: str, inside: str
) -> Iterator[tuple[str, Slot, bool]]:
    """Yield (path, slot, frozen) of the parameters; names with a leading underscore are none."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        if str(key).startswith("_"):
            continue
        path = f"{prefix}.{key}" if prefix else str(key)
        name = f"{inside}.{key}" if inside else str(key)  # as the owner's freeze() calls it
        if isinstance(value, nn.Module):
            yield from _arrays(value, value, path, "")
        elif isinstance(value, dict | list):
            yield from _arrays(value, owner, path, name)
        elif isinstance(value, mx.array):
            yield path, Slot(node, key), name in vars(owner)["_no_grad"]


@contextlib.contextmanager
def swapped(slots: Mapping[str, Slot], values: Mapping[str, mx.array]) -> Generator[None]:
    """Put ``values`` into the slots, and what was there back afterwards, whatever happens.

    Args:
        slots: Places by name.
        values: Arrays by the same names, in the shapes of what they replace.

    Raises:
        ValueError: The names differ.

    Example:
        >>> linear = nn.Linear(2, 3)
        >>> before = linear.weight
        >>> with swapped({"weight": Slot(linear, "weight")}, {"weight": mx.zeros((3, 2))}):
        ...     bool(mx.all(linear.weight == 0))
        True
        >>> linear.weight is before
        True
    """
    if differing := sorted(slots.keys() ^ values.keys()):
        raise ValueError(f"these parameters do not fit the adapter: {', '.join(differing[:5])}")
    before = {name: slot.get() for name, slot in slots.items()}
    try:
        for name, slot in slots.items():
            slot.set(values[name])
        yield
    finally:
        for name, slot in slots.items():
            slot.set(before[name])
