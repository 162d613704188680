"""The run directory: one process at a time, one run at a time, and nobody else's files."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from mlxfn import configfile
from mlxfn.environment import git_commit
from mlxfn.errors import RunDirError
from mlxfn.files import atomic_write
from mlxfn.rundir import RunDir, open_run
from mlxfn.sinks.jsonl import read_events
from tests.support.faults import Dying, Killed

HOLDER = """
import sys
from pathlib import Path
from mlxfn.rundir import open_run
with open_run(Path(sys.argv[1])) as run:
    print("held", flush=True)
    sys.stdin.read()
"""
UNPRIVILEGED = """
import os, sys
from pathlib import Path
from mlxfn.errors import RunDirError
from mlxfn.rundir import open_run
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
try:
    with open_run(Path(sys.argv[1]), mode=sys.argv[2]):
        print("opened")
except RunDirError as error:
    print(error.exit_code, error)
"""


def with_run(path: Path) -> RunDir:
    """Return a folder that holds a run of one checkpoint and exports."""
    with open_run(path) as run:
        run.write_start({"adapter": {"rank": 8}}, {}, {})
        run.write_report({"steps": 1})
        run.events.write_text('{"event": "start", "update": 0}\n{"event": "step", "update": 1}\n')
        for folder in (run.checkpoints, run.adapters, run.best):
            folder.mkdir()
        (run.checkpoints / "step-00000001.npz").write_bytes(b"")
        (run.adapters / "adapters.safetensors").write_bytes(b"")
        (run.best / "adapter_config.json").write_bytes(b"")
    return run


def tree_of(path: Path) -> set[str]:
    """Return every name below a folder."""
    return {str(child.relative_to(path)) for child in path.rglob("*")}


def holder(path: Path) -> subprocess.Popen[str]:
    """Start a process that holds a run directory until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    """Two runs in one folder ruin both; a lock that outlives a crash locks the user out."""
    path = tmp_path / "run"
    process = holder(path)
    try:
        for mode in ("new", "resume", "fresh"):
            with pytest.raises(RunDirError) as error, open_run(path, mode=mode):
                pass
            assert f"process {process.pid}" in str(error.value)
            assert "another process" in error.value.what
    finally:
        process.kill()  # SIGKILL: nothing of the process can clean up
        process.communicate()
    with open_run(path, mode="resume") as run:
        assert run.lock.read_text() == f"{os.getpid()}\n"


