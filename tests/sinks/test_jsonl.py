"""The log of events: every line whole, every update once."""

from __future__ import annotations

import errno
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn.errors import RunDirError
from mlxfn.events import Verdict
from mlxfn.sinks.jsonl import JsonlSink, cut_back, read_events

FULL = """
import resource, sys
from pathlib import Path
from mlxfn.errors import RunDirError
from mlxfn.events import Verdict
from mlxfn.sinks.jsonl import JsonlSink
resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
sink = JsonlSink(Path(sys.argv[1]))
for update in range(20):
    try:
        sink.write(Verdict(update=update, epoch=0, time=0.0, kind="k", message="m" * 20))
    except RunDirError as error:
        print(error.exit_code)
"""


def verdict(update: int, message: str = "") -> Verdict:
    """Return an event."""
    return Verdict(update=update, epoch=0, time=0.5, kind="test", message=message)


def written(path, updates):
    """Write one event for each update."""
    sink = JsonlSink(path)
    for update in updates:
        sink.write(verdict(update))
    return sink


def updates(path):
    """Return the updates of a log in order."""
    return [event["update"] for event in read_events(path)]


def test_an_event_can_be_read_as_soon_as_it_is_written(tmp_path):
    """Who follows a run with tail -f sees it, and a kill loses none."""
    path = tmp_path / "events.jsonl"
    sink = JsonlSink(path)
    for update in range(3):
        sink.write(verdict(update, "Zeile\n\u2028層"))
        assert updates(path) == list(range(update + 1))
    sink.close()
    assert path.read_bytes().count(b"\n") == 3
    assert next(read_events(path)) == {
        "event": "verdict", "update": 0, "epoch": 0, "time": 0.5, "kind": "test",
        "message": "Zeile\n\u2028層",
    }  # fmt: skip


def test_a_log_that_does_not_exist_has_no_events(tmp_path):
    """A run killed before its first event can be resumed."""
    assert updates(tmp_path / "none") == []
    assert cut_back(tmp_path / "none", 3) == 0
    assert not (tmp_path / "none").exists()


@given(st.integers(0, 500))
def test_a_log_torn_at_any_byte_is_repaired_to_its_whole_lines(tmp_path_factory, length):
    """A power cut tears the last line, and the next event must not be glued to it."""
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    written(path, range(5))
    data = path.read_bytes()[:length]
    path.write_bytes(data)
    whole = data.count(b"\n")
    assert cut_back(path) == (not data.endswith(b"\n") and bool(data))
    assert updates(path) == list(range(whole))
    written(path, [whole])
    assert updates(path) == list(range(whole + 1))


@given(st.lists(st.integers(0, 9)).map(sorted), st.integers(-1, 10))
def test_cutting_back_keeps_exactly_what_is_not_done_again(tmp_path_factory, seen, step):
    """After a resume every update is in the log once, in order."""
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    written(path, seen)
    assert cut_back(path, step) == sum(update > step for update in seen)
    assert updates(path) == [update for update in seen if update <= step]
    assert cut_back(path, step) == 0


@pytest.mark.parametrize(
    "line",
    [b"\0" * 50, b"[]", b"3", b'{"update": "x"}', b'{"update": 1', b"[" * 9999, b"\xff", b""],
)
def test_a_line_that_is_no_event_is_left_out_and_its_neighbours_stay(tmp_path, line):
    """Some file systems leave zeros where a power cut took the data."""
    path = tmp_path / "events.jsonl"
    written(path, [1])
    path.write_bytes(path.read_bytes() + line + b"\n")
    written(path, [2])
    assert updates(path) == [1, 2]
    assert cut_back(path) == 1
    assert updates(path) == [1, 2]


def test_a_sink_follows_a_log_that_was_cut_back(tmp_path):
    """The sink is opened before the resume cuts the log; its events must land in the new file."""
    path = tmp_path / "events.jsonl"
    sink = written(path, [1, 2, 3])
    cut_back(path, 1)
    sink.write(verdict(2))
    assert updates(path) == [1, 2]


def test_numbers_that_are_none_are_null(tmp_path):
    """One NaN must not make the line unreadable for jq and browsers."""
    path = tmp_path / "events.jsonl"
    JsonlSink(path).write(Verdict(update=1, epoch=0, time=float("nan"), kind="k", message="m"))
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["time"] is None


def test_a_full_disk_is_told_and_leaves_no_half_line(tmp_path):
    """Half a line would swallow the first event after the disk has room again."""
    path = tmp_path / "events.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", FULL, path], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == {"4"}
    data = path.read_bytes()
    assert data.endswith(b"\n")
    assert updates(path) == list(range(data.count(b"\n")))


def test_a_link_in_place_of_the_log_is_refused(tmp_path):
    """Nothing outside the run directory is ever written to."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "events.jsonl").symlink_to(victim)
    with pytest.raises(RunDirError) as error:
        JsonlSink(tmp_path / "events.jsonl").write(verdict(1))
    assert error.value.__cause__.errno == errno.ELOOP
    assert victim.read_bytes() == b"precious"
