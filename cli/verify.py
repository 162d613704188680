"""``mlxfn verify``: run the laws on a configuration's own model, adapter, data and step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import asdict, evolve

from mlxfn_cli import args, render

if TYPE_CHECKING:
    from mlxfn.config import Config
    from mlxfn.testing import Fact


def verify(
    config: args.ConfigFile = None,
    model: args.Model = None,
    data: args.Data = None,
    settings: args.Settings = None,
    json: args.Json = False,
) -> int:
    """Check that a run would train what it says.

    Runs the laws on your model, adapter, data and step, in float32 unless model.dtype says
    otherwise: the gradient against finite differences, recompute, chunked loss and packing
    against the plain ones, accumulation, the masks of ten rows, the export in mlx-lm. Nothing is
    trained and nothing is written. Exit code 1 when a law is broken.

    Example: mlxfn verify my-run.toml
    """
    loaded = args.load_config(config, model=model, data=data, settings=settings)
    # Imported here, as in every command: mlx_lm takes seconds that --help need not pay.
    from mlxfn.assemble import assemble
    from mlxfn.testing.verify import verify as facts_of

    facts = list(facts_of(assemble(in_float32(loaded.config))))
    broken = [fact for fact in facts if not fact.holds]
    if json:
        render.json_value({"holds": not broken, "facts": [asdict(fact) for fact in facts]})
    else:
        render.table(("law", "holds", "off by", "measured on"), map(row, facts))
        said = "every law holds" if not broken else f"{len(broken)} of {len(facts)} laws are broken"
        render.text(said)
    return 1 if broken else 0


def in_float32(config: Config) -> Config:
    """Return the configuration with the dtype chosen in which differences can be measured."""
    if config.model.dtype != "auto":
        return config
    return evolve(config, model=evolve(config.model, dtype="float32"))


def row(fact: Fact) -> tuple[str, str, str, str]:
    """Return a fact as a row of the table.

    Example:
        >>> from mlxfn.testing import Fact
        >>> row(Fact("padding changes nothing", True, 1.25e-7, "1 more row"))
        ('padding changes nothing', 'yes', '1.2e-07', '1 more row')
    """
    figure = "" if fact.figure is None else f"{fact.figure:.2g}"
    return fact.name, "yes" if fact.holds else "NO", figure, fact.detail
