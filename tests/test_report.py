"""The report of a run, made from nothing but its log."""

from __future__ import annotations

import json

import pytest

from mlxfn.errors import RunDirError
from mlxfn.report import page, summarize, write, write_page


def event(kind, update, /, **fields):
    """Return one line of a log."""
    return {"event": kind, "update": update, "epoch": 0, "time": 100.0 + update, **fields}


DATA = {"train": {"dropped_overlong": 1, "dropped_no_target": 2}}
LOG = [
    event("start", 0, resumed=False, run={"data": DATA, "model": {"path": "<m>"}}),
    event("sample", 0, when="before", prompt="<b>?", text="<i>"),
    event("eval", 0, loss=4.0, perplexity=54.6, tokens=9, rows=3),
    event("step", 1, loss=3.0, grad_norm=1.0, lr=0.1, tokens=20, real_tokens=50, rows=4,
          step_time_s=2.0, peak_memory_gb=0.5),
    event("verdict", 1, kind="nonfinite", message="NaN & co."),
    event("eval", 1, loss=2.0, perplexity=7.4, tokens=9, rows=3),
    event("step", 2, loss=None, grad_norm=None, lr=0.1, tokens=20, real_tokens=50, rows=4,
          step_time_s=2.0, peak_memory_gb=0.7),
    event("eval", 2, loss=2.5, perplexity=12.2, tokens=9, rows=3),
]  # fmt: skip


def test_the_report_of_a_killed_run_is_put_together_from_its_events():
    """kill -9 takes the result with it; the log is still there."""
    report = summarize(LOG, run_dir="runs/x")
    assert report["reason"] == "unfinished"
    assert (report["steps"], report["samples"], report["tokens"]) == (2, 8, 40)
    assert (report["first_valid_loss"], report["last_valid_loss"]) == (4.0, 2.5)
    assert (report["best_loss"], report["best_step"]) == (2.0, 1)
    assert (report["skipped"], report["dropped_rows"]) == (1, 3)
    assert (report["tokens_per_s"], report["peak_memory_gb"]) == (10.0, 0.7)
    assert report["real_tokens_per_s"] == 25.0
    assert [entry["event"] for entry in report["history"]] == [
        "eval",
        "step",
        "eval",
        "step",
        "eval",
    ]


def test_the_untrained_model_is_never_the_best():
    """A run that only got worse has no best checkpoint to come back to before its first update."""
    assert summarize(LOG[:3], run_dir="x")["best_step"] is None


def test_the_result_of_the_run_itself_wins():
    """It knows what the log does not, such as updates that were not logged."""
    end = event("end", 2, reason="finished", exit_code=0, result={"steps": 99, "run_dir": "old"})
    assert summarize([*LOG, end], run_dir="new") == {"steps": 99, "run_dir": "new"}


def test_a_run_that_went_on_after_its_end_is_not_reported_as_ended():
    """A stopped run that was resumed and killed: its last word is not the old result."""
    end = event("end", 2, reason="SIGTERM", exit_code=143, result={"steps": 2})
    more = event("step", 3, loss=1.0, tokens=20, rows=4, step_time_s=2.0)
    report = summarize([*LOG, end, more], run_dir="x")
    assert (report["reason"], report["steps"]) == ("unfinished", 3)


def test_the_page_escapes_what_users_and_models_wrote():
    """A model's answer must not become part of the page."""
    html = page(summarize(LOG, run_dir="runs/x"), LOG)
    assert "<b>" not in html
    assert "<i>" not in html
    assert "&lt;b&gt;?" in html
    assert "NaN &amp; co." in html


def test_write_makes_both_files(tmp_path):
    """The JSON for programs, the page for people."""
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LOG))
    report = write(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_without_a_log_there_is_no_report(tmp_path):
    """An empty report would look like a run that did nothing."""
    with pytest.raises(RunDirError, match="no log of events"):
        write(tmp_path)
    write_page(tmp_path)
    assert list(tmp_path.iterdir()) == []
