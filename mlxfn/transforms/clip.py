"""Clipping by the global norm."""

from __future__ import annotations

import mlx.core as mx

from mlxfn import tree
from mlxfn.transforms.base import Transform
from mlxfn.tree import Grads, Params, Tree


def clip_by_global_norm(max_norm: float) -> Transform:
    """Return the transform that scales gradients down to a global norm.

    All gradients are multiplied by ``min(1, max_norm / (norm + 1e-6))``, the norm taken in
    fp32 over all leaves (Pascanu et al., 2013, with PyTorch's constant). The flag stays on the
    device. Gradients below the limit pass bit for bit.

    Args:
        max_norm: The limit, > 0; 0 turns clipping off.

    Example:
        >>> clip = clip_by_global_norm(1.0)
        >>> grads, _ = clip.update({"w": mx.array([3.0, 4.0])}, clip.init({}), {})
        >>> f"{tree.global_norm(grads).item():.4f}"
        '1.0000'
    """

    def update(grads: Grads, state: Tree, _: Params) -> tuple[Grads, Tree]:
        if not max_norm:
            return grads, state
        coefficient = mx.minimum(1.0, max_norm / (tree.global_norm(grads) + 1e-6))
        return tree.scale(grads, coefficient), state

    return Transform(lambda _: {}, update, elementwise=True)
