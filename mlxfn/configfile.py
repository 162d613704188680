"""From a TOML or YAML file and overrides to a Config, with every error reported at once."""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

import attrs
import cattrs

from mlxfn.config import Config, sections
from mlxfn.errors import ConfigError
from mlxfn.files import utf8

Values = dict[str, Any]
"""Configuration values by dotted path."""


@attrs.frozen
class Loaded:
    """A configuration and what was noticed on the way to it."""

    config: Config
    notes: tuple[str, ...] = ()  # one sentence for each alias that was understood
    given: tuple[frozenset[str], ...] = ()  # keys that each layer set: the file, the overrides


def load(path: Path | None = None, *, overrides: Mapping[str, Any] | None = None) -> Loaded:
    """Read a configuration file and lay overrides over it.

    Args:
        path: A ``.toml``, ``.yaml`` or ``.yml`` file; without one the schema's defaults are used.
        overrides: Values by dotted path; they win over the file.

    Raises:
        ConfigError: The file is missing or broken, or any key or value is wrong. All of them
            are named in one message, each with its path.

    Example:
        >>> load(overrides={"adapter.rank": 8}).config.adapter.rank
        8
    """
    values = flatten(_read(path)) if path else {}
    return build(values, flatten(overrides or {}), where=str(path) if path else None)


def build(*layers: Mapping[str, Any], where: str | None = None) -> Loaded:
    """Check values by dotted path and return the configuration they make.

    Args:
        layers: Values by dotted path, or by an accepted alias; a later layer wins.
        where: The file they come from, for the message.

    Raises:
        ConfigError: One or more keys or values are wrong.

    Example:
        >>> build({"lr": 1e-3}).notes
        ("'lr' is read as 'optimizer.learning_rate'",)
    """
    known, notes, errors, given = {}, [], [], []
    for values in layers:
        # Each layer by itself: an alias may override the same setting under its own name.
        found, remarks, problems = _resolve_names(values)
        known |= found
        notes += remarks
        errors += problems
        given.append(frozenset(found))
    schema = sections()
    checked: Values = {}
    for name, value in known.items():
        try:
            checked[name] = _check(schema[name], value)
        except ValueError as error:
            errors.append(f"expected {error}, got {_show(value)} @ {name}")
    if not errors:
        errors.extend(_contradictions(checked))
    if errors:
        plural = f"{len(errors)} settings are wrong" if len(errors) > 1 else "a setting is wrong"
        raise ConfigError(
            "\n".join([f"{plural}:", *(f"  - {error}" for error in errors)]),
            where=where,
            remedy="mlxfn config schema lists every key with its type and default",
        )
    return Loaded(_assemble(checked), tuple(notes), tuple(given))


def parse_override(text: str) -> tuple[str, Any]:
    """Return the path and value of one ``a.b=c``; the value is TOML, or else a plain string.

    Raises:
        ConfigError: There is no equals sign or no key.

    Example:
        >>> parse_override("adapter.rank=8"), parse_override("data.path=my/rows")
        (('adapter.rank', 8), ('data.path', 'my/rows'))
    """
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise ConfigError("--set takes key=value", got=text, expected="--set optimizer.lr=1e-4")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Values:
    """Return nested tables as values by dotted path; the schema's own tables stay whole.

    Example:
        >>> flatten({"adapter": {"rank": 8}, "data.columns": {"prompt": "q"}})
        {'adapter.rank': 8, 'data.columns': {'prompt': 'q'}}
    """
    flat: Values = {}
    for name, value in nested.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and path not in sections():
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = value
    return flat


def to_values(config: Config) -> Values:
    """Return every value of a configuration by dotted path, in the schema's order."""
    return {name: _get(config, name) for name in sections()}


def to_plain(config: Config) -> Values:
    """Return :func:`to_values` as JSON values: lists for tuples."""
    return json.loads(json.dumps(to_values(config)))


