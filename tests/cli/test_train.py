"""A run through the real command line: what it prints where, and how it stops and goes on."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlxfn_cli.lines import next_commands
from tests.support.cli import (
    PROGRAM,
    environment,
    interrupt_after,
    mlxfn,
    on_terminal,
    plain,
    start,
)
from tests.support.runs import SMALL, data_folder, model_folder


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A configuration file of a small run: 4 updates, one sample prompt."""
    settings = {
        **SMALL,
        "model.path": str(model_folder()),
        "data.path": str(data_folder()),
        "train.max_steps": 4,
        "eval.eval_steps": 2,
        "eval.sample_prompts": ["3 plus 9?"],
        "eval.sample_tokens": 4,
    }
    path = tmp_path_factory.mktemp("config") / "small.toml"
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def piped(config, tmp_path_factory):
    """The small run with stdout in a pipe: where it ran and what it printed."""
    folder = tmp_path_factory.mktemp("piped")
    return folder, mlxfn("train", config, "--output", "run", cwd=folder)


def test_a_pipe_gets_one_plain_line_for_each_event(piped):
    """Log files are read by grep, so nothing moves and nothing is coloured."""
    _, done = piped
    assert done.code == 0, done.err
    kinds = [line.split()[0] for line in done.out.splitlines()]
    assert kinds[:3] == ["start", "sample", "eval"]
    assert kinds[-2:] == ["sample", "end"]
    assert kinds.count("update") == 4
    assert kinds.count("eval") == 3
    assert "\x1b" not in done.out
    assert done.err == ""


def test_the_lines_of_a_run_are_stable(piped):
    """Scripts of users depend on these words; changing them is a breaking change."""
    _, done = piped
    number, rate = r"\d+\.\d+", r"\d\.\de-\d+"
    update = rf"update  4/4  epoch 1  loss {number}  lr {rate}  norm {number}  tok/s \d+ \(\d+ learned\)  memory .*"
    assert re.search(rf"^{update}$", done.out, re.MULTILINE)
    evaluation = rf"eval    update 4/4  loss {number}  perplexity {number}  rows 7(  best)?"
    assert re.search(rf"^{evaluation}$", done.out, re.MULTILINE)
    end = rf"end     finished  update 4/4  valid {number} -> {number}  in .*  run"
    assert re.search(rf"^{end}$", done.out, re.MULTILINE)


def test_a_run_leaves_what_the_design_lists(piped):
    """The run directory is an interface: other tools and later commands read it."""
    folder, _ = piped
    names = {path.name for path in (folder / "run").iterdir()}
    assert names == {
        *("config.toml", "plan.json", "environment.json"),
        *("events.jsonl", "report.json", "report.html"),
        *("checkpoints", "adapters", "best", "run.lock"),
    }


def test_json_is_all_that_json_prints(config, tmp_path):
    """A program that reads stdout must be able to parse every line of it."""
    done = mlxfn("train", config, "--output", "run", "--json", "--set", "lr=1e-3", cwd=tmp_path)
    assert done.code == 0, done.err
    events = [json.loads(line) for line in done.out.splitlines()]
    assert [events[0]["event"], events[-1]["event"]] == ["start", "end"]
    assert [event["update"] for event in events if event["event"] == "step"] == [1, 2, 3, 4]
    assert done.err == "note: 'lr' is read as 'optimizer.learning_rate'\n"


def test_quiet_says_only_how_it_ended(config, tmp_path):
    """In a loop over settings, one line for each run is what one wants."""
    done = mlxfn("train", config, "--output", "run", "--quiet", cwd=tmp_path)
    assert [line.split()[0] for line in done.out.splitlines()] == ["end"]


