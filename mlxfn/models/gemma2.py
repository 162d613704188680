"""Gemma 2 as it was trained: what mlx-lm's attention layers leave out."""

from __future__ import annotations

import functools
from typing import Any

import mlx.core as mx
from mlx import nn

_WINDOW = 4096  # of every published Gemma 2, some of whose configurations do not say so


def complete_gemma2(module: nn.Module, config: dict[str, Any]) -> None:
    """Give the attention layers of a Gemma 2 their sliding window and masks of several rows.

    mlx-lm lets every layer look back without limit, where every second one was trained to look
    back ``sliding_window`` positions; and where key heads are shared, it lays a mask
    [B, 1, T, T] over the heads instead of the rows. Rows no longer than the window that need
    no mask of their own pass bit for bit. Other models are left as they are.

    Args:
        module: The network; its attention layers get a class derived from the one they have.
        config: The contents of ``config.json``.
    """
    if config.get("model_type") != "gemma2":
        return
    layers: Any = module.layers
    for layer, window in zip(layers, layer_windows(config), strict=True):
        layer.self_attn.__class__ = _completed(type(layer.self_attn))
        layer.self_attn.window = window


def layer_windows(config: dict[str, Any]) -> list[int | None]:
    """Return for each layer how many positions a query looks back, itself included.

    Args:
        config: The contents of a Gemma 2's ``config.json``.

    Example:
        >>> layer_windows({"num_hidden_layers": 3, "sliding_window": 8})
        [8, None, 8]
    """
    names = ("sliding_attention", "full_attention")
    layers = range(config["num_hidden_layers"])
    kinds = config.get("layer_types") or [names[i % 2] for i in layers]
    window = config.get("sliding_window", _WINDOW)
    return [window if kind == names[0] else None for kind in kinds]


def narrowed(mask: mx.array | None, queries: int, keys: int, window: int | None) -> mx.array | None:
    """Return a mask that also hides the keys in front of the window.

    Args:
        mask: bool [..., queries, keys]; True where a query may look. None shows everything.
        queries: Positions of this call, the last of the keys.
        keys: Positions so far.
        window: Positions a query looks back, itself included; None is all.

    Example:
        >>> narrowed(None, 1, 4, 2).astype(mx.int32)
        array([[0, 0, 1, 1]], dtype=int32)
    """
    if window is None or keys <= window:
        return mask
    here, there = mx.arange(keys - queries, keys)[:, None], mx.arange(keys)[None]
    near = here < there + window
    return near if mask is None else mask & near


@functools.cache
def _completed(cls: type[nn.Module]) -> type[nn.Module]:
    def call(self: Any, x: mx.array, mask: mx.array | None = None, cache: Any = None) -> mx.array:
        queries = x.shape[1]
        keys = queries + (cache.offset if cache is not None else 0)
        mask = narrowed(mask, queries, keys, self.window)
        if mask is not None and mask.ndim == 4 and self.repeats > 1:
            mask = mask[:, :, None]  # scores are [B, key heads, repeats, T, T]
        return cls.__call__(self, x, mask, cache)

    return type(f"Complete{cls.__name__}", (cls,), {"__call__": call})
