"""Arguments that several commands share, and how they become a configuration."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mlxfn.configfile import Loaded

ConfigFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="CONFIG",
        help="A TOML or YAML file. Without one: the tiny model and data that ship with mlxfn.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="PATH", help="Base model: a folder or a hub name.", show_default=False
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="Data: one JSONL file, or a folder with train.jsonl and valid.jsonl.",
        show_default=False,
    ),
]
Output = Annotated[
    str | None,
    typer.Option("--output", metavar="DIR", help="Run directory to write to.", show_default=False),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting, e.g. --set optimizer.learning_rate=1e-4. Repeat for more.",
        show_default=False,
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, e.g. runs/default.")]


class Which(StrEnum):
    """Which state of a run."""

    best = "best"
    last = "last"


Checkpoint = Annotated[
    Which,
    typer.Option("--checkpoint", help="The best by validation loss, or the last one."),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to stdout and nothing else.")]


def embedded() -> Path:
    """Return the recipe of the model and data that ship with mlxfn."""
    import mlxfn_configs

    return Path(mlxfn_configs.__file__).parent / "default.toml"


def load_config(
    file: Path | None,
    *,
    model: str | None = None,
    data: str | None = None,
    output: str | None = None,
    settings: list[str] | None = None,
) -> Loaded:
    """Read the configuration that a command line describes.

    Args:
        file: The configuration file. Without one the embedded recipe is used, unless another
            model is chosen: its learning rate and length suit the embedded model only.
        model: Overrides ``model.path``.
        data: Overrides ``data.path``.
        output: Overrides ``output_dir``.
        settings: ``key=value`` texts.

    Raises:
        ConfigError: The file or a setting is wrong.
    """
    from mlxfn import configfile

    overrides: dict[str, Any] = dict(configfile.parse_override(text) for text in settings or [])
    flags = {"model.path": model, "data.path": data, "output_dir": output}
    overrides |= {name: value for name, value in flags.items() if value is not None}
    if file is None and "model.path" not in overrides:
        file = embedded()
    return configfile.load(file, overrides=overrides)
