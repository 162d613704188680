"""``mlxfn train``: fine-tune a model, or show what a run would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mlxfn_cli import args, render

if TYPE_CHECKING:
    from mlxfn.result import TrainingResult


def train(
    config: args.ConfigFile = None,
    model: args.Model = None,
    data: args.Data = None,
    output: args.Output = None,
    settings: args.Settings = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the run directory.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove the run in the run directory and start over.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Load and encode everything, show the plan, train nothing."),
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Write each event as a line of JSON to stdout.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show only warnings and how the run ended.")
    ] = False,
) -> int:
    """Fine-tune a model.

    Without a configuration it trains a tiny model on a small text that ship with mlxfn: a
    minute, offline, and you have seen everything once. Ctrl-C saves and stops; --resume goes on
    exactly where it stopped.

    Example: mlxfn train --model Qwen/Qwen3-0.6B --data my-rows --output runs/first
    """
    if resume and fresh:
        raise typer.BadParameter("give --resume or --fresh, not both")
    loaded = args.load_config(config, model=model, data=data, output=output, settings=settings)
    if dry_run:
        # Imported here, as in every command: mlx_lm takes seconds that --help need not pay.
        from mlxfn.assemble import assemble

        with render.tokenizing():
            summary = assemble(loaded.config).summary()
        if json:
            render.json_value({**summary, "notes": list(loaded.notes)})
        else:
            render.dry_run(summary, loaded.notes)
        return 0
    from mlxfn import run

    quiet = quiet or "console" not in loaded.config.log.sinks
    sink = render.sink(as_json=json, quiet=quiet, notes=loaded.notes)
    try:
        mode = "resume" if resume else "fresh" if fresh else "new"
        with render.tokenizing():
            result = run.train(loaded.config, mode=mode, sinks=[sink])
    finally:
        sink.close()
    _tell_why_it_stopped(result)
    return result.exit_code


def _tell_why_it_stopped(result: TrainingResult) -> None:
    """Say on stderr why a run did not come to its end, and how it goes on."""
    from mlxfn.errors import HaltedError
    from mlxfn_cli.lines import resume_command

    if result.exit_code >= 128:
        render.note(
            f"{result.message} after update {result.steps}\n"
            f"  go on:    {resume_command(result.run_dir)}"
        )
    elif result.exit_code:
        render.error(str(HaltedError(result.message, where=result.run_dir)))
