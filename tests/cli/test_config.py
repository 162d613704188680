"""``mlxfn config``: what it shows can be read back, and what it writes can be trained with."""

from __future__ import annotations

import json
import tomllib

from mlxfn import configfile
from mlxfn.config import Config, sections
from mlxfn_cli.args import embedded
from tests.support.cli import mlxfn


def test_show_prints_toml_that_reads_back_as_the_same_configuration(tmp_path):
    """So that a run can be repeated from what was shown."""
    (tmp_path / "c.toml").write_text('[data]\ncolumns = {prompt = "q"}\n[adapter]\nrank = 4\n')
    words = ("--set", "lr=1e-5", "--set", "schedule.warmup_ratio=0.5")
    done = mlxfn("config", "show", "c.toml", *words, cwd=tmp_path)
    shown = configfile.build(configfile.flatten(tomllib.loads(done.out))).config
    overrides = {"lr": 1e-5, "schedule.warmup_ratio": 0.5}
    assert shown == configfile.load(tmp_path / "c.toml", overrides=overrides).config


def test_show_says_where_each_value_comes_from(tmp_path):
    """The first question when a run does not do what its file says."""
    (tmp_path / "c.toml").write_text("[adapter]\nrank = 4\nalpha = 8\n")
    done = mlxfn("config", "show", "c.toml", "--set", "adapter.alpha=16", cwd=tmp_path)
    lines = done.out.splitlines()
    assert "rank = 4  # c.toml" in lines
    assert "alpha = 16.0  # --set" in lines
    assert "dropout = 0.0  # default" in lines


def test_an_alias_overrides_the_file_and_is_reported(tmp_path):
    """lr on the command line and learning_rate in the file are one setting."""
    (tmp_path / "c.toml").write_text("[optimizer]\nlearning_rate = 1\n")
    done = mlxfn("config", "check", "c.toml", "--set", "lr=0.5", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "note: 'lr' is read as 'optimizer.learning_rate'" in done.out
    assert "ok: c.toml" in done.out


def test_without_a_file_the_embedded_recipe_is_shown(tmp_path):
    """mlxfn train without arguments must not be a mystery; another model gets the defaults."""
    shown = json.loads(mlxfn("config", "show", "--json", cwd=tmp_path).out)
    assert shown == _as_json(configfile.load(embedded()).config)
    assert shown != _as_json(Config())
    words = ("--set", "model.path=some/model", "--json")
    other = json.loads(mlxfn("config", "show", *words, cwd=tmp_path).out)
    assert other == {**_as_json(Config()), "model.path": "some/model"}


def _as_json(config):
    return json.loads(json.dumps(configfile.to_values(config)))


def test_init_writes_a_file_that_checks_and_means_the_defaults(tmp_path):
    """Every key is in it, so the file is the reference; nothing in it changes anything."""
    words = ("config", "init", "mine.toml", "--model", "some/model")
    assert mlxfn(*words, cwd=tmp_path).code == 0
    text = (tmp_path / "mine.toml").read_text()
    assert all(name.rpartition(".")[2] in text for name in sections())
    loaded = configfile.load(tmp_path / "mine.toml").config
    assert loaded == configfile.build({"model.path": "some/model"}).config
    assert mlxfn("config", "check", "mine.toml", cwd=tmp_path).code == 0


def test_init_never_overwrites(tmp_path):
    """The file it would replace is the one somebody spent an evening on."""
    (tmp_path / "mlxfn.toml").write_text("# mine\n")
    done = mlxfn("config", "init", cwd=tmp_path)
    assert done.code == 2
    assert "not overwritten" in done.err
    assert (tmp_path / "mlxfn.toml").read_text() == "# mine\n"


def test_schema_lists_every_key(tmp_path):
    """What is not listed cannot be found."""
    rows = json.loads(mlxfn("config", "schema", "--json", cwd=tmp_path).out)
    assert [row["key"] for row in rows] == list(sections())
    assert {row["key"]: row["default"] for row in rows}["optimizer.learning_rate"] == 2e-4
    table = mlxfn("config", "schema", cwd=tmp_path).out.splitlines()
    assert len(table) == 1 + len(rows)
