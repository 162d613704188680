"""Parts of the site that are written from the code while it is built, so that they cannot go stale.

A page holds a line like ``<!-- generated: config -->``; the table of the same name takes its
place. The pages of the API are generated whole, one for each room of the library.
"""

from __future__ import annotations

import ast
import html
import importlib
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import attrs
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "mlxfn"
MARK = re.compile(r"<!-- generated: (\w+) -->")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put one page for each room of the library into the navigation."""
    reference = next(entry["Reference"] for entry in config.nav or [] if "Reference" in entry)
    reference[-1]["API"] = [f"reference/api/{room}.md" for room in rooms()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the API."""
    for room, modules in rooms().items():
        text = "\n\n".join([f"# mlxfn.{room}", *(f"::: {module}" for module in modules)])
        files.append(File.generated(config, f"reference/api/{room}.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the generated parts of a page."""
    return MARK.sub(lambda found: GENERATORS[found[1]](), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Take the markers of Sphinx roles off the docstrings: ``:func:`name``` is just a name."""
    return re.sub(r":(?:func|class|data|mod|meth):(?=<code>)", "", content)


def rooms() -> dict[str, list[str]]:
    """Return the dotted modules of every room: a module, or a package with what is in it."""
    found: dict[str, list[str]] = {}
    for path in sorted(LIBRARY.rglob("*.py")):
        parts = path.relative_to(LIBRARY).with_suffix("").parts
        if parts != ("__init__",) and _has_public_names(path):
            found.setdefault(parts[0], []).append(".".join(["mlxfn", *parts]))
    return found


def _has_public_names(path: Path) -> bool:
    kinds = (ast.FunctionDef, ast.ClassDef)
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(isinstance(node, kinds) and not node.name.startswith("_") for node in body)


def config_tables() -> str:
    """Return one table for each section of the configuration schema."""
    from mlxfn.config import Config, sections

    keys = sections()  # resolves the types of all sections
    lines: list[str] = []
    for section in attrs.fields(Config):
        inner = {path: field for path, field in keys.items() if path.startswith(section.name + ".")}
        title, text = f"[{section.name}]", inspect.getdoc(section.type)
        if not inner:
            inner, title, text = (
                {section.name: keys[section.name]},
                "At the top",
                "Before any table.",
            )
        lines += [
            "",
            f"## {title}",
            "",
            text,
            "",
            "| key | type | default | |",
            "|---|---|---|---|",
        ]
        lines += [_config_row(path.rpartition(".")[2], field) for path, field in inner.items()]
    return "\n".join(lines)


def _config_row(name: str, field: Any) -> str:
    about = field.metadata
    parts = [about["text"]]
    if about["check"]:
        parts.append(f"Must be {about['check'][0]}.")
    if about["unit"]:
        parts.append(f"Unit: {about['unit']}.")
    if about["aliases"]:
        parts.append("Also read: " + ", ".join(f"`{alias}`" for alias in about["aliases"]) + ".")
    if about["may_change"]:
        parts.append("*May change on resume.*")
    kind = f"<code>{html.escape(type_name(field.type))}</code>"
    return _row(f"`{name}`", kind, _default(field.default), " ".join(parts))


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "&#124;") for cell in cells) + " |"


def _default(value: Any) -> str:
    value = value.factory() if hasattr(value, "factory") else value
    # JSON writes texts, numbers, lists and booleans as TOML does
    return "not set" if value is None else f"`{json.dumps(value)}`"


def type_name(kind: Any) -> str:
    """Return a type as the author of a TOML file would name it.

    Example:
        >>> type_name(list[str] | None), type_name(Literal["a", 2])
        ('list of string', '"a" | 2')
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin in {list, tuple}:
        return f"list of {type_name(args[0])}"
    if origin is dict:
        return "table"
    if origin is Literal:
        return " | ".join(f'"{arg}"' if isinstance(arg, str) else str(arg) for arg in args)
    if args:
        return " | ".join(type_name(arg) for arg in args if arg is not type(None))
    return {int: "integer", float: "number", str: "string", bool: "boolean"}[kind]


def commands() -> str:
    """Return the usage, the options and the help of every command."""
    from typer.main import get_command

    root = get_command(importlib.import_module("mlxfn_cli.main").app)
    context = root.make_context("mlxfn", [], resilient_parsing=True)
    return "\n".join(_commands_below(root, context))


def _commands_below(group: Any, context: Any) -> list[str]:
    lines: list[str] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        below = type(context)(command, info_name=name, parent=context)
        if hasattr(command, "list_commands"):
            lines += _commands_below(command, below)
            continue
        lines += ["", f"## {below.command_path}", "", inspect.cleandoc(command.help or ""), ""]
        lines += ["```text", below.command_path + " " + _usage(command, below), "```", ""]
        rows = [_parameter_row(parameter) for parameter in command.params]
        lines += ["| | default | |", "|---|---|---|", *rows] if rows else []
    return lines


def _usage(command: Any, context: Any) -> str:
    return " ".join(command.collect_usage_pieces(context))


def _parameter_row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        names = f"`{(parameter.metavar or parameter.name).upper().strip('[]')}`"
    else:
        names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    default = parameter.default
    shown = "" if callable(default) or default in {None, False, ()} else f"`{default}`"
    text = " ".join((getattr(parameter, "help", None) or "").split())
    return _row(names, shown, text)


def errors() -> str:
    """Return the table of the errors a user can meet, by exit code."""
    from mlxfn import errors as module

    kinds = [kind for _, kind in inspect.getmembers(module, inspect.isclass)]
    rows = [
        _row(f"`{kind.__name__}`", str(kind.exit_code), (kind.__doc__ or "").splitlines()[0])
        for kind in sorted(kinds, key=lambda kind: kind.exit_code)
    ]
    return "\n".join(["| error | exit code | |", "|---|---|---|", *rows])


def events() -> str:
    """Return the table of the events of a run and what each carries."""
    from mlxfn import events as module

    rows = [
        _row(
            f"`{kind.__name__.lower()}`",
            ", ".join(f"`{field.name}`" for field in attrs.fields(kind) if not field.inherited),
            (kind.__doc__ or "").splitlines()[0],
        )
        for kind in module.Event.__subclasses__()
    ]
    return "\n".join(["| event | carries | |", "|---|---|---|", *rows])


def changelog() -> str:
    """Return the fragments of docs/changelog.d: a folder for each release, newest first."""
    parts: list[str] = []
    for folder in sorted((ROOT / "docs" / "changelog.d").iterdir(), reverse=True):
        parts.append(f"## {folder.name}")
        parts += [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.md"))]
    return "\n\n".join(parts)


GENERATORS: dict[str, Callable[[], str]] = {
    "config": config_tables,
    "commands": commands,
    "errors": errors,
    "events": events,
    "changelog": changelog,
}
