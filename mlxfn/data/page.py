"""The doctor's findings as one HTML page that needs nothing else."""

from __future__ import annotations

from html import escape

from mlxfn.data.doctor import Diagnosis, Padding, SplitHealth
from mlxfn.data.problems import Problem

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em;
       color-scheme: light dark; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .3em .6em;
       vertical-align: top; border-bottom: 1px solid #8884; }
.error { color: #c62828; font-weight: 600; } .warning { color: #b26a00; font-weight: 600; }
.bar { background: #4a90d9; height: .9em; min-width: 1px; }
.row { font: 13px/1.7 ui-monospace, monospace; white-space: pre-wrap; border: 1px solid #8884;
       border-radius: 4px; padding: .6em; margin: .6em 0; overflow-wrap: anywhere; }
.row span { border-right: 1px solid #8883; } .learned { background: #2e7d3244; }
.place { font-family: ui-monospace, monospace; font-size: 12px; }
"""


def page(diagnosis: Diagnosis, *, title: str) -> str:
    """Return the page.

    Args:
        diagnosis: What was found.
        title: What was looked at.
    """
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=error>{_VERDICT}</p>" if diagnosis.senseless else "",
        _problems(diagnosis.problems),
        *(_split(name, health) for name, health in diagnosis.splits.items()),
    ]
    head = f"<meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


_VERDICT = "Training on this data would be refused, or would learn or measure nothing."


def _problems(problems: tuple[Problem, ...]) -> str:
    if not problems:
        return "<p>No problems found.</p>"
    rows = "".join(
        f"<tr><td class={p.severity}>{p.severity}<td>{escape(p.split)}<td>{p.count:,}"
        f"<td>{escape(p.what)}<br><span class=place>{escape(', '.join(p.places))}</span>"
        f"<td>{escape(p.remedy)}</tr>"
        for p in problems
    )
    heads = "<tr><th><th>split<th>rows<th>problem<th>what to do</tr>"
    return f"<h2>Problems</h2><table>{heads}{rows}</table>"


def _split(name: str, health: SplitHealth) -> str:
    facts = dict(health.report.lines())
    for label, padding in (("bucketed", health.bucketed), ("packed", health.packed)):
        if padding:
            facts[label] = padding_text(padding)
    rows = "".join(f"<tr><th>{escape(k)}<td>{escape(v)}</tr>" for k, v in facts.items())
    most = max((count for *_, count in health.histogram), default=1)
    bars = "".join(
        f"<tr><td>{low}-{high}<td>{count:,}<td width=60%>"
        f"<div class=bar style='width:{100 * count / most:.1f}%'></div></tr>"
        for low, high, count in health.histogram
    )
    samples = "".join(
        "<div class=row>"
        + "".join(f"<span{' class=learned' * s.learned}>{escape(s.text)}</span>" for s in sample)
        + "</div>"
        for sample in health.samples
    )
    shown = f"<h3>First rows; what is learned is coloured</h3>{samples}" if samples else ""
    return (
        f"<h2>{escape(name)}</h2><table>{rows}</table>"
        f"<h3>Positions in a row</h3><table>{bars}</table>{shown}"
    )


def padding_text(padding: Padding) -> str:
    """Return a way of making batches in words.

    Example:
        >>> padding_text(Padding(shapes=8, rows=1200, share=0.113))
        '11.3% padding: 1,200 rows in batches of 8 lengths'
    """
    lengths = "1 length" if padding.shapes == 1 else f"{padding.shapes} lengths"
    return f"{padding.share:.1%} padding: {padding.rows:,} rows in batches of {lengths}"
