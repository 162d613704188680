"""``mlxfn checkpoints``: what a run has saved, and whether it can be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlxfn_cli import args, render
from mlxfn_cli.words import size

if TYPE_CHECKING:
    from mlxfn.checkpoint.store import CheckpointStore


def checkpoints(
    run: args.Run,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and check it.")] = False,
    json: args.Json = False,
) -> int:
    """List the checkpoints of a run.

    Exits with 4 when --verify finds a damaged one.

    Example: mlxfn checkpoints runs/default --verify
    """
    from mlxfn.checkpoint.store import CheckpointStore
    from mlxfn.rundir import find_run

    run = find_run(run).path
    with CheckpointStore(run / "checkpoints", keep_last_n=1) as store:
        found = _describe(store, _validation(run), verify=verify)
    if json:
        render.json_value(found)
    elif found:
        render.table(*_as_table(found, verify=verify))
    else:
        render.text(f"no checkpoints in {run / 'checkpoints'}")
    return 4 if any(row.get("problem") for row in found) else 0


def _describe(
    store: CheckpointStore, losses: dict[int, float | None], *, verify: bool
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for info in store.list():
        row = {
            "update": info.step,
            "path": str(info.path),
            "bytes": info.bytes,
            "best": info.best,
            "validation_loss": losses.get(info.step),
        }
        rows.append(row | ({"problem": _problem(store, info.path)} if verify else {}))
    return rows


def _problem(store: CheckpointStore, path: Path) -> str | None:
    from mlxfn.errors import CheckpointError

    try:
        store.verify(path)
    except CheckpointError as error:
        return error.what
    return None


def _validation(run: Path) -> dict[int, float | None]:
    """Return the validation loss after each update that was evaluated, from the log."""
    from mlxfn.sinks.jsonl import read_events

    try:
        events = list(read_events(run / "events.jsonl"))
    except OSError:
        return {}  # the checkpoints can be listed without it
    return {event["update"]: event.get("loss") for event in events if event.get("event") == "eval"}


def _as_table(
    found: Sequence[dict[str, Any]], *, verify: bool
) -> tuple[list[str], list[list[str]]]:
    heads = ["update", "size", "valid loss", "best", "file"] + (["check"] if verify else [])
    rows: list[list[str]] = []
    for row in found:
        loss = row["validation_loss"]
        cells = [
            str(row["update"]),
            size(row["bytes"]),
            "" if loss is None else f"{loss:.4f}",
            "best" if row["best"] else "",
            Path(row["path"]).name,
        ]
        rows.append(cells + ([row["problem"] or "ok"] if verify else []))
    return heads, rows
