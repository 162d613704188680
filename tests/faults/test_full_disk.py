"""A run whose disk is full for a while, or for good: it goes on where it can, and says so."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest

import mlxfn as mf
from mlxfn.checkpoint.store import CheckpointStore
from mlxfn.errors import RunDirError
from mlxfn.events import Step
from mlxfn.files import SYSTEM, System
from mlxfn.sinks import jsonl
from mlxfn.sinks.jsonl import read_events
from tests.support.runs import CLOCK, Collect, small_config


class Disk(Collect):
    """A disk that is full between two updates, for checkpoints or for the log; hears events too."""

    def __init__(self, monkeypatch, first, last, *, log=False):
        super().__init__()
        self.first, self.last = first, last
        append = jsonl._append
        if log:
            monkeypatch.setattr(jsonl, "_append", lambda *a: (self.check(), append(*a)))
        monkeypatch.setattr(SYSTEM, "create", self.create, raising=True)

    def write(self, event):
        super().write(event)

    def check(self):
        if self.first <= self.update < self.last:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def create(self, path):
        if path.name.startswith(".step-"):
            self.check()
        return System().create(path)

    @property
    def update(self):
        steps = self.of("step")
        return steps[-1]["update"] if steps else 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run on a good disk leaves."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return mf.train(small_config(folder)), folder


def adapters(folder):
    return [(folder / f / "adapters.safetensors").read_bytes() for f in ("adapters", "best")]


def told(folder, *, without=("save", "verdict", "start", "end")):
    """Return the log without what depends on the clock or on the disk."""
    return [
        {k: v for k, v in event.items() if k not in CLOCK}
        for event in read_events(folder / "events.jsonl")
        if event["event"] not in without
    ]


def test_a_disk_that_is_full_for_a_while_costs_nothing_but_a_warning(whole, tmp_path, monkeypatch):
    """The failed save is told and tried again, and the best one is not lost."""
    disk = Disk(monkeypatch, 2, 7)
    result = mf.train(small_config(tmp_path), sinks=[disk])
    assert (result.exit_code, result.history) == (0, whole[0].history)
    assert adapters(tmp_path) == adapters(whole[1])
    verdicts = [e for e in disk.of("verdict") if e["kind"] == "save_failed"]
    assert verdicts
    assert "free some disk space" in verdicts[0]["message"]
    assert len(verdicts) < 5  # tried less and less often
    retried = [e["update"] for e in disk.of("save")]
    assert {3, 4} & set(retried)


def test_older_checkpoints_stay_until_a_newer_one_is_safe(tmp_path, monkeypatch):
    """What a full disk must not do is free the room that the last good state takes."""
    disk = Disk(monkeypatch, 6, 10**9)
    with pytest.raises(RunDirError, match="No space left") as error:
        mf.train(small_config(tmp_path, checkpoint__keep_last_n=1), sinks=[disk])
    assert error.value.exit_code == 4
    with CheckpointStore(tmp_path / "checkpoints", keep_last_n=1) as store:
        assert max(info.step for info in store.list()) >= 4
    assert not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / "adapters").exists()


def test_a_run_that_could_not_save_its_end_goes_on_when_there_is_room(whole, tmp_path, monkeypatch):
    """The updates since the last good checkpoint are done again, to the same bytes."""
    with pytest.raises(RunDirError):
        mf.train(small_config(tmp_path), sinks=[Disk(monkeypatch, 5, 10**9)])
    monkeypatch.undo()
    result = mf.train(small_config(tmp_path), mode="resume")
    assert result.history == whole[0].history
    assert adapters(tmp_path) == adapters(whole[1])
    assert told(tmp_path) == told(whole[1])


def test_a_stop_on_a_full_disk_exits_with_4(tmp_path, monkeypatch):
    """A run that says it has saved must have."""

    class Stop(Disk):
        def write(self, event):
            super().write(event)
            if isinstance(event, Step) and event.update == 5:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(RunDirError) as error:
        mf.train(small_config(tmp_path), sinks=[Stop(monkeypatch, 3, 10**9)])
    assert error.value.exit_code == 4


def test_a_log_that_cannot_be_written_for_a_while_has_every_event_in_the_end(
    whole, tmp_path, monkeypatch
):
    """Curves have no holes, and training does not wait for a disk."""
    disk = Disk(monkeypatch, 2, 8, log=True)
    result = mf.train(small_config(tmp_path), sinks=[disk])
    assert result.history == whole[0].history
    assert told(tmp_path) == told(whole[1])
    kinds = [e["kind"] for e in disk.of("verdict")]
    assert kinds.count("log_failed") == 1
    written = [e["event"] for e in read_events(tmp_path / "events.jsonl")]
    assert written == [e["event"] for e in disk.events]


def test_a_log_that_cannot_be_written_at_the_end_exits_with_4(tmp_path, monkeypatch):
    """An exit code of 0 says that everything is on the disk."""
    with pytest.raises(RunDirError, match="log of events") as error:
        mf.train(small_config(tmp_path), sinks=[Disk(monkeypatch, 3, 10**9, log=True)])
    assert error.value.exit_code == 4


def test_a_folder_that_cannot_be_synced_is_told_apart_from_a_failed_save(tmp_path, monkeypatch):
    """The file is complete then: the user should look at the disk, not free room on it."""
    seen, calls = Collect(), []

    def sync_folder(folder):
        if folder.name == "checkpoints":
            calls.append(folder)
            if len(calls) == 2:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        System().sync_folder(folder)

    monkeypatch.setattr(SYSTEM, "sync_folder", sync_folder)
    assert mf.train(small_config(tmp_path), sinks=[seen]).exit_code == 0
    messages = {e["kind"]: e["message"] for e in seen.of("verdict")}
    assert "the file itself is complete" in messages["save_uncertain"]


def test_a_log_is_cut_back_to_what_it_was_when_the_state_was_saved(tmp_path):
    """By bytes, not by numbers: what was told after the save of an update is told again."""
    config = small_config(tmp_path, checkpoint__keep_last_n=100)
    mf.train(config)
    log = tmp_path / "events.jsonl"
    before = log.read_bytes()
    late = {"event": "verdict", "update": 6, "epoch": 1, "time": 0.0, "kind": "nonfinite"}
    lines = before.splitlines(keepends=True)
    at = max(i for i, line in enumerate(lines) if b'"save"' in line and b'"update": 6,' in line)
    lines.insert(at + 1, json.dumps(late).encode() + b"\n")
    log.write_bytes(b"".join(lines))
    for path in sorted((tmp_path / "checkpoints").iterdir()):
        if path.name > "step-00000006.npz":
            path.unlink()
    assert mf.train(config, mode="resume").steps == 12
    assert [e["resumed"] for e in read_events(log) if e["event"] == "start"] == [False, True]
    assert not [e for e in read_events(log) if e.get("kind") == "nonfinite"]
    assert [e["update"] for e in read_events(log) if e["event"] == "step"] == list(range(1, 13))


def test_a_log_changed_by_hand_is_cut_back_by_numbers(tmp_path):
    """A length that no longer fits must not cut a line in two."""
    path = Path(tmp_path) / "events.jsonl"
    path.write_bytes(b'{"event": "step", "update": 1}\n{"event": "step", "update": 2}\n')
    assert not jsonl.cut_to(path, 40)
    assert not jsonl.cut_to(path, 400)
    assert len(list(read_events(path))) == 2
    assert jsonl.cut_to(path, 31)
    assert [e["update"] for e in read_events(path)] == [1]