def test_a_lock_that_is_about_to_be_given_back_is_waited_for(tmp_path):
    """What a killed process was just starting holds its files for a moment after its end."""
    run = with_run(tmp_path / "run")
    held = os.open(run.lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    timer = threading.Timer(0.05, os.close, [held])
    timer.start()
    with open_run(run.path, mode="resume") as again:
        assert again == run
    timer.join()


def test_one_process_cannot_hold_it_twice(tmp_path):
    """A program that trains in two threads is refused as well."""
    with (
        open_run(tmp_path) as run,
        pytest.raises(RunDirError, match=f"process {os.getpid()}"),
        open_run(run.path),
    ):
        pass
    with open_run(tmp_path):
        pass


def test_the_lock_is_given_back_when_the_run_raises(tmp_path):
    """After an error the same command can be started again."""
    with pytest.raises(KeyError), open_run(tmp_path):
        raise KeyError
    with open_run(tmp_path):
        pass


def test_a_folder_that_holds_a_run_is_refused_and_left_as_it_is(tmp_path):
    """Silently overwriting an earlier run is what other trainers do."""
    run = with_run(tmp_path / "run")
    before = tree_of(run.path)
    with pytest.raises(RunDirError, match="holds another run") as error, open_run(run.path):
        pass
    assert "--resume" in str(error.value)
    assert "--fresh" in str(error.value)
    assert error.value.exit_code == 4
    assert tree_of(run.path) == before


def test_a_folder_with_other_files_takes_a_new_run(tmp_path):
    """Only files that a run would write stand in its way."""
    (tmp_path / "notes.txt").write_text("mine")
    with open_run(tmp_path):
        pass
    with open_run(tmp_path):  # a run killed before it wrote anything left only its lock
        pass
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("make", [False, True])
def test_resuming_where_no_run_is_is_refused(tmp_path, make):
    """A misspelt --output must not start hours of training from the beginning."""
    path = tmp_path / "typo"
    if make:
        path.mkdir()
    with pytest.raises(RunDirError, match="no run to resume"), open_run(path, mode="resume"):
        pass
    assert path.exists() == make


def test_a_run_killed_before_its_first_file_can_be_resumed(tmp_path):
    """`--resume` after a kill always works, however early the kill came."""
    with open_run(tmp_path):
        pass
    with open_run(tmp_path, mode="resume") as run:
        assert not run.holds_run()


def test_fresh_removes_the_run_and_no_file_of_other_origin(tmp_path):
    """A flag that empties a folder will one day empty somebody's home."""
    run = with_run(tmp_path)
    foreign = {"notes.txt", "checkpoints/mine.npz", "adapters/notes.md", "data/train.jsonl"}
    for name in foreign:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    with open_run(tmp_path, mode="fresh"):
        assert tree_of(tmp_path) == {*foreign, "run.lock", "checkpoints", "adapters", "data"}
        assert not run.holds_run()
    with open_run(tmp_path, mode="fresh"):
        pass


def test_fresh_works_where_nothing_is(tmp_path):
    """A script may always say --fresh."""
    with open_run(tmp_path / "new", mode="fresh") as run:
        assert tree_of(run.path) == {"run.lock"}


@pytest.mark.parametrize("mode", ["new", "fresh"])
def test_files_that_no_run_left_are_never_removed(tmp_path, mode):
    """config.toml is a common name: in a folder that was never a run directory it is somebody's."""
    (tmp_path / "config.toml").write_text("mine")
    with pytest.raises(RunDirError), open_run(tmp_path, mode=mode):
        pass
    assert tree_of(tmp_path) == {"config.toml"}


@pytest.mark.parametrize("name", ["run.lock", "events.jsonl", "checkpoints", "config.toml", "best"])
@pytest.mark.parametrize("mode", ["new", "resume", "fresh"])
def test_a_link_in_place_of_a_run_s_own_file_is_refused(tmp_path, name, mode):
    """Nothing outside the run directory is ever written to or removed."""
    run = with_run(tmp_path / "run")
    outside = tmp_path / "outside"
    outside.mkdir()
    path = run.path / name
    path.rename(outside / name)
    path.symlink_to(outside / name)
    before = tree_of(outside)
    with pytest.raises(RunDirError, match="link"), open_run(run.path, mode=mode):
        pass
    assert tree_of(outside) == before


def test_a_path_below_a_file_is_refused(tmp_path):
    """One clear message instead of a traceback."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunDirError, match="could not be written") as error, open_run(path):
            pass
        assert "--output" in str(error.value)


@pytest.mark.parametrize("mode", ["new", "resume", "fresh"])
def test_a_folder_without_write_permission_is_refused(mode):
    """As an unprivileged user, which the tests may not be: root may write anywhere."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        path = Path(name)
        path.chmod(0o755)
        run = with_run(path / "run")
        (path / "empty").mkdir()
        if os.getuid() != 0:
            for closed in (path / "run", path / "empty", run.lock):
                closed.chmod(0o555)
        target = path / ("empty" if mode == "new" else "run")
        done = subprocess.run(
            [sys.executable, "-c", UNPRIVILEGED, target, mode],
            capture_output=True,
            text=True,
            check=True,
        )
        (path / "run").chmod(0o755)
        (path / "empty").chmod(0o755)
    assert done.stdout.startswith("4 the run directory could not be written: Permission denied")
    assert "get write permission there" in done.stdout


def test_the_settings_written_are_the_settings_read(tmp_path):
    """config.toml alone repeats the run."""
    config = configfile.load(overrides={"adapter.rank": 8, "data.columns": {"text": "q"}}).config
    with open_run(tmp_path) as run:
        run.write_start(configfile.to_nested(config), {"model": "abc", "data.train": "def"}, {})
    assert configfile.load(run.config).config == config
    around = json.loads(run.environment.read_text())
    assert around["fingerprints"] == {"model": "abc", "data.train": "def"}
    assert all(around[name] for name in ("versions", "python", "platform", "device", "blas"))


def test_the_report_is_json_for_every_parser(tmp_path):
    """A loss that is no number is null."""
    with open_run(tmp_path) as run:
        run.write_report({"loss": float("nan"), "history": ({"update": 1},)})
    report = json.loads(run.report.read_text(), parse_constant=pytest.fail)
    assert report == {"loss": None, "history": [{"update": 1}]}


def test_opening_removes_what_a_killed_process_left(tmp_path):
    """Temporary files and a torn event are gone before anything else happens."""
    run = with_run(tmp_path)
    whole = run.events.read_bytes()
    run.events.write_bytes(whole + b'{"event": "st')
    for path in (
        run.config,
        run.checkpoints / "step-00000002.npz",
        run.best / "adapters.safetensors",
    ):
        with pytest.raises(Killed):
            atomic_write(path, b"new", system=Dying(3))
    assert any(name.endswith(".tmp") for name in tree_of(tmp_path))
    with open_run(tmp_path, mode="resume"):
        assert not any(name.endswith(".tmp") for name in tree_of(tmp_path))
        assert run.events.read_bytes() == whole


@pytest.mark.parametrize("mode", ["resume", "fresh"])
def test_an_export_cut_short_by_a_kill_is_put_back_or_removed(tmp_path, mode):
    """Between its two renames a kill leaves the old adapters under a hidden name only."""
    run = with_run(tmp_path)
    digits = "0123456789abcdef"
    run.adapters.rename(tmp_path / f".adapters.{digits}.old")
    for name in (f".adapters.{digits}.tmp", f".best.{digits}.old", ".best.mine.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapters.safetensors").write_bytes(b"half")
    with open_run(tmp_path, mode=mode):
        left = {name for name in tree_of(tmp_path) if "/" not in name and name[0] == "."}
        assert left == {".best.mine.old"}
        assert (run.adapters / "adapters.safetensors").exists() == (mode == "resume")
        assert (run.best / "adapter_config.json").exists() == (mode == "resume")


def test_a_resumed_log_ends_at_the_checkpoint(tmp_path):
    """Updates done again must not be in the log twice."""
    run = with_run(tmp_path)
    with open_run(tmp_path, mode="resume"):
        run.truncate_events(0)
    assert [event["event"] for event in read_events(run.events)] == ["start"]
    run.truncate_events(-1)
    assert run.events.read_bytes() == b""


def test_the_commit_of_the_working_folder_is_known(tmp_path):
    """Which code trained a model is asked months later."""
    assert git_commit(tmp_path) is None

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True
        )

    git("init")
    (tmp_path / "code.py").write_text("1")
    git("add", "code.py")
    git("commit", "-m", "first")
    first = git_commit(tmp_path)
    assert first is not None
    assert len(first["commit"]) == 40
    assert not first["changed"]
    (tmp_path / "code.py").write_text("2")
    assert git_commit(tmp_path) == {"commit": first["commit"], "changed": True}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["", "checkpoints", "events.jsonl", "run.lock"])
@pytest.mark.parametrize("mode", ["resume", "fresh"])
def test_a_run_of_another_user_is_refused(tmp_path, name, mode):
    """Its owner could exchange what is written or read at any moment."""
    run = with_run(tmp_path / "run")
    for own in (run.checkpoints, run.events, run.lock):
        own.mkdir(exist_ok=True) if own.suffix == "" else own.touch()
    os.chown(run.path / name, 65534, 65534)
    with pytest.raises(RunDirError, match="belongs to another user"), open_run(run.path, mode=mode):
        pass
