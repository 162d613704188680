"""``mlxfn export``: what a run trained, in the layout of another program."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mlxfn_cli import args, render
from mlxfn_cli.words import command


class Layout(StrEnum):
    """Layouts that can be written."""

    mlx_lm = "mlx-lm"
    peft = "peft"
    fused = "fused"


def export(
    run: args.Run,
    to: Annotated[
        Layout,
        typer.Option(
            "--to", help="mlx-lm or peft: an adapter folder; fused: the whole model, merged."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="The folder to write.")],
    checkpoint: args.Checkpoint = args.Which.best,
    json: args.Json = False,
) -> None:
    """Write the adapter, or the merged model, for another program.

    Example: mlxfn export runs/default --to fused --output my-model
    """
    from mlxfn.models.export import export_fused, export_mlx_lm
    from mlxfn.models.peft import export_peft
    from mlxfn.reopen import reopen

    finished = reopen(run, checkpoint=checkpoint.value)
    writers = {
        Layout.mlx_lm: export_mlx_lm,
        Layout.peft: export_peft,
        Layout.fused: export_fused,
    }
    folder = writers[to](finished.adapter, finished.params, output)
    if json:
        render.json_value({"path": str(folder), "layout": to.value, "checkpoint": finished.step})
        return
    render.text(f"written: {folder} (the model after update {finished.step})")
    if to is not Layout.peft:
        model, adapter = (folder, []) if to is Layout.fused else (finished.model.path, [folder])
        words = ["mlx_lm.generate", "--model", model]
        words += [word for path in adapter for word in ("--adapter-path", path)]
        render.text("next:    " + command(*words, "--prompt", "Hello"))
