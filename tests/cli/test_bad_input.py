"""What a user sees when something is wrong: one message, the right exit code, nothing lost."""

from __future__ import annotations

import json
import resource

import pytest

from tests.support.cli import mlxfn, without_privileges
from tests.support.models import write_model
from tests.support.runs import data_folder, model_folder, sums, write_rows


@pytest.fixture
def train(tmp_path):
    """Return ``mlxfn train`` on a small model and good rows, in an empty folder."""

    def run(*words, data=None, model=None, before=None):
        return mlxfn(
            "train",
            "--model",
            model or model_folder(),
            "--data",
            data or data_folder(),
            "--output",
            "run",
            *words,
            cwd=tmp_path,
            before=before,
        )

    return run


def refused(done, code, *texts):
    """Assert one message on stderr with these texts, and nothing on stdout."""
    assert done.code == code, done
    assert done.err.startswith("error: "), done.err
    assert done.err.count("error: ") == 1
    assert "Traceback" not in done.err
    assert done.out == ""
    for text in texts:
        assert text in done.err, f"{text!r} is not in:\n{done.err}"


# Settings


def test_a_missing_configuration_file_is_named(tmp_path):
    """A mistyped path is the commonest mistake of all."""
    refused(mlxfn("train", "none.toml", cwd=tmp_path), 2, "does not exist", "none.toml")


def test_a_broken_configuration_file_names_the_place(tmp_path):
    """Line and column, as every editor takes them."""
    (tmp_path / "c.toml").write_text("[train\n")
    refused(mlxfn("train", "c.toml", cwd=tmp_path), 2, "not valid TOML", "c.toml", "line 1")


def test_an_unknown_key_gets_the_nearest_name(tmp_path):
    """Peers train on without it, and the user wonders why nothing changed."""
    done = mlxfn("train", "--set", "adapter.rnk=8", cwd=tmp_path)
    refused(done, 2, "unknown key 'adapter.rnk'", "did you mean 'adapter.rank'?")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("adapter.rank=0", "an integer >= 1, got 0 @ adapter.rank"),
        ("optimizer.learning_rate=-1e-3", "a number > 0, got -0.001 @ optimizer.learning_rate"),
        ("optimizer.learning_rate=0", "a number > 0, got 0 @ optimizer.learning_rate"),
        ("optimizer.learning_rate=nan", "a number > 0, got NaN @ optimizer.learning_rate"),
        ("data.max_seq_length=1", "an integer >= 2, got 1 @ data.max_seq_length"),
        ("data.batch_size=2.5", "got 2.5 @ data.batch_size"),
        ("schedule.name=sawtooth", 'got "sawtooth" @ schedule.name'),
    ],
)
def test_a_value_out_of_range_says_what_it_has_to_be(tmp_path, setting, expected):
    """Each of these trains nothing, or nonsense, and exits 0 elsewhere."""
    refused(mlxfn("train", "--set", setting, cwd=tmp_path), 2, expected)


def test_every_wrong_setting_is_named_at_once(tmp_path):
    """One round trip per mistake is how an evening goes."""
    (tmp_path / "c.toml").write_text("[adapter]\nrank = 0\n[optimizer]\nlerning_rate = 1\n")
    done = mlxfn("config", "check", "c.toml", cwd=tmp_path)
    refused(done, 2, "2 settings are wrong", "adapter.rank", "'optimizer.learning_rate'")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "train"),
        (["train", "--ouput", "x"], "--output"),
        (["train", "--resume", "--fresh"], "not both"),
        (["train", "--set", "rank"], "key=value"),
        (["generate", "runs/x"], "--prompt"),
        (["export", "runs/x", "--to", "gguf", "--output", "y"], "mlx-lm"),
    ],
)
def test_a_wrong_command_line_exits_with_2(tmp_path, words, said):
    """The code of usage errors everywhere, with the name that was meant."""
    refused(mlxfn(*words, cwd=tmp_path), 2, said)


# Model and adapter


def test_a_model_that_is_not_there_is_named(train):
    """A folder that does not exist, and a hub name without a network."""
    refused(train("--dry-run", model="models/none"), 2, "models/none")
    refused(train("--dry-run", model="nobody/no-such-model"), 2, "nobody/no-such-model")


def test_a_target_module_that_does_not_exist_lists_what_does(train):
    """Names differ between architectures; the list ends the guessing."""
    done = train("--dry-run", "--set", 'adapter.target_modules=["qkv_proj"]')
    refused(done, 2, "qkv_proj", "q_proj", "down_proj")


