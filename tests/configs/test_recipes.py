"""Every shipped configuration loads as written, and runs up to its first update on a stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest

import mlxfn_configs
from mlxfn import configfile
from mlxfn_cli.main import main

FOLDER = Path(mlxfn_configs.__file__).parent
SHIPPED = sorted(path.name for path in FOLDER.glob("*.toml"))
RECIPES = [name for name in SHIPPED if name != "default.toml"]

# What a recipe's hub model is, as settings that make the small stand-in the same kind of model.
STAND_INS = {"qlora-7b-24gb.toml": ["--set", "model.quantize_bits=4"]}


def test_the_recipes_that_are_promised_are_there() -> None:
    """The documentation names these four and the default."""
    promised = {"default", "lora-0.6b", "qlora-7b-24gb", "dora", "full-0.6b"}
    assert {Path(name).stem for name in SHIPPED} == promised


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_uses_the_schema_s_own_names(name: str) -> None:
    """People copy from recipes, so they must not teach aliases, nor keys that are gone."""
    loaded = configfile.load(FOLDER / name)
    assert loaded.notes == ()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_says_in_its_first_line_what_it_is(name: str) -> None:
    """The first comment is the file's entry in the tree of the repository."""
    first = (FOLDER / name).read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(".")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_dry_on_a_small_stand_in(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its targets exist, its sizes are legal, its rows encode: only the large model is missing."""
    run = tmp_path / "run"
    words = ["train", str(FOLDER / name), "--model", "default", "--data", "default"]
    words += ["--output", str(run), "--dry-run", *STAND_INS.get(name, [])]
    code = main(words)
    out, err = capsys.readouterr()
    assert code == 0, err
    assert "nothing was trained" in out
    assert not run.exists()


def test_a_recipe_is_a_different_way_to_train() -> None:
    """Each recipe shows its own kind of adapter, and the two large ones save memory."""
    configs = {name: configfile.load(FOLDER / name).config for name in RECIPES}
    kinds = {Path(name).stem: config.adapter.kind for name, config in configs.items()}
    assert kinds == {
        "lora-0.6b": "lora",
        "qlora-7b-24gb": "lora",
        "dora": "dora",
        "full-0.6b": "full",
    }
    qlora = configs["qlora-7b-24gb.toml"]
    assert qlora.model.path.endswith("-4bit")
    assert qlora.train.remat == "all"
    assert qlora.data.batch_size * qlora.train.gradient_accumulation_steps >= 8
