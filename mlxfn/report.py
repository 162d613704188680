"""report.json and report.html of a run, made from its log of events."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mlxfn.chart import Series, chart
from mlxfn.errors import RunDirError
from mlxfn.files import atomic_write, json_text, utf8, write_error
from mlxfn.sinks.jsonl import read_events

Event = Mapping[str, Any]
"""One line of the log."""
Report = dict[str, Any]
"""The fields of a TrainingResult as JSON values."""


def write(run: Path) -> Report:
    """Make report.json and report.html of a run again, whether it came to its end or not.

    Args:
        run: The run directory.

    Returns:
        What report.json holds now.

    Raises:
        RunDirError: There is no log of events, or a file cannot be read or written.
    """
    events = _read(run)
    if not events:
        raise RunDirError(
            "there is no log of events here",
            where=run / "events.jsonl",
            expected='a run directory of mlxfn train, with "jsonl" in log.sinks',
        )
    report = summarize(events, run_dir=str(run))
    _publish(run / "report.json", json_text(report, indent=2) + "\n")
    _publish(run / "report.html", page(report, events))
    return report


def write_page(run: Path) -> None:
    """Make report.html of a run that just ended; without a log there is nothing to show.

    Raises:
        RunDirError: A file cannot be read or written.
    """
    events = _read(run)
    if events:
        _publish(run / "report.html", page(summarize(events, run_dir=str(run)), events))


def _read(run: Path) -> list[Event]:
    log = run / "events.jsonl"
    try:
        return [event for event in read_events(log) if "event" in event]
    except OSError as error:
        raise RunDirError(
            f"the log of events cannot be read: {error.strerror}", where=log
        ) from error


def _publish(path: Path, content: str) -> None:
    try:
        atomic_write(path, utf8(content))
    except OSError as error:
        raise write_error(path.name, path, error) from error


def summarize(events: Sequence[Event], *, run_dir: str) -> Report:
    """Return the report of a run from its events.

    Args:
        events: The log, in order.
        run_dir: Where the run is now; it may have been moved.

    Returns:
        The result that the run wrote at its end; put together from its events where it was
        killed or is still running, with the reason ``"unfinished"``.

    Example:
        >>> step = {"event": "step", "update": 1, "epoch": 0, "time": 5.0, "loss": 2.0, "rows": 8}
        >>> report = summarize([step], run_dir="runs/x")
        >>> report["reason"], report["steps"], report["samples"]
        ('unfinished', 1, 8)
    """
    if events[-1]["event"] == "end":
        return {**events[-1]["result"], "run_dir": run_dir}
    steps = [event for event in events if event["event"] == "step"]
    evals = [event for event in events if event["event"] == "eval"]
    ranked = [event for event in evals if event["update"] > 0 and event["loss"] is not None]
    best = min(ranked, key=lambda event: event["loss"], default=None)
    losses = [event["loss"] for event in evals]
    return {
        "reason": "unfinished",
        "exit_code": None,
        "message": "The log has no end: the run was killed, or it is still running.",
        "epochs": events[-1]["epoch"],
        "steps": max((event["update"] for event in events), default=0),
        "samples": sum(event.get("rows", 0) for event in steps),
        "tokens": sum(event.get("tokens", 0) for event in steps),
        "skipped": sum(
            event["event"] == "verdict" and "nonfinite" in event["kind"] for event in events
        ),
        "dropped_rows": _dropped(events),
        "first_valid_loss": losses[0] if losses else None,
        "last_valid_loss": losses[-1] if losses else None,
        "best_loss": best["loss"] if best else None,
        "best_step": best["update"] if best else None,
        "run_dir": run_dir,
        "final_path": None,
        "best_path": None,
        "total_time_s": events[-1]["time"] - events[0]["time"],
        "tokens_per_s": _speed(steps, "tokens"),
        "real_tokens_per_s": _speed(steps, "real_tokens"),
        "peak_memory_gb": max((event.get("peak_memory_gb") or 0.0 for event in steps), default=0.0),
        "history": [*map(_entry, filter(_is_history, events))],
    }


_ENTRIES = {
    "step": ("loss", "grad_norm", "lr", "tokens", "rows"),
    "eval": ("loss", "perplexity", "tokens"),
    "epoch": ("train_loss",),
}


def _is_history(event: Event) -> bool:
    return event["event"] in _ENTRIES


def _entry(event: Event) -> dict[str, Any]:
    names = ("event", *_ENTRIES[event["event"]], "update", "epoch")
    return {name: event[name] for name in names if name in event}


def _dropped(events: Sequence[Event]) -> int:
    starts = [event for event in events if event["event"] == "start"]
    splits = starts[-1]["run"].get("data", {}).values() if starts else []
    return sum(split["dropped_overlong"] + split["dropped_no_target"] for split in splits)


def _speed(steps: Sequence[Event], tokens: str) -> float:
    seconds = sum(event.get("step_time_s", 0.0) for event in steps)
    return sum(event.get(tokens, 0) for event in steps) / seconds if seconds else 0.0


def page(report: Report, events: Sequence[Event]) -> str:
    """Return a page that shows a run: numbers, curves, samples, warnings; one file, no script.

    Args:
        report: What :func:`summarize` returned.
        events: The log.
    """
    title = f"mlxfn run {Path(report['run_dir']).name}"
    start = next((event for event in reversed(events) if event["event"] == "start"), None)
    sections = {
        "": _table(_facts(report)),
        "Curves": "\n".join(_curves(report["history"])),
        "Samples": _samples(events),
        "Warnings": _warnings(events),
        "What ran": _table(_what_ran(start["run"])) if start else "",
    }
    body = [
        (f"<h2>{escape(name)}</h2>\n" if name else "") + content
        for name, content in sections.items()
        if content
    ]
    return _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(body))


def _facts(report: Report) -> dict[str, str]:
    facts = {"ended": " ".join(filter(None, [report["reason"], report["message"]]))}
    if report["best_loss"] is not None:
        facts["best validation loss"] = (
            f"{report['best_loss']:.4f} at update {report['best_step']}, "
            f"perplexity {math.exp(min(report['best_loss'], 700)):,.2f}"
        )
    if report["first_valid_loss"] is not None and report["last_valid_loss"] is not None:
        facts["validation loss"] = (
            f"first {report['first_valid_loss']:.4f}, last {report['last_valid_loss']:.4f}"
        )
    facts["trained"] = (
        f"{report['steps']:,} updates, {report['epochs']} epochs, {report['samples']:,} rows, "
        f"{report['tokens']:,} label tokens"
    )
    facts["skipped updates, dropped rows"] = f"{report['skipped']}, {report['dropped_rows']}"
    speeds = [f"{report.get(name, 0.0):,.0f}" for name in ("real_tokens_per_s", "tokens_per_s")]
    facts["time"] = f"{report['total_time_s']:,.1f} s"
    facts["speed"] = f"{speeds[0]} tokens/s, {speeds[1]} label tokens/s"
    facts["peak memory"] = f"{report['peak_memory_gb']:.2f} GB"
    places = {"run": "run_dir", "final adapters": "final_path", "best adapters": "best_path"}
    return facts | {name: report[key] for name, key in places.items() if report[key]}


def _curves(history: Sequence[Event]) -> list[str]:
    curves = {
        "loss": [
            Series("train", _points(history, "step", "loss")),
            Series("validation", _points(history, "eval", "loss"), "marks"),
        ],
        "learning rate": [Series("rate", _points(history, "step", "lr"))],
        "gradient norm before clipping": [Series("norm", _points(history, "step", "grad_norm"))],
    }
    return [drawn for title, series in curves.items() if (drawn := chart(title, series))]


def _points(history: Sequence[Event], kind: str, name: str) -> list[tuple[float, float]]:
    return [
        (entry["update"], entry[name])
        for entry in history
        if entry["event"] == kind and entry.get(name) is not None
    ]


def _samples(events: Sequence[Event]) -> str:
    answers: dict[str, dict[str, str]] = {}
    for event in events:
        if event["event"] == "sample":
            answers.setdefault(event["prompt"], {})[event["when"]] = event["text"]
    if not answers:
        return ""
    rows = "".join(
        f"<tr><th>{escape(prompt)}</th>"
        + "".join(f"<td>{escape(texts.get(when, ''))}</td>" for when in ("before", "after"))
        + "</tr>"
        for prompt, texts in answers.items()
    )
    head = "<tr><th>prompt</th><th>before</th><th>after</th></tr>"
    return f'<table class="samples">{head}{rows}</table>'


def _warnings(events: Sequence[Event]) -> str:
    found = [event for event in events if event["event"] == "verdict"]
    rows = "".join(
        f"<li>update {event['update']}, {escape(event['kind'])}: {escape(event['message'])}</li>"
        for event in found
    )
    return f"<ul>{rows}</ul>" if rows else ""


def _what_ran(run: Mapping[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value, ensure_ascii=False) for name, value in run.items() if value}


def _table(rows: Mapping[str, str]) -> str:
    cells = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(text))}</td></tr>"
        for name, text in rows.items()
    )
    return f"<table>{cells}</table>"


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --fg: #1b1f24; --dim: #667; --line: #ddd; --bg: #fff;
  --s0: #1f77b4; --s1: #2a9d4a; }
@media (prefers-color-scheme: dark) { :root { --fg: #e6e6e6; --dim: #99a; --line: #333;
  --bg: #16181c; --s0: #6cb6ff; --s1: #6fdd8b; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 780px; margin: 2rem auto; padding: 0 1rem;
  color: var(--fg); background: var(--bg); }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { color: var(--dim); font-weight: normal; white-space: nowrap; }
.samples th { white-space: normal; width: 24%; } .samples td { white-space: pre-wrap; }
svg { width: 100%; height: auto; margin: .6rem 0; }
.grid { stroke: var(--line); } .title { fill: var(--fg); font-size: 13px; }
.tick { fill: var(--dim); font-size: 11px; } .end { text-anchor: end; } .middle { text-anchor: middle; }
.line { fill: none; stroke-width: 1.6; } .s0 .line { stroke: var(--s0); }
.s0 .mark { fill: var(--s0); } .s1 .mark { fill: var(--s1); } .s1 .line { stroke: var(--s1); }
"""
