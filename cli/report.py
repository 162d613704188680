"""``mlxfn report``: the report of a run as a page, made from its log."""

from __future__ import annotations

from mlxfn_cli import args, render


def report(run: args.Run, json: args.Json = False) -> None:
    """Make report.json and report.html of a run again, also of one that was killed.

    The page holds the numbers, the curves, the samples and the warnings in one file that needs
    no network.

    Example: mlxfn report runs/default
    """
    from mlxfn.report import write
    from mlxfn.rundir import find_run

    run = find_run(run).path
    written = write(run)
    if json:
        render.json_value(written)
    else:
        render.text(f"written: {run / 'report.html'}\n         {run / 'report.json'}")
