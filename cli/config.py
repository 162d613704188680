"""``mlxfn config``: what the settings are, whether they are right, and a file to start from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxfn_cli import args, render
from mlxfn_cli.words import command

if TYPE_CHECKING:
    from mlxfn.configfile import Loaded

app = typer.Typer(
    name="config",
    help="Show, check and write settings.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@app.command()
def show(
    config: args.ConfigFile = None,
    settings: args.Settings = None,
    json: args.Json = False,
) -> None:
    """Show every setting of a configuration, and where its value comes from.

    Example: mlxfn config show my.toml --set adapter.rank=8
    """
    from mlxfn import configfile

    loaded = args.load_config(config, settings=settings)
    values = configfile.to_values(loaded.config)
    if json:
        render.json_value(values)
        return
    rows = [
        f"{_assignment(name, value)}  # {_origin(name, loaded, config)}"
        if value is not None
        else f"# {name.rpartition('.')[2]} is not set"
        for name, value in values.items()
    ]
    render.text(_as_toml(dict(zip(values, rows, strict=True))))


@app.command()
def check(config: args.ConfigFile = None, settings: args.Settings = None) -> None:
    """Check a configuration file and name everything that is wrong with it.

    Model and data are not looked at: mlxfn train --dry-run does that.

    Example: mlxfn config check my.toml
    """
    loaded = args.load_config(config, settings=settings)
    for note in loaded.notes:
        render.text(f"note: {note}")
    given = len(frozenset().union(*loaded.given))
    render.text(f"ok: {config or args.embedded()} ({given} settings given, the others default)")


@app.command()
def schema(json: args.Json = False) -> None:
    """List every setting with its type, default, unit and meaning.

    Example: mlxfn config schema
    """
    rows = _describe()
    if json:
        render.json_value(rows)
    else:
        render.table(*_as_table(rows))


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")] = Path(
        "mlxfn.toml"
    ),
    model: args.Model = None,
    data: args.Data = None,
    output: args.Output = None,
) -> None:
    """Write a configuration file with every setting explained, to edit and train with.

    Example: mlxfn config init my.toml --model Qwen/Qwen3-0.6B --data my-rows
    """
    from mlxfn.errors import ConfigError

    chosen = {"model.path": model, "data.path": data, "output_dir": output}
    content = _template({name: value for name, value in chosen.items() if value is not None})
    try:
        with file.open("x", encoding="utf-8") as stream:  # "x": never over an existing file
            stream.write(content)
    except FileExistsError as error:
        raise ConfigError(
            "the file exists and is not overwritten", where=file, remedy="give another name"
        ) from error
    except OSError as error:
        raise ConfigError(f"the file cannot be written: {error.strerror}", where=file) from error
    render.text(f"written: {file}\nnext:    {command('mlxfn', 'train', file, '--dry-run')}")


def _describe() -> list[dict[str, Any]]:
    """Return one row for each setting: key, type, default, unit, bounds, aliases, text."""
    from mlxfn import configfile
    from mlxfn.config import Config, sections

    defaults = configfile.to_values(Config())
    return [
        {
            "key": name,
            "type": configfile.type_name(field.type),
            "default": defaults[name],
            "unit": field.metadata["unit"],
            "must_be": field.metadata["check"][0] if field.metadata["check"] else "",
            "aliases": list(field.metadata["aliases"]),
            "may_change_on_resume": field.metadata["may_change"],
            "text": field.metadata["text"],
        }
        for name, field in sections().items()
    ]


def _as_table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    def default(row: dict[str, Any]) -> str:
        value = row["default"]
        return "" if value is None else _assignment("x", value).removeprefix("x = ")

    return ["setting", "default", "meaning"], [
        [row["key"], default(row), _comment(row)] for row in rows
    ]


def _assignment(name: str, value: Any) -> str:
    import tomli_w

    plain = list(value) if isinstance(value, tuple) else value
    if isinstance(plain, dict):  # an inline table keeps it on one line
        inner = ", ".join(_assignment(key, item) for key, item in plain.items())
        return f"{name.rpartition('.')[2]} = {{{inner}}}"
    if isinstance(plain, list):
        items = ", ".join(_assignment("x", item).removeprefix("x = ") for item in plain)
        return f"{name.rpartition('.')[2]} = [{items}]"
    return tomli_w.dumps({name.rpartition(".")[2]: plain}).strip()


def _origin(name: str, loaded: Loaded, file: Path | None) -> str:
    in_file, in_overrides = loaded.given
    if name in in_overrides:
        return "--set"
    return (file.name if file else "embedded default") if name in in_file else "default"


def _as_toml(lines: dict[str, str]) -> str:
    """Put lines by dotted path under the headers of their tables; top-level keys come first."""
    top = [line for name, line in lines.items() if "." not in name]
    blocks = ["\n".join(top)]
    for section in dict.fromkeys(name.partition(".")[0] for name in lines if "." in name):
        inside = [line for name, line in lines.items() if name.startswith(section + ".")]
        blocks.append("\n".join([f"[{section}]", *inside]))
    return "\n\n".join(block for block in blocks if block)


def _template(chosen: dict[str, Any]) -> str:
    """Return a commented file: the settings most runs change are live, the others commented."""
    lines = {
        row["key"]: f"\n# {_comment(row)}\n{_template_line(row, chosen)}" for row in _describe()
    }
    head = (
        "# Settings of an mlxfn run. A line that starts with # shows the default.\n"
        "# Check: mlxfn config check FILE   Try: mlxfn train FILE --dry-run\n"
    )
    return head + _as_toml(lines) + "\n"


_LIVE = {
    "model.path", "data.path", "output_dir", "adapter.kind", "adapter.rank", "adapter.alpha",
    "data.batch_size", "data.max_seq_length", "optimizer.learning_rate", "train.num_epochs",
}  # fmt: skip


def _comment(row: dict[str, Any]) -> str:
    parts = [row["must_be"] or row["type"], f"in {row['unit']}" if row["unit"] else ""]
    return f"{row['text']} ({', '.join(filter(None, parts))})"


def _template_line(row: dict[str, Any], chosen: dict[str, Any]) -> str:
    name, value = row["key"], chosen.get(row["key"], row["default"])
    if value is None:
        return f"# {name.rpartition('.')[2]} ="
    line = _assignment(name, value)
    return line if name in _LIVE else f"# {line}"