def test_a_dry_run_shows_the_plan_and_writes_nothing(config, tmp_path):
    """It answers "what would this do" without a trace."""
    done = mlxfn("train", config, "--output", "run", "--dry-run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "LoRA rank 4, alpha 8" in done.out
    assert "4 updates of 2 × 2 rows" in done.out
    assert "21 rows" in done.out
    assert list(tmp_path.iterdir()) == []
    done = mlxfn("train", config, "--dry-run", "--json", cwd=tmp_path)
    assert json.loads(done.out)["plan"]["updates"] == 4
    done = mlxfn("train", config, "--dry-run", "--set", "data.packing=true", cwd=tmp_path)
    assert " of 2 × 2 packs in " in done.out, done


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_and_says_how_to_go_on(config, tmp_path, number, code):
    """The command that is shown must work as it is shown, and finish the run."""
    words = ["train", config, "--output", "my run", "--set", "train.max_steps=400"]
    process = start(*words, "--set", "eval.eval_steps=0", cwd=tmp_path)
    done = interrupt_after(process, "update  2/", number)
    assert done.code == code, done
    assert f"stopped by {number.name} and saved" in done.err
    shown = done.err.split("go on:")[1].strip()
    assert shown == "mlxfn train 'my run/config.toml' --resume"
    saved = sorted((tmp_path / "my run" / "checkpoints").iterdir())
    assert saved
    if number is signal.SIGTERM:
        more = mlxfn("train", tmp_path / "my run" / "config.toml", "--resume", "--dry-run")
        assert more.code == 0, more.err


def test_a_resumed_run_goes_on_from_where_it_was(config, tmp_path):
    """Not from the start, and not with other settings."""
    words = ["train", config, "--output", "run", "--set", "train.max_steps=30"]
    words += ["--set", "eval.eval_steps=0", "--set", "checkpoint.save_steps=0"]
    process = start(*words, cwd=tmp_path)
    stopped = interrupt_after(process, "update  2/", signal.SIGINT)
    assert stopped.code == 130, stopped
    refused = mlxfn(*words, "--set", "adapter.rank=8", "--resume", cwd=tmp_path)
    assert refused.code == 4
    assert "adapter.rank: 4 -> 8" in refused.err
    done = mlxfn("train", "run/config.toml", "--resume", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    first = json.loads(done.out.splitlines()[0])
    assert first["resumed"]
    assert first["update"] >= 2


def test_a_halted_run_exits_with_5_and_says_why(config, tmp_path):
    """A run that diverges to NaN and exits 0 is the classic of the field."""
    words = ["--set", "optimizer.learning_rate=1e30", "--set", "train.nonfinite=halt"]
    words += ["--set", "train.max_grad_norm=0", "--set", "schedule.warmup_steps=0"]
    done = mlxfn("train", config, "--output", "run", *words, cwd=tmp_path)
    assert done.code == 5, done
    assert done.err.startswith("error: Too many updates in a row were NaN or infinite")


def test_a_reader_that_leaves_does_not_end_the_run(config, tmp_path):
    """mlxfn train | head must not cost an hour of training."""
    process = subprocess.Popen(
        [*PROGRAM, "train", str(config), "--output", "run"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().startswith("start")
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert process.stderr.read() == ""
    process.stderr.close()
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["reason"] == "finished"


def test_a_narrow_encoding_is_no_reason_to_fail(config, tmp_path):
    """Models answer in every script, and some terminals know one."""
    env = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = mlxfn("train", config, "--output", "run", cwd=tmp_path, env=env)
    assert done.code == 0, done.err
    assert done.out.isascii()


def test_a_terminal_shows_the_run_and_gets_its_cursor_back(config, tmp_path):
    """The first impression: a header, samples, the curve, where things are, what to do next."""
    done = on_terminal("train", config, "--output", "run", cwd=tmp_path)
    assert done.code == 0, done.out
    for text in ("╭─ mlxfn", "LoRA rank 4", "★ best", "before", "after", "● validation"):
        assert text in plain(done.out), text
    assert "mlxfn generate run --compare --prompt '3 plus 9?'" in done.out
    hidden, shown = "\x1b[?25l", "\x1b[?25h"
    assert done.out.rfind(shown) > done.out.rfind(hidden) >= 0


def test_ctrl_c_is_answered_at_once_and_the_bar_shows_updates_that_are_not_logged(config, tmp_path):
    """Whoever sees nothing happen presses it again, and that stops without saving."""
    words = ["--set", "train.max_steps=4000", "--set", "log.logging_steps=5000"]
    words += ["--set", "eval.eval_steps=0", "--set", "eval.eval_at_start=false"]
    done = on_terminal(
        "train", config, "--output", "run", *words, cwd=tmp_path, ctrl_c_after="training"
    )
    assert done.code == 130, done.out
    before, answer, after = plain(done.out).partition("SIGINT: stopping after this update")
    assert re.search(r"\b[1-9]\d*/4000", before)
    assert answer
    assert "and saved after update" in after
    assert list((tmp_path / "run/checkpoints").iterdir())


def test_an_error_on_a_terminal_stands_on_a_line_of_its_own(config, tmp_path):
    """The note that it is loading must not shine through the message."""
    done = on_terminal("train", config, "--data", "none.jsonl", "--output", "run", cwd=tmp_path)
    assert done.code == 3
    last = plain(done.out).split("error: ")[0].rpartition("\r")[0].rpartition("\r")[2]
    assert last.strip() == ""


def test_a_closed_stdout_is_no_reason_to_fail(config, tmp_path):
    """Daemons and cron jobs start programs without one."""
    words = " ".join([*PROGRAM, "train", str(config), "--output", "run"])
    done = subprocess.run(
        ["sh", "-c", f"exec {words} >&-"], cwd=tmp_path, env=environment(), check=False
    )
    assert done.returncode == 0


def test_the_summary_commands_run_as_they_are_shown(piped):
    """What a program tells people to type has to work."""
    folder, _ = piped
    result = json.loads((folder / "run" / "report.json").read_text())
    for line in next_commands(result, str(model_folder()), "3 plus 9?"):
        program, *words = shlex.split(line)
        if program == "mlxfn":
            assert mlxfn(*words, cwd=folder).code == 0, line
        else:
            script = Path(sys.executable).with_name(program)
            words += ["--max-tokens", "2"]
            done = subprocess.run([script, *words], cwd=folder, capture_output=True, check=False)
            assert done.returncode == 0, done.stderr
