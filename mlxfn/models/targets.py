"""Which modules are adapted: by name, path suffix, regular expression, or all linear ones."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from mlx import nn

from mlxfn.errors import ConfigError
from mlxfn.models.quantized import EMBEDDING_TYPES, linear_types
from mlxfn.models.slots import Site, walk

ALL_LINEAR = "all-linear"


def decoder_layers(module: nn.Module) -> list[Site]:
    """Return the decoder layers of a model in order; none where it has no ``layers``.

    Args:
        module: A model as mlx-lm builds them.

    Example:
        >>> [site.path for site in decoder_layers(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))]
        ['layers.0', 'layers.1']
    """
    sites = {id(site.module): site for site in reversed(list(walk(module)))}
    layers = getattr(module, "layers", None) or ()
    return [sites[id(layer)] for layer in layers if id(layer) in sites]


def resolve_targets(
    module: nn.Module, targets: str | Sequence[str], num_layers: int = -1
) -> list[Site]:
    """Return the modules that the targets name, in the model's own order.

    Args:
        module: The model.
        targets: ``"all-linear"`` (every linear layer inside the decoder layers), or names
            (``q_proj``), path suffixes (``self_attn.q_proj``) and regular expressions, which
            have to match a whole path or the end of one from a dot on.
        num_layers: Only the last n decoder layers; -1 is all. Modules outside of them
            (embeddings, head) are not limited by it.

    Raises:
        ConfigError: A target matches nothing, an expression is broken, or the model has
            fewer layers.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> [site.path for site in resolve_targets(model, ["2"])]
        ['layers.2']
    """
    candidates = _adaptable(module)
    layers = decoder_layers(module)
    if targets == ALL_LINEAR:
        chosen = [s for s in candidates if _is_linear(s) and _layer_of(s, layers) is not None]
        if not chosen:
            raise _no_match(ALL_LINEAR, candidates)
    else:
        names = [targets] if isinstance(targets, str) else list(targets)
        chosen = _match_all(names, candidates)
    first = len(layers) - num_layers_to_adapt(layers, num_layers)
    kept = [s for s in chosen if (n := _layer_of(s, layers)) is None or n >= first]
    if not kept:
        raise ConfigError(
            f"no target module is in the last {num_layers} layers",
            where="adapter.num_layers",
            got=", ".join(sorted({s.path.rsplit(".", 1)[-1] for s in chosen})),
            remedy="raise num_layers, or use -1 for all layers",
        )
    return kept


def _adaptable(module: nn.Module) -> list[Site]:
    """Return the sites that an adapter can go into, each place once."""
    kinds = (*linear_types(), *EMBEDDING_TYPES)
    places: dict[tuple[int, str], Site] = {}
    for site in walk(module):
        if isinstance(site.module, kinds):
            places.setdefault((id(site.container), str(site.key)), site)
    return list(places.values())


def _is_linear(site: Site) -> bool:
    return isinstance(site.module, linear_types())


def _layer_of(site: Site, layers: Sequence[Site]) -> int | None:
    for index, layer in enumerate(layers):
        if site.path == layer.path or site.path.startswith(layer.path + "."):
            return index
    return None


def num_layers_to_adapt(layers: Sequence[Site], num_layers: int) -> int:
    """Return how many of the last layers a ``num_layers`` setting stands for.

    Raises:
        ConfigError: The model does not have as many, or the number is below 1 and not -1.
    """
    if num_layers == -1:
        return len(layers)
    if not 1 <= num_layers <= len(layers):
        raise ConfigError(
            "the model has no such number of layers to adapt",
            where="adapter.num_layers",
            got=num_layers,
            expected=f"-1 for all, or 1 to {len(layers)}",
        )
    return num_layers


def _match_all(names: Iterable[str], candidates: Sequence[Site]) -> list[Site]:
    matched: set[str] = set()
    for name in names:
        paths = [site.path for site in candidates if _matches(name, site.path)]
        if not paths:
            raise _no_match(name, candidates)
        matched.update(paths)
    if not matched:
        raise _no_match("", candidates)
    return [site for site in candidates if site.path in matched]


def _matches(target: str, path: str) -> bool:
    if path == target or path.endswith("." + target):
        return True
    try:
        return re.fullmatch(rf"(?:.*\.)?(?:{target})", path) is not None
    except re.error as error:
        raise ConfigError(
            "a target module is neither a name nor a regular expression",
            where="adapter.target_modules",
            got=f"{target!r} ({error})",
        ) from error


def _no_match(target: str, candidates: Sequence[Site]) -> ConfigError:
    counts = Counter(_short(site) for site in candidates)
    listed = ", ".join(f"{name} ({count})" for name, count in counts.items())
    nearest = difflib.get_close_matches(target, counts, 1)
    return ConfigError(
        "a target module does not exist in this model" if target else "no target module is given",
        where="adapter.target_modules",
        got=repr(target) if target else "an empty list",
        expected=f"one of {listed}" if listed else "a model with linear layers",
        remedy=f"did you mean {nearest[0]!r}?" if nearest else None,
    )


def _short(site: Site) -> str:
    """Return the last name of the path that is not a number."""
    return next((p for p in reversed(site.path.split(".")) if not p.isdigit()), site.path)
