"""The configuration: strict, complete in its errors, and the same after a round trip."""

import math
import tomllib

import pytest
import tomli_w

from mlxfn import configfile
from mlxfn.config import Config, sections
from mlxfn.errors import ConfigError


def errors_of(values):
    with pytest.raises(ConfigError) as caught:
        configfile.build(values)
    return str(caught.value)


def test_every_wrong_setting_is_named_in_one_message():
    """One error at a time is one run at a time."""
    text = errors_of({"adapter.rank": 0, "optimizer.learning_rate": -1, "train.epocs": 3})
    assert "expected an integer >= 1, got 0 @ adapter.rank" in text
    assert "expected a number > 0, got -1 @ optimizer.learning_rate" in text
    assert "unknown key 'train.epocs', did you mean 'train.num_epochs'?" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("optimizer.learning_rate", 0),
        ("optimizer.learning_rate", math.nan),
        ("optimizer.learning_rate", math.inf),
        ("optimizer.learning_rate", "fast"),
        ("adapter.rank", 8.5),
        ("adapter.rank", True),
        ("adapter.kind", "lokr"),
        ("adapter.num_layers", 0),
        ("data.max_seq_length", 1),
        ("data.shuffle", 1),
        ("train.remat", "some"),
        ("train.seed", -1),
        ("train.gradient_accumulation_steps", 0),
        ("optimizer.betas", [0.9]),
        ("optimizer.betas", [0.9, 1.0]),
        ("monitor.divergence_threshold", 1.0),
        ("log.sinks", ["fax"]),
        ("memory.budget_gb", 0),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_path(name, value):
    assert f"@ {name}" in errors_of({name: value})


def test_the_default_of_every_key_passes_its_own_check():
    configfile.build(configfile.to_values(Config()))


def test_values_survive_a_round_trip_through_toml():
    """The run directory's config.toml is what a resume is compared with."""
    config = configfile.build({"lr": 1e-3, "adapter.target_modules": "all-linear"}).config
    text = tomli_w.dumps(configfile.to_nested(config))
    back = configfile.build(configfile.flatten(tomllib.loads(text))).config
    assert back == config


def test_an_alias_is_understood_and_reported():
    loaded = configfile.build({"lora_r": 4, "train.lr": 0.1})
    assert (loaded.config.adapter.rank, loaded.config.optimizer.learning_rate) == (4, 0.1)
    assert len(loaded.notes) == 2


def test_an_alias_beside_its_own_key_is_refused():
    assert "a second time" in errors_of({"lr": 1.0, "optimizer.learning_rate": 2.0})


def test_yaml_reads_numbers_as_people_write_them(tmp_path):
    """YAML 1.1 takes 2e-4 for a string."""
    path = tmp_path / "run.yaml"
    path.write_text("optimizer:\n  learning_rate: 2e-4\nadapter: {rank: 4}\n")
    config = configfile.load(path).config
    assert (config.optimizer.learning_rate, config.adapter.rank) == (2e-4, 4)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "rank = = 3", "not valid TOML"),
        ("a.yaml", "a: [1", "not valid YAML"),
        ("a.yaml", "- 1", "not a table"),
    ],
)
def test_a_broken_file_is_one_message_with_its_path(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        configfile.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_says_how_to_get_one(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        configfile.load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("adapter.rank=8", ("adapter.rank", 8)),
        ("data.path=a/b.jsonl", ("data.path", "a/b.jsonl")),
        ("eval.sample_prompts=['hi', 'you']", ("eval.sample_prompts", ["hi", "you"])),
    ],
)
def test_an_override_is_toml_or_else_text(text, expected):
    assert configfile.parse_override(text) == expected


def test_only_settings_that_may_change_are_silent_on_a_resume():
    old = configfile.to_values(Config())
    new = old | {"checkpoint.save_steps": 7, "optimizer.weight_decay": 0.2, "output_dir": "x"}
    assert configfile.differences(old, new) == ["optimizer.weight_decay: 0.01 -> 0.2"]


def test_contradictions_are_refused():
    assert "not both" in errors_of({"schedule.warmup_steps": 3, "schedule.warmup_ratio": 0.1})
    assert "quantized" in errors_of({"adapter.kind": "full", "model.quantize_bits": 4})


def test_every_key_has_a_sentence_for_the_reference():
    assert all(field.metadata["text"].endswith(".") for field in sections().values())
