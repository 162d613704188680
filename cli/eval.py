"""``mlxfn eval``: how good the model of a run is on a split."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from attrs import asdict

from mlxfn_cli import args, render
from mlxfn_cli.words import count, duration


class Split(StrEnum):
    """The splits of a data set."""

    train = "train"
    valid = "valid"
    test = "test"


def evaluate(
    run: args.Run,
    data: args.Data = None,
    split: Annotated[Split, typer.Option("--split", help="Which rows.")] = Split.valid,
    checkpoint: args.Checkpoint = args.Which.best,
    json: args.Json = False,
) -> None:
    """Measure loss and perplexity of a run's model.

    Every row counts once, every target alike. The data is that of the run unless --data names
    other rows.

    Example: mlxfn eval runs/default --split test
    """
    from mlxfn.reopen import reopen

    finished = reopen(run, checkpoint=checkpoint.value, data=data)
    with render.tokenizing():
        result = finished.evaluate(split.value)
    if json:
        what = {"run": str(run), "split": split.value, "update": finished.step}
        values = asdict(result)
        render.json_value({**what, "tokens": int(values.pop("weight")), **values})
        return
    render.facts(
        {
            "loss": f"{result.loss:.4f}",
            "perplexity": f"{result.perplexity:,.2f}",
            "tokens": count(result.weight),
            "rows": f"{count(result.rows)} ({split.value})",
            "model": f"after update {finished.step} ({checkpoint.value})",
            "time": duration(result.time_s),
        }
    )
