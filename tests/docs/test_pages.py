"""The documents: their code runs, and what is written from the code is complete."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlxfn import configfile
from mlxfn.config import sections
from mlxfn.data.collate import HostBatch
from mlxfn.data.cursor import to_device
from tests.support.models import VOCAB, write_model

ROOT = Path(__file__).parents[2]


def load(name: str):
    """Import a script of docs/ by its path."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def code_of(page: str) -> str:
    """Return the Python blocks of a page as one program, on the lines where they stand."""
    blocks = list(re.finditer(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))
    program = ""
    for block in blocks:
        line = block.string.count("\n", 0, block.start(1))
        program += "\n" * (line - program.count("\n")) + block[1]
    return program


def blocks_of(language: str) -> list[tuple[str, str]]:
    """Return (page, block) for every block of a language in the documents."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [
        (str(page.relative_to(ROOT)), block)
        for page in pages
        for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    ]


COMMANDS = sorted(
    {
        line.partition("#")[0].strip()
        for language in ("text", "bash")
        for _, block in blocks_of(language)
        for line in block.splitlines()
        if line.startswith("mlxfn ")
    }
)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_in_the_documents_is_one(line):
    """An option that was renamed must not live on in the pages."""
    from typer.main import get_command

    from mlxfn_cli.main import app

    words = shlex.split(line)[1:]
    command, context = get_command(app), None
    while hasattr(command, "list_commands"):
        context = command.make_context("mlxfn", words[:1], parent=context)
        command, words = command.get_command(context, words[0]), words[1:]
        assert command is not None, line
    command.make_context("command", words, parent=context)


@pytest.mark.parametrize(("page", "block"), blocks_of("toml"))
def test_every_configuration_in_the_documents_is_valid(page, block, tmp_path):
    """Configurations are copied from here; a key that no longer exists is an error at once."""
    (tmp_path / "page.toml").write_text(block)
    assert configfile.load(tmp_path / "page.toml").notes == (), page


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return a folder that holds what the pages name: a small model, and rows of data."""
    from mlx_lm import convert

    monkeypatch.chdir(tmp_path)
    plain = write_model(tmp_path / "plain", "qwen3", hidden_size=64)
    target = tmp_path / "mlx-community" / "Qwen3-0.6B-4bit"
    convert(str(plain), str(target), quantize=True, q_bits=4, q_group_size=32)
    rows = [
        {"prompt": f"How much is {i} plus {j}?", "completion": f"It is {i + j}."}
        for i in range(6)
        for j in range(3)
    ]
    (tmp_path / "data/support").mkdir(parents=True)
    for split, part in (("train", rows[:12]), ("valid", rows[12:])):
        text = "\n".join(map(json.dumps, part))
        (tmp_path / "data" / "support" / f"{split}.jsonl").write_text(text)
    return tmp_path


@pytest.mark.parametrize("page", ["docs/tour.md", "docs/howto/own-step.md"])
def test_the_code_of_a_page_runs_as_written(page, place):
    """A tour that does not run is worse than none."""
    names: dict = {}
    exec(compile(code_of(page), page, "exec"), names)  # noqa: S102 - our own documents
    assert names["state"].step.item() > 0


def test_the_tour_ends_with_an_adapter_that_lowers_the_loss(place, capsys):
    """The tour must show a success and not only the absence of errors."""
    names: dict = {}
    exec(compile(code_of("docs/tour.md"), "tour", "exec"), names)  # noqa: S102
    assert names["after"].loss < names["before"].loss
    assert (place / "my-adapter" / "adapters.safetensors").exists()
    assert "perplexity" in capsys.readouterr().out


def test_the_snippet_of_the_readme_runs_as_written(place):
    """It is the first code a reader copies; only the batches have to come from somewhere."""
    ids = np.random.default_rng([0]).integers(0, VOCAB, (4, 9)).astype(np.int32)
    batch = HostBatch(ids[:, :-1], ids[:, 1:], np.ones((4, 8), np.int32))
    names = {"batches": [to_device(batch)] * 2}
    exec(compile(code_of("README.md"), "README.md", "exec"), names)  # noqa: S102
    assert names["state"].step.item() == 2
    assert bool(mx.isfinite(names["metrics"].loss))


def test_every_key_of_the_schema_is_in_the_reference():
    """A key that nobody can find might as well not exist."""
    page = load("hooks").on_page_markdown((ROOT / "docs/reference/config.md").read_text())
    for path, field in sections().items():
        row = next(
            (line for line in page.splitlines() if f"| `{path.rpartition('.')[2]}` |" in line), ""
        )
        assert row, path
        assert field.metadata["text"].split(".")[0] in page, path


def test_every_room_of_the_library_has_a_page():
    """Public names that are in no page are no interface."""
    rooms = load("hooks").rooms()
    modules = {module for names in rooms.values() for module in names}
    assert {"mlxfn.step", "mlxfn.losses.cross_entropy", "mlxfn.checkpoint.codec"} <= modules


def test_every_exit_code_of_an_error_is_in_the_table():
    """Scripts branch on exit codes; the table is their contract."""
    table = load("hooks").errors()
    for code in range(1, 7):
        assert f" | {code} | " in table


def test_the_tree_in_the_readme_is_the_tree():
    """One line per file, from the files themselves."""
    tree = load("tree")
    assert tree.current() == tree.render(), "run: python docs/tree.py"


def test_every_file_in_the_tree_says_what_it_is():
    """A line with a name and nothing else tells a newcomer nothing."""
    lines = load("tree").render().splitlines()
    assert [line for line in lines if len(line.split(maxsplit=1)) < 2] == []


def test_every_test_that_the_test_map_names_exists():
    """A promise that points at a test nobody finds is not proven."""
    named = set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "tests/README.md").read_text()))
    assert named
    for file, name in named:
        texts = [path.read_text() for path in (ROOT / "tests").rglob(file)]
        assert any(f"def {name}(" in text for text in texts), f"{file}::{name}"
