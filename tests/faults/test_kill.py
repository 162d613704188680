"""The installed command, killed and stopped from outside at random updates, then resumed."""

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomli_w

from mlxfn import configfile
from mlxfn.sinks.jsonl import read_events
from tests.support.runs import small_config

CHANGES = {"train__num_epochs": 6, "eval__eval_steps": 6}
UPDATES = 36
PATIENCE_S = 120  # for a machine that is busy with other tests


def command(config, *arguments, compiled=True):
    """Start ``mlxfn train`` on a configuration, in a process group of its own."""
    words = [sys.executable, "-m", "mlxfn_cli.main", "train", str(config), *arguments]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if not compiled:  # the same bits, and no compiler to wait for on a cold machine
        environment["MLX_DISABLE_COMPILE"] = "1"
    return subprocess.Popen(
        words,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def write_config(folder):
    """Write the configuration of a small run that lives in a folder; return its path."""
    folder.mkdir(parents=True)
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(configfile.to_nested(small_config(folder / "run", **CHANGES))))
    return path


def run_to_end(config, *arguments):
    """Train to the end; return the bytes of the adapters and the history."""
    out, err = (process := command(config, *arguments)).communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, out + err
    folder = config.parent / "run"
    history = json.loads((folder / "report.json").read_text())["history"]
    return (folder / "adapters/adapters.safetensors").read_bytes(), history


def wait_for_update(process, folder, update):
    """Wait until the log holds an update, by watching the log itself."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and process.poll() is None:
        if any(e.get("update", 0) >= update for e in read_events(folder / "events.jsonl")):
            return
        select.select([], [], [], 0.005)  # leaves the processor to the run that is watched
    assert process.poll() is not None, f"update {update} never came"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run that nothing interrupts ends with."""
    return run_to_end(write_config(tmp_path_factory.mktemp("whole") / "a"))


@pytest.mark.parametrize("attempt", range(10))
def test_a_run_killed_at_a_random_update_ends_with_the_same_bytes(whole, tmp_path, attempt):
    """SIGKILL leaves no time for anything; what is on the disk has to be enough."""
    config = write_config(tmp_path / "a")
    update = 1 + secrets.randbelow(UPDATES - 6)
    print(f"killed at update {update} or soon after")  # shown where the test fails
    process = command(config, compiled=attempt < 2)
    wait_for_update(process, tmp_path / "a/run", update)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert run_to_end(config, "--resume") == whole
    updates = [
        e["update"] for e in read_events(tmp_path / "a/run/events.jsonl") if e["event"] == "step"
    ]
    assert updates == list(range(1, UPDATES + 1))
    assert not list(Path(tmp_path / "a/run").rglob("*.tmp"))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_run_that_is_asked_to_stop_saves_says_how_to_go_on_and_does(
    whole, tmp_path, number, code
):
    """The update is finished, its state saved, and the exit code tells the signal."""
    config = write_config(tmp_path / "a")
    process = command(config)
    wait_for_update(process, tmp_path / "a/run", 4)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, out + err
    assert "--resume" in out + err
    assert run_to_end(config, "--resume") == whole