def to_nested(config: Config) -> dict[str, Any]:
    """Return a configuration as plain nested tables without the values that are None."""

    def given(_: Any, value: Any) -> bool:
        return value is not None

    nested = attrs.asdict(config, filter=given)
    return json.loads(json.dumps(nested))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return one line for each value that differs and may not change within a run.

    Args:
        old: Values by dotted path that the run was started with.
        new: Values by dotted path that it is to go on with.

    Example:
        >>> differences({"adapter.rank": 8}, {"adapter.rank": 16})
        ['adapter.rank: 8 -> 16']
    """
    fixed = [name for name, field in sections().items() if not field.metadata["may_change"]]
    return [
        f"{name}: {_show(old.get(name))} -> {_show(new.get(name))}"
        for name in fixed
        if name != "output_dir" and _plain(old.get(name)) != _plain(new.get(name))
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            "the configuration file does not exist",
            where=path,
            remedy="mlxfn config init writes one to start from",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the configuration file cannot be read", where=path, got=error) from error
    parse: Callable[[str], Any] = _yaml if path.suffix in {".yaml", ".yml"} else tomllib.loads
    try:
        table = parse(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"the configuration is not valid {path.suffix.lstrip('.').upper() or 'TOML'}",
            where=path,
            got=str(error),
        ) from error
    if not isinstance(table, dict):
        raise ConfigError("the configuration is not a table of settings", where=path)
    return table


def _yaml(text: str) -> Any:
    import yaml

    try:
        return _numbers(yaml.safe_load(text) or {})
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _numbers(value: Any) -> Any:
    # YAML 1.1 reads 2e-4 as a string; everybody who writes it means the number.
    if isinstance(value, dict):
        return {key: _numbers(child) for key, child in value.items()}
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _resolve_names(values: Mapping[str, Any]) -> tuple[Values, list[str], list[str]]:
    schema = sections()
    aliases = _aliases()
    known: Values = {}
    notes: list[str] = []
    errors: list[str] = []
    for name, value in values.items():
        target = name if name in schema else aliases.get(name)
        if target is None:
            errors.append(f"unknown key {name!r}{_nearest(name, [*schema, *aliases])}")
        elif target in known:
            errors.append(f"{name!r} sets {target!r} a second time")
        else:
            known[target] = value
            if target != name:
                notes.append(f"{name!r} is read as {target!r}")
    return known, notes, errors


def _aliases() -> dict[str, str]:
    """Aliases, alone and inside any section, and every leaf name that is unique."""
    schema = sections()
    leaf_names = [path.rpartition(".")[2] for path in schema]
    names: dict[str, str] = {}
    groups = {path.partition(".")[0] for path in schema if "." in path}
    for path, field in schema.items():
        leaf = path.rpartition(".")[2]
        short = [leaf] if "." in path and leaf_names.count(leaf) == 1 else []
        for alias in [*field.metadata["aliases"], *short]:
            names[alias] = path
            names |= {f"{group}.{alias}": path for group in groups}
    return {alias: path for alias, path in names.items() if alias not in schema}


def _nearest(name: str, candidates: Sequence[str]) -> str:
    leaf = name.rpartition(".")[2]
    by_leaf = {path.rpartition(".")[2]: path for path in reversed(candidates)}
    close = difflib.get_close_matches(name, candidates, 1, 0.75)
    close = close or [by_leaf[m] for m in difflib.get_close_matches(leaf, list(by_leaf), 1)]
    close = close or difflib.get_close_matches(name, candidates, 1)
    return f", did you mean {_aliases().get(close[0], close[0])!r}?" if close else ""


def _check(field: attrs.Attribute[Any], value: Any) -> Any:
    check = field.metadata["check"]
    wanted = check[0] if check else type_name(field.type)
    try:
        structured: Any = _converter.structure(value, cast("type[Any]", field.type))
    except Exception as error:
        raise ValueError(wanted) from error
    if check and structured is not None and not _holds(check[1], structured):
        raise ValueError(wanted)
    return structured


def _holds(test: Callable[[Any], bool], value: Any) -> bool:
    finite = not isinstance(value, float) or math.isfinite(value)
    return finite and bool(test(value))


def _contradictions(values: Values) -> list[str]:
    problems: list[str] = []
    if values.get("schedule.warmup_steps") is not None and (
        values.get("schedule.warmup_ratio") is not None
    ):
        problems.append("give either schedule.warmup_steps or schedule.warmup_ratio, not both")
    if values.get("data.mix") and values.get("data.path", "default") != "default":
        problems.append("give either data.path or data.mix, not both")
    if values.get("adapter.kind") == "full" and values.get("model.quantize_bits"):
        problems.append("a quantized base cannot be trained in full: adapter.kind = 'full'")
    return problems


def _assemble(values: Values) -> Config:
    tables: dict[str, Values] = {}
    top: Values = {}
    for name, value in values.items():
        section, dot, leaf = name.partition(".")
        if dot:
            tables.setdefault(section, {})[leaf] = value
        else:
            top[section] = value
    attrs.resolve_types(Config)
    for field in attrs.fields(Config):
        if field.name in tables and field.type is not None:
            top[field.name] = field.type(**tables[field.name])
    return Config(**top)


def _get(config: Config, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def _show(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return repr(value)


def type_name(kind: Any) -> str:
    """Return a field's type in the words of a user.

    Example:
        >>> type_name(sections()["adapter.rank"].type), type_name(float | None)
        ('an integer', 'a number')
    """
    if kind is None or kind is type(None):
        return "nothing"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) in {list, dict, tuple}:
        inner = "".join(f" of {type_name(arg)}" for arg in get_args(kind)[-1:])
        return {list: "a list", dict: "a table", tuple: "a list"}[get_origin(kind)] + inner
    if args := get_args(kind):
        return " or ".join(type_name(arg) for arg in args if arg is not type(None))
    return {int: "an integer", float: "a number", str: "a text", bool: "true or false"}.get(
        kind, str(kind)
    )


def _text(value: Any, _: Any) -> str:
    if not isinstance(value, str) or "\0" in value or value != utf8(value).decode():
        raise ValueError(type_name(str))  # half a character, or NUL: no file can be named so
    return value


def _strict(kind: type, accepts: tuple[type, ...]) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        if not isinstance(value, accepts) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(type_name(kind))
        return kind(value)

    return structure


def _union(value: Any, kind: Any) -> Any:
    for arm in get_args(kind):
        if arm is type(None) and value is None:
            return None
        try:
            return _converter.structure(value, arm)
        except Exception:  # noqa: BLE001, S112 - cattrs raises many kinds; the next arm may fit
            continue
    raise ValueError(type_name(kind))


def _sequence(value: Any, kind: Any) -> Any:
    args = get_args(kind)
    exact = get_origin(kind) is tuple
    if not isinstance(value, list | tuple) or (exact and len(value) != len(args)):
        raise ValueError(type_name(kind))
    kinds = args if exact else args * len(value)
    items = [_converter.structure(item, arm) for item, arm in zip(value, kinds, strict=True)]
    return tuple(items) if exact else items


def _literal(value: Any, kind: Any) -> Any:
    allowed = get_args(kind)
    if not any(value == option and type(value) is type(option) for option in allowed):
        raise ValueError(type_name(kind))
    return value


_converter = cattrs.Converter()
for _kind, _accepts in {int: (int,), float: (int, float), bool: (bool,)}.items():
    _converter.register_structure_hook(_kind, _strict(_kind, _accepts))
_converter.register_structure_hook(str, _text)
_converter.register_structure_hook_func(lambda t: get_origin(t) is Literal, _literal)
_converter.register_structure_hook_func(lambda t: get_origin(t) in {list, tuple}, _sequence)
_converter.register_structure_hook_func(
    lambda t: (
        type(None) in get_args(t)
        or len([a for a in get_args(t) if get_origin(t) not in {list, tuple, dict, Literal}]) > 1
    ),
    _union,
)
