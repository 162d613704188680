"""Paths that cannot be asked for, in every place that takes one: one message, no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.cli import environment, without_privileges
from tests.support.runs import data_folder, model_folder

# One process for all: importing what a command needs takes longer than all the refusals.
PROGRAM = """
import contextlib, io, json, sys
from mlxfn_cli.main import main
for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def train(*words: str) -> list[str]:
    """Return ``mlxfn train`` on good settings, all but those of the words."""
    good = {"--model": str(model_folder()), "--data": str(data_folder()), "--output": "run"}
    taken = set(words)
    rest = [word for pair in good.items() if pair[0] not in taken for word in pair]
    return ["train", *rest, *words]


PLACES: dict[str, tuple[int, Callable[[str], list[str]]]] = {
    "output": (4, lambda path: train("--output", path)),
    "output to resume": (4, lambda path: train("--output", path, "--resume")),
    "output to make fresh": (4, lambda path: train("--output", path, "--fresh")),
    "data": (3, lambda path: train("--data", path, "--dry-run")),
    "cache": (3, lambda path: train("--set", f"data.cache={path}", "--dry-run")),
    "model": (2, lambda path: train("--model", path, "--dry-run")),
    "init_from": (2, lambda path: train("--set", f"adapter.init_from={path}", "--dry-run")),
    "config": (2, lambda path: ["config", "check", path]),
    "new config": (2, lambda path: ["config", "init", path]),
    "eval": (4, lambda path: ["eval", path]),
    "generate": (4, lambda path: ["generate", path, "--prompt", "a"]),
    "report": (4, lambda path: ["report", path]),
    "checkpoints": (4, lambda path: ["checkpoints", path]),
}
PATHS = {
    "below a closed folder": "closed/x",
    "far below a closed folder": "closed/x/y/z",
    "below a file": "./file/x",
    "a link to itself": "./loop/x",
    "a name too long": "n" * 300,
    "a path too long": "n/" * 3000,
    "no such user": "~nobody-here/x",
    "nobody may make it": "/proc/x",
}


@pytest.fixture(scope="module")
def said():
    """Return what each place says of each path, asked by somebody without root's rights."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "closed/x").mkdir(parents=True)
        (folder / "file").touch()
        (folder / "loop").symlink_to("loop")
        (folder / "closed").chmod(0)
        jobs = [(place, path) for place in PLACES for path in PATHS]
        try:
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM],
                input=json.dumps([PLACES[place][1](PATHS[path]) for place, path in jobs]),
                cwd=folder,
                env=environment(),
                capture_output=True,
                text=True,
                check=True,
                preexec_fn=without_privileges,
            )
            left = {path.name for path in folder.iterdir()}
        finally:
            (folder / "closed").chmod(0o700)
    answers = map(json.loads, done.stdout.splitlines())
    return dict(zip(jobs, answers, strict=True)), left


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("place", PLACES)
def test_a_path_that_cannot_be_asked_for_is_one_message_with_the_right_code(said, place, path):
    """The system's errors come from asking whether a file is there, before anything is opened."""
    code, out, err = said[0][place, path]
    assert err.startswith("error: "), err
    assert "unexpected" not in err
    assert (code, out, err.count("error: ")) == (PLACES[place][0], "", 1), err


def test_no_folder_is_made_for_a_path_that_cannot_be_asked_for(said):
    """A tilde that means nobody is no name of a folder."""
    assert said[1] == {"closed", "file", "loop"}


def test_a_tilde_is_the_same_folder_for_all_files_of_a_run(tmp_path, monkeypatch):
    """Its checkpoints lay in a folder named ``~`` while its adapters lay at home."""
    import mlxfn as mf
    from tests.support.runs import small_config

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    result = mf.train(small_config(Path("~/run"), train__max_steps=1, eval__eval_at_start=False))
    assert result.run_dir == str(tmp_path / "home/run")
    assert (tmp_path / "home/run/adapters/adapters.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


@pytest.mark.parametrize("text", ["a\0b", "\udcff"])
def test_a_text_that_no_file_can_be_named_with_is_a_wrong_setting(text):
    """A file of settings with it could not be read again."""
    from mlxfn import configfile
    from mlxfn.errors import ConfigError

    with pytest.raises(ConfigError, match="expected a text, got"):
        configfile.build({"output_dir": text})