def test_an_adapter_folder_for_another_model_is_refused(train, tmp_path):
    """Its shapes do not fit; half of it must not be taken."""
    other = write_model(tmp_path / "other", hidden_size=64)
    (tmp_path / "c.toml").write_text("[train]\nmax_steps = 1\n[eval]\neval_at_start = false\n")
    words = ("--model", other, "--data", data_folder(), "--output", "first")
    assert mlxfn("train", "c.toml", *words, cwd=tmp_path).code == 0
    done = train("--dry-run", "--set", "adapter.init_from=first/adapters")
    refused(done, 2, "first/adapters")


# Data


def test_a_data_path_that_does_not_exist_is_named(train):
    """The second commonest mistake."""
    refused(train("--dry-run", data="rows.jsonl"), 3, "rows.jsonl")


def test_a_broken_json_line_is_shown_with_file_and_line(train, tmp_path):
    """Peers print a traceback of the JSON parser, without file or row."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "one"}\n{"text": "two}\n')
    refused(train("--dry-run", data=rows), 3, "rows.jsonl:2", '{"text": "two}')


def test_an_empty_data_set_is_refused(train, tmp_path):
    """An empty file, and one of blank lines."""
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    refused(train("--dry-run", data=empty), 3, "empty.jsonl")
    empty.write_text("\n\n")
    refused(train("--dry-run", data=empty), 3, "empty.jsonl")


def test_a_row_of_another_format_is_named(train, tmp_path):
    """One stray row in ten thousand would otherwise surface as a KeyError, hours later."""
    rows = write_rows(tmp_path / "rows.jsonl", [*sums(3), {"question": "?", "answer": "!"}])
    refused(train("--dry-run", data=rows), 3, "rows.jsonl:4", "prompt")


def test_a_data_set_where_every_row_loses_its_targets_is_refused(train, tmp_path):
    """Prompts longer than the limit leave nothing to learn: peers train on NaN for ever."""
    rows = [{"prompt": "why " * 60, "completion": "so"} for _ in range(4)]
    rows = write_rows(tmp_path / "rows.jsonl", rows)
    done = train("--dry-run", "--set", "data.max_seq_length=32", data=rows)
    refused(done, 3, "rows.jsonl", "max_seq_length")


def test_an_id_outside_the_vocabulary_never_reaches_the_device(train, tmp_path):
    """There it would read foreign memory, silently."""
    rows = [
        {"input_ids": [1, 2, 3], "labels": [1, 2, 3]},
        {"input_ids": [1, 400], "labels": [1, 2]},
    ]
    rows = write_rows(tmp_path / "rows.jsonl", rows)
    refused(train("--dry-run", data=rows), 3, "400")


def test_a_data_set_smaller_than_a_batch_trains(train, tmp_path):
    """Three rows are a small data set, not an error."""
    rows = write_rows(tmp_path / "rows.jsonl", sums(3))
    words = ["--set", "data.batch_size=8", "--set", "train.num_epochs=1", "--json"]
    done = train(*words, data=rows)
    assert done.code == 0, done.err
    result = json.loads(done.out.splitlines()[-1])["result"]
    assert result["samples"] == 3


# Run directory


def test_an_output_directory_that_holds_another_run_is_not_touched(train, tmp_path):
    """Silent overwriting is what every peer does."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("# mine\n")
    refused(train(), 4, "run", "--resume", "--fresh", "--output")
    assert (run / "config.toml").read_text() == "# mine\n"


def test_nothing_to_resume_is_an_error(train):
    """Starting anew instead would look like a resume that forgot everything."""
    refused(train("--resume"), 4, "run")


def test_an_output_directory_without_write_permission_is_named(train, tmp_path):
    """Found out before the model is loaded, not after an epoch."""
    tmp_path.chmod(0o555)
    try:
        done = train(before=without_privileges)
    finally:
        tmp_path.chmod(0o755)
    refused(done, 4, "run", "permission")


def test_an_output_directory_that_is_a_file_is_named(train, tmp_path):
    """mkdir's error alone would not say which of the paths it means."""
    (tmp_path / "run").write_text("a file")
    refused(train(), 4, "run")


def test_a_full_disk_loses_nothing_that_was_saved(train, tmp_path):
    """The checkpoint that does not fit is reported and leaves no half of itself behind."""

    def small_files_only():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    done = train("--set", "train.max_steps=2", "--quiet", before=small_files_only)
    assert done.code == 4, done
    assert "could not be written" in done.err
    assert "free some disk space" in done.err
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    assert train("--resume", "--set", "train.max_steps=2", "--quiet").code == 0


def test_an_error_before_training_leaves_no_run_behind(train, tmp_path):
    """The same command works once the mistake is mended, without --fresh."""
    short = ["--set", "train.max_steps=1", "--set", "eval.eval_at_start=false"]
    refused(train(*short, data=tmp_path / "none.jsonl"), 3, "none.jsonl")
    assert train(*short).code == 0
