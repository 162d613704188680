"""``mlxfn verify``: every law holds for what the library builds, and its exit code says so."""

from __future__ import annotations

import json

import pytest

from mlxfn import configfile
from mlxfn.assemble import assemble
from mlxfn.testing.verify import sample, verify
from mlxfn_cli.main import main
from tests.support.models import VOCAB, write_model
from tests.support.runs import data_folder, model_folder, small_config, write_rows

KINDS = {
    "lora on packed rows": {"data__packing": True, "data__loss_on": "assistant"},
    "dora without dropout": {"adapter__kind": "dora", "adapter__dropout": 0.0},
    "full, smoothed": {"adapter__kind": "full", "train__label_smoothing": 0.1},
    "lora on text": {"data__loss_on": "all", "train__remat": "all"},
}


@pytest.mark.parametrize("name", KINDS)
def test_every_law_holds_for_what_the_library_builds(name, tmp_path):
    """The command is worth nothing if it cries wolf."""
    facts = list(verify(assemble(small_config(tmp_path, **KINDS[name]))))
    assert [f"{fact.name}: {fact.detail}" for fact in facts if not fact.holds] == []
    assert len(facts) >= 13


def test_a_quantized_base_is_verified_too(tmp_path):
    """QLoRA: the base is packed integers, and quantized in memory, so its files are others."""
    model = write_model(tmp_path / "model", "qwen3", hidden_size=64)
    changes = {"model__path": str(model), "model__quantize_bits": 4}
    facts = list(verify(assemble(small_config(tmp_path / "run", **changes))))
    assert [f"{fact.name}: {fact.detail}" for fact in facts if not fact.holds] == []
    assert any("the base in memory" in fact.detail for fact in facts)


def test_a_model_that_cannot_be_packed_is_told_and_not_failed(tmp_path):
    """A state-space model refuses packing, which is the right answer."""
    model = write_model(tmp_path / "model", "mamba")
    changes = {"model__path": str(model), "adapter__target_modules": ["in_proj"]}
    facts = {f.name: f for f in verify(assemble(small_config(tmp_path / "run", **changes)))}
    assert "not used" in facts["packed documents are alone"].detail
    assert all(fact.holds for fact in facts.values())


def test_the_sample_is_ragged_labelled_and_small(tmp_path):
    """Rows of one length would hide every error of padding and of averaging."""
    job = assemble(small_config(tmp_path))
    batch = sample(job.train.rows, vocab_size=VOCAB, longest=16)
    assert batch.tokens.shape[1] <= 16
    lengths = (batch.segments > 0).sum(axis=1).tolist()
    assert all((batch.labels != -100).any(axis=1).tolist())
    whole = sample(job.train.rows, vocab_size=VOCAB)
    assert len(set((whole.segments > 0).sum(axis=1).tolist())) > 1
    assert max(lengths) == 16


def command(data, *extra):
    settings = {"adapter.rank": 2, "data.max_seq_length": 64}
    flags = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return main(["verify", "--model", str(model_folder()), "--data", str(data), *flags, *extra])


def test_the_command_shows_figures_and_exits_with_0(capsys, tmp_path):
    """A script relies on the exit code, a person on the table."""
    assert command(data_folder()) == 0
    out = capsys.readouterr().out
    assert "every law holds" in out
    assert "the gradient is the slope of the loss\tyes\t" in out
    assert "tokens read + learned" in out


def test_the_command_finds_labels_that_are_one_off_and_exits_with_1(capsys, tmp_path):
    """Rows that come tokenized, with labels shifted by whoever made them."""
    ids = [[(7 * i + j) % 300 for j in range(6 + i % 4)] for i in range(12)]
    rows = [{"input_ids": row, "labels": [*row[1:], -100]} for row in ids]
    folder = write_rows(tmp_path / "train.jsonl", rows).parent
    assert command(folder, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["holds"] is False
    broken = [fact for fact in found["facts"] if not fact["holds"]]
    assert [fact["name"] for fact in broken] == ["the masks learn the answers"]
    assert "one position too early" in broken[0]["detail"]
    assert "train.jsonl:1" in broken[0]["detail"]


def test_a_wrong_data_path_is_an_error_of_the_data_and_not_a_broken_law(capsys, tmp_path):
    """Exit code 3 and one message, as with every command."""
    assert command(tmp_path / "nothing") == 3
    assert "does not exist" in capsys.readouterr().err


def test_differences_are_measured_in_float32_unless_a_dtype_is_chosen():
    """In half precision rounding hides all but gross errors."""
    from mlxfn_cli.verify import in_float32

    build = configfile.build
    assert in_float32(build({}).config).model.dtype == "float32"
    assert in_float32(build({"model.dtype": "bfloat16"}).config).model.dtype == "bfloat16"
