"""A frozen base model and what belongs to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
from mlx import nn

from mlxfn.models.quantized import is_quantized, sizes
from mlxfn.tree import leaves


@attrs.frozen(eq=False)
class Model:
    """A base model; nothing in mlxfn changes its module.

    Args:
        module: The network, frozen; ``module(tokens) -> logits [B, T, V]``.
        tokenizer: mlx-lm's TokenizerWrapper, or None for a module made by hand.
        config: The contents of ``config.json``.
        path: The folder or hub name it was asked for by.
        folder: The local folder its files are in; None for a module made by hand.
        vocab_size: Ids the model has an embedding and a logit for; every id must be below.
        fingerprint: SHA-256 that tells this model's files from others, hexadecimal.
    """

    module: nn.Module
    tokenizer: Any = None
    config: dict[str, Any] = attrs.field(factory=dict)
    path: str = ""
    folder: Path | None = None
    vocab_size: int = 0
    fingerprint: str = ""

    def parameter_count(self) -> int:
        """Return the number of weights, those that are packed into integers included.

        Example:
            >>> Model(nn.QuantizedLinear(64, 8, bias=False, bits=3)).parameter_count()
            512
        """
        packed = [m for m in self.module.modules() if is_quantized(m)]
        inside = sum(_packed_weights(m) for m in packed)
        own = {id(m[name]) for m in packed for name in ("weight", "scales", "biases") if name in m}
        rest = {id(a): a.size for _, a in leaves(self.module.parameters()) if id(a) not in own}
        return inside + sum(rest.values())

    def nbytes(self) -> int:
        """Return the bytes that the weights take, each array counted once."""
        arrays = {id(a): a.nbytes for _, a in leaves(self.module.parameters())}
        return sum(arrays.values())

    def describe(self) -> dict[str, Any]:
        """Return what a person wants to know about the model, as JSON values."""
        quantization = self.config.get("quantization") or {}
        return {
            "path": self.path,
            "type": self.config.get("model_type", type(self.module).__name__),
            "parameters": self.parameter_count(),
            "bytes": self.nbytes(),
            "dtype": compute_dtype(self.module),
            "bits": quantization.get("bits"),
            "vocab_size": self.vocab_size,
            "fingerprint": self.fingerprint,
        }


def _packed_weights(layer: nn.Module) -> int:
    inputs, _ = sizes(layer)
    return inputs * (layer["weight"].size // layer["weight"].shape[-1])


def compute_dtype(module: nn.Module) -> str:
    """Return the dtype that most floating-point values of a module have, as in "float32".

    Example:
        >>> compute_dtype(nn.Linear(2, 2))
        'float32'
    """
    counts: dict[str, int] = {}
    for _, array in leaves(module.parameters()):
        if mx.issubdtype(array.dtype, mx.floating):
            name = str(array.dtype).removeprefix("mlx.core.")
            counts[name] = counts.get(name, 0) + array.size
    return max(counts, key=lambda name: counts[name], default="float32")
