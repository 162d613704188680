"""The frame of the command line: help, version, quick start, and errors nobody expected."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mlxfn_cli import main as program
from tests.support.cli import mlxfn, on_terminal, plain

COMMANDS = ["train", "eval", "generate", "export", "checkpoints", "report"]
COMMANDS += [f"config {name}" for name in ("show", "check", "schema", "init")]


@pytest.mark.parametrize("words", ["--help", "train --help", "config check"])
def test_the_shell_is_not_kept_waiting(words):
    """mlx_lm brings transformers, seconds of imports that no help text needs."""
    code = (
        "import sys; from mlxfn_cli.main import main; main(sys.argv[1:]);"
        "print([m for m in ('mlx_lm', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split()], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_with_an_example(command):
    """A newcomer copies the example and changes a word."""
    done = mlxfn(*command.split(), "--help")
    assert done.code == 0
    assert f"Example: mlxfn {command}" in " ".join(done.out.split())


def test_no_command_shows_the_help():
    """The first thing everybody types."""
    done = mlxfn()
    assert done.code == 0
    assert all(name in done.out for name in [*COMMANDS[:6], "config"])


def test_the_version_is_that_of_the_package():
    """Asked for in every bug report."""
    from importlib.metadata import version

    assert mlxfn("--version").out == f"mlxfn {version('mlxfn')}\n"


def broken(*_, **__):
    """Fail as no code of ours does on purpose."""
    raise ZeroDivisionError("division by zero")


def test_an_unexpected_error_is_one_line_and_exit_code_1(monkeypatch, capsys):
    """A bug of ours: the user gets what to send us, not forty lines of frames."""
    monkeypatch.setattr(program.config.args, "load_config", broken)
    assert program.main(["config", "check"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "error: unexpected ZeroDivisionError: division by zero\n"
        "  remedy:   run with --debug for the traceback\n"
    )


@pytest.mark.parametrize("words", [["--debug", "config", "check"], ["config", "check", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(monkeypatch, capsys, words):
    """It is added to the end of a line that failed."""
    monkeypatch.setattr(program.config.args, "load_config", broken)
    assert program.main(words) == 1
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert "in broken" in said
    assert said.endswith("error: unexpected ZeroDivisionError: division by zero\n")


def test_debug_shows_where_an_expected_error_comes_from():
    """For those who look into why a setting was refused."""
    done = mlxfn("config", "check", "none.toml", "--debug")
    assert done.code == 2
    assert "Traceback" in done.err


def test_ctrl_c_outside_of_training_is_130(monkeypatch):
    """The shell's convention, so that a script around it stops too."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(program.config.args, "load_config", interrupted)
    assert program.main(["config", "check"]) == 130


def test_errors_are_coloured_on_a_terminal_only(tmp_path):
    """Colour codes in a log file are noise; on a terminal they are found at a glance."""
    assert "\x1b" not in mlxfn("config", "check", "none.toml", cwd=tmp_path).err
    done = on_terminal("config", "check", "none.toml", cwd=tmp_path)
    assert done.code == 2
    assert "\x1b[1;31merror:" in done.out
    assert "error: the configuration file does not exist" in plain(done.out)
