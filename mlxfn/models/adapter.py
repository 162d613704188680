"""An adapter: initial parameters, and the pure function that runs the model with them."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from typing import Any, Literal

import attrs
import mlx.core as mx
from mlx import nn

from mlxfn.models.dropout import keyed
from mlxfn.models.execution import PLAIN, Execution
from mlxfn.models.model import Model
from mlxfn.models.packing import document_caches
from mlxfn.models.slots import Slot, swapped
from mlxfn.state import ApplyFn, Batch
from mlxfn.tree import Params, flatten, leaves

Kind = Literal["lora", "dora", "full"]


@attrs.frozen(eq=False)
class Adapter:
    """What is trained on top of a base model, and how the two run together.

    Args:
        params: Initial values, nested dict of fp32 arrays; the paths are those of mlx-lm.
        apply: ``(params, batch, key) -> logits [B, T, V]``, pure; without a key nothing is
            dropped out. With packed rows attention stays within documents.
        kind: ``"lora"``, ``"dora"`` or ``"full"``.
        module: A clone of the base's module with the adapter's layers in it. Not to be cloned
            or changed: ``apply`` runs it.
        model: The base model.
        rank: Inner size of the update; 0 for a full adapter.
        alpha: The numerator of the scale; 0 for a full adapter.
        scale: Factor of the update.
        dropout: Probability of dropout on the update's input.
        target_modules: Paths of the adapted modules, in the model's order.
        num_layers: Number of last decoder layers that could be adapted; -1 for all.
        caches: Caches the model takes, for rows that hold several documents; 0 where rows
            hold one.
        execution: How its forward and backward pass run; the values do not depend on it.
    """

    # what runs
    params: Params
    apply: ApplyFn
    module: nn.Module
    model: Model
    # what it is
    kind: Kind
    rank: int = 0
    alpha: float = 0.0
    scale: float = 1.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ()
    num_layers: int = -1
    caches: int = 0
    execution: Execution = PLAIN
    # where the parameters go, by dotted path, and the dtype they compute in there
    slots: Mapping[str, Slot] = attrs.field(factory=dict, repr=False)
    dtypes: Mapping[str, mx.Dtype] = attrs.field(factory=dict, repr=False)

    @property
    def packed(self) -> bool:
        """Whether rows may hold several documents, with attention within each only."""
        return self.caches > 0

    def parameter_count(self) -> int:
        """Return the number of trainable values."""
        return sum(leaf.size for _, leaf in leaves(self.params))

    def describe(self) -> dict[str, Any]:
        """Return what a person wants to know about the adapter, as JSON values."""
        targets = Counter(path.rsplit(".", 1)[-1] for path in self.target_modules)
        return {
            "kind": self.kind,
            "rank": self.rank,
            "alpha": self.alpha,
            "scale": self.scale,
            "dropout": self.dropout,
            "target_modules": dict(targets),
            "num_layers": self.num_layers,
            "parameters": self.parameter_count(),
            "share": self.parameter_count() / max(self.model.parameter_count(), 1),
        }

    def inserted(self, params: Params) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the clone holds these parameters instead of its own."""
        return inserted(self.slots, self.dtypes, params)


@contextlib.contextmanager
def inserted(
    slots: Mapping[str, Slot], dtypes: Mapping[str, mx.Dtype], params: Params
) -> Generator[None]:
    """Put parameters into a module's slots, in their compute dtypes, and take them out again.

    Args:
        slots: Places by dotted path.
        dtypes: Compute dtype by the same paths.
        params: The parameters, in any nesting that flattens to the same paths.

    Raises:
        ValueError: The paths differ.
    """
    flat = flatten(params)
    values = {name: leaf.astype(dtypes.get(name, leaf.dtype)) for name, leaf in flat.items()}
    with swapped(slots, values):
        yield


def functional(
    module: Callable[..., mx.array],
    slots: Mapping[str, Slot],
    dtypes: Mapping[str, mx.Dtype],
    caches: int = 0,
) -> ApplyFn:
    """Return a module's forward pass as a pure function of (params, batch, key).

    Args:
        module: ``module(tokens, cache=...) -> [B, T, ...]``.
        slots: Where the parameters go.
        dtypes: The dtype they compute in there.
        caches: Number of caches the module takes, for attention within documents; 0 for rows
            of one document, which need no mask beyond the causal one.
    """

    def apply(params: Params, batch: Batch, key: mx.array | None) -> mx.array:
        with inserted(slots, dtypes, params), keyed(key):
            if not caches:
                return module(batch.tokens)
            return module(batch.tokens, cache=document_caches(batch.segments, caches))

    return apply
