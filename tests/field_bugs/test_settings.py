"""Settings: every one is read by something, and what a file says is what a run gets."""

import ast
from pathlib import Path
from typing import Any, get_args, get_origin

import mlx.core as mx
import pytest
import tomli_w

from mlxfn.assemble import make_plan, make_schedule
from mlxfn.config import Config, sections
from mlxfn.configfile import to_values
from mlxfn_cli.args import load_config

ROOT = Path(__file__).parents[2]
SCHEMA = ("config.py", "configfile.py")
SECTIONS = {path.partition(".")[0] for path in sections() if "." in path}


def sources():
    """The functions of the library and the command line, without the schema itself."""
    files = [*(ROOT / "mlxfn").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]
    for file in files:
        if file.parent.name == "mlxfn" and file.name in SCHEMA:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield node


def section_of(node: ast.expr, names: dict[str, str]) -> str | None:
    """The section that an expression stands for: ``config.train``, or a name bound to it."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute) and node.attr in SECTIONS:
        base = node.value
        name = base.id if isinstance(base, ast.Name) else getattr(base, "attr", "")
        return node.attr if name == "config" else None
    return None


def settings_read() -> set[str]:
    """Every key that some function reads through its section."""
    found = set()
    for function in sources():
        names = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                names[node.targets[0].id] = section_of(node.value, names)
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute):
                section = section_of(node.value, names)
                found.add(f"{section}.{node.attr}" if section else node.attr)
    return found


def test_every_setting_is_read():
    """A setting that is accepted and does nothing is a promise that is broken in silence."""
    assert set(sections()) - settings_read() == set()


def another(path: str, field: Any) -> Any:
    """A valid value of a setting that is not its default."""
    special = {
        "optimizer.betas": [0.8, 0.95],
        "data.columns": {"text": "body"},
        "data.mix": {"a.jsonl": 0.7, "b.jsonl": 0.3},
        "data.workers": 3,
        "log.sinks": ["jsonl"],
        "eval.sample_prompts": ["Hello"],
        "adapter.target_modules": ["o_proj"],
        "train.remat": "all",
        "memory.budget_gb": 7.5,
        "schedule.warmup_steps": 7,
    }
    if path in special:
        return special[path]
    kind, default = field.type, to_values(Config())[path]
    if get_origin(kind) is not None and type(None) in get_args(kind):
        kind = next(arm for arm in get_args(kind) if arm is not type(None))
    if choices := [value for value in get_args(kind) if value != default]:
        return choices[-1]
    if kind is bool:
        return not default
    if kind is str:
        return "elsewhere"
    return (default or 0) + 3 if kind is int else (default or 0.0) / 2 + 0.25


# Two warmups exclude each other, as do full training and a quantized base, and one path and several:
# see below.
LEFT_OUT = {"schedule.warmup_ratio", "model.quantize_bits", "data.mix"}


def test_every_value_of_a_file_wins_over_every_default(tmp_path):
    """Defaults of a command line's own that are applied after the file throw the file away."""
    wanted = {
        path: another(path, field) for path, field in sections().items() if path not in LEFT_OUT
    }
    assert all(wanted[path] != to_values(Config())[path] for path in wanted)
    nested: dict[str, Any] = {}
    for path, value in wanted.items():
        section, _, leaf = path.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[leaf] = value
    (tmp_path / "run.toml").write_text(tomli_w.dumps(nested))
    got = to_values(load_config(tmp_path / "run.toml").config)
    for path, value in wanted.items():
        assert list(got[path]) == value if isinstance(value, list) else got[path] == value, path


@pytest.mark.parametrize("path", sorted(LEFT_OUT))
def test_the_settings_that_exclude_others_win_too(tmp_path, path):
    """They cannot stand in one file with all the rest."""
    value = another(path, sections()[path])
    section, _, leaf = path.rpartition(".")
    (tmp_path / "run.toml").write_text(tomli_w.dumps({section: {leaf: value}}))
    assert to_values(load_config(tmp_path / "run.toml").config)[path] == value


@pytest.mark.parametrize(("key", "value"), [("warmup_steps", 4), ("warmup_ratio", 0.2)])
def test_the_warmup_of_the_file_is_the_warmup_of_the_run(tmp_path, key, value):
    """A rate at its peak from the start is what a long warmup was meant to prevent."""
    text = f"[schedule]\n{key} = {value}\n[train]\nmax_steps = 20\n[optimizer]\nlr = 1.0\n"
    (tmp_path / "run.toml").write_text(text)
    config = load_config(tmp_path / "run.toml").config
    rate = make_schedule(config, make_plan(config, batches_per_epoch=11))
    assert [rate(mx.array(i)).item() for i in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]
