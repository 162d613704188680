"""The command line: which commands there are, and how what goes wrong is told."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, cast

import typer
from typer.main import get_command

from mlxfn_cli import (
    checkpoints,
    config,
    data,
    export,
    generate,
    plan,
    render,
    report,
    train,
    verify,
)
from mlxfn_cli import eval as evaluation

app = typer.Typer(
    name="mlxfn",
    help="Fine-tune language models with MLX: LoRA, QLoRA, DoRA or full.",
    epilog="Try it: mlxfn train trains a tiny model that ships with mlxfn, in a minute, offline.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command()(train.train)
app.command("eval")(evaluation.evaluate)
app.command()(generate.generate)
app.command()(export.export)
app.command()(data.data)
app.command()(plan.plan)
app.command()(checkpoints.checkpoints)
app.command()(report.report)
app.command()(verify.verify)
app.add_typer(config.app)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")
    ] = False,
) -> None:
    """Fine-tune language models with MLX: LoRA, QLoRA, DoRA or full."""
    del debug  # main() takes it off the command line, wherever it stands
    if version:
        render.version()
    elif context.invoked_subcommand is None:
        render.text(context.get_help())
    else:
        return
    raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: The words after the program's name; those of the process where not given.

    Example:
        >>> main(["--version"])
        mlxfn ...
        0
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    render.accept_every_character()
    debug = "--debug" in words
    try:
        code = get_command(app).main(
            [word for word in words if word != "--debug"],
            prog_name="mlxfn",
            standalone_mode=False,
        )
    except BrokenPipeError:
        render.close_stdout()
        return 1
    except (KeyboardInterrupt, typer.Abort):  # Ctrl-C where there is nothing to save
        render.note("stopped")
        return 130
    except Exception as error:  # noqa: BLE001 - the one place where all errors end
        return _fail(error, debug=debug)
    return cast("int", code or 0)


def _fail(error: Exception, *, debug: bool) -> int:
    """Print one message for whatever went wrong and return the exit code for it."""
    from mlxfn.errors import MlxfnError  # not at the top: --help need not load mlxfn

    if debug:
        render.traceback(error)
    if isinstance(error, MlxfnError):
        render.error(str(error))
        return error.exit_code
    if isinstance(error, typer.TyperException):
        # A usage error; typer's own kinds know the command they belong to.
        context = getattr(error, "ctx", None)
        if not error.format_message():
            return 2  # a group without its command: the help is shown already
        path = context.command_path if context else "mlxfn"
        render.error(f"{error.format_message()}\n  remedy:   {path} --help")
        return 2
    name, said = type(error).__name__, str(error)
    what = f"unexpected {name}: {said}" if said else f"unexpected {name}"
    render.error(what if debug else f"{what}\n  remedy:   run with --debug for the traceback")
    return 1


if __name__ == "__main__":
    sys.exit(main())
