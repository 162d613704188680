"""``mlxfn data``: what the model will see of a data set, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlxfn_cli import args, render

if TYPE_CHECKING:
    from rich.text import Text

    from mlxfn.data.doctor import Diagnosis, Shown, SplitHealth

COLOURS = {"error": "bold red", "warning": "yellow"}


def data(
    config: args.ConfigFile = None,
    model: args.Model = None,
    data: args.Data = None,
    settings: args.Settings = None,
    rows: Annotated[int, typer.Option("--rows", help="First rows shown token by token.")] = 2,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page of it.", show_default=False),
    ] = None,
    json: args.Json = False,
) -> int:
    """Look at a data set as training will, and name everything that is wrong with it.

    Every row of every split is read and tokenized, broken ones too. Exits with 3 when training
    on it would be refused or senseless.

    Example: mlxfn data my.toml --html data.html
    """
    from mlxfn.assemble import encode_options, load_base, paths_of, source_of
    from mlxfn.data.doctor import examine

    loaded = args.load_config(config, model=model, data=data, settings=settings)
    settled = loaded.config
    base = load_base(settled)
    source = ", ".join(paths_of(settled))
    with render.tokenizing():
        diagnosis = examine(
            source_of(settled),
            base.tokenizer,
            encode_options(settled, base.vocab_size),
            batch_size=settled.data.batch_size,
            samples=rows,
            valid_fraction=settled.data.valid_fraction,
        )
    if html is not None:
        _write_page(html, diagnosis, source)
    if json:
        render.json_value(diagnosis.to_dict())
    else:
        _show(diagnosis, source)
        if html is not None:
            render.text(f"page: {html}")
    return 3 if diagnosis.senseless else 0


def _write_page(path: Path, diagnosis: Diagnosis, source: str) -> None:
    from mlxfn.data.page import page
    from mlxfn.errors import ConfigError
    from mlxfn.files import atomic_write, utf8

    try:
        atomic_write(path, utf8(page(diagnosis, title=f"mlxfn data: {source}")))
    except (OSError, ValueError) as error:  # a path without a name, such as ".", is a ValueError
        said = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"the page cannot be written: {said}", where=path) from error


def _show(diagnosis: Diagnosis, source: str) -> None:
    """Show everything: in colours on a terminal, as plain lines in a pipe."""
    from rich.text import Text

    lines = [Text(f"data    {source}")]
    for name, health in diagnosis.splits.items():
        lines += _split(name, health)
    lines.append(Text())
    for problem in diagnosis.problems:
        lines.append(
            Text.assemble(
                (f"{problem.severity:<8}", COLOURS[problem.severity]),
                f"{problem.split}: {problem.count:,} {problem.what}",
            )
        )
        if problem.places:
            more = ", ..." if problem.count > len(problem.places) else ""
            lines.append(Text(f"        at {', '.join(problem.places)}{more}", "dim"))
        lines.append(Text(f"        {problem.remedy}", "dim"))
    verdict = _verdict(diagnosis)
    lines.append(Text(verdict, "bold red" if diagnosis.senseless else "bold green"))
    if not render.on_terminal():
        render.text("\n".join(line.plain.rstrip() for line in lines))
        return
    console = render.console()
    for line in lines:
        console.print(line, soft_wrap=True)


def _verdict(diagnosis: Diagnosis) -> str:
    kinds = {problem.kind for problem in diagnosis.problems}
    if diagnosis.senseless:
        return f"{len(kinds)} kinds of problems: training on this would be refused or senseless"
    return f"{len(kinds)} kinds of problems, none that forbids training" if kinds else "no problems"


def _split(name: str, health: SplitHealth) -> list[Text]:
    from rich.text import Text

    from mlxfn.data.doctor import histogram_lines
    from mlxfn.data.page import padding_text

    facts = dict(health.report.lines())
    for label, padding in (("bucketed", health.bucketed), ("packed", health.packed)):
        if padding is not None:
            facts[label] = padding_text(padding)
    lines = [Text(), Text(name, "bold")]
    lines += [Text.assemble((f"  {label:<9} ", "dim"), text) for label, text in facts.items()]
    lines += [Text(f"            {bar}", "cyan") for bar in histogram_lines(health.histogram)]
    for number, sample in enumerate(health.samples, start=1):
        lines.append(Text.assemble((f"  row {number}     ", "dim"), *_tokens(sample)))
    return lines


def _tokens(sample: tuple[Shown, ...]) -> list[tuple[str, str]]:
    """Return the tokens of a row; in a pipe, where there is no colour, marks show what is learned."""
    parts: list[tuple[str, str]] = []
    marks = not render.on_terminal()
    for index, token in enumerate(sample):
        before = index > 0 and sample[index - 1].learned
        if marks and token.learned != before:
            parts.append(("[[" if token.learned else "]]", ""))
        # A data set must not move the cursor or colour the terminal.
        shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in token.text)
        parts.append((shown, "black on green" if token.learned else "dim"))
    if marks and sample and sample[-1].learned:
        parts.append(("]]", ""))
    return parts
