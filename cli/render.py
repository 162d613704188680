"""The one place that prints: to a terminal, to a pipe, or as JSON."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import traceback as traceback_module
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Any

# rich and mlxfn are imported where they are used: mlxfn --help needs neither the panels nor mlx.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live as RichLive

    from mlxfn.events import End, Eval, Event, Sample, Sink, Start, Verdict

WIDEST = 100
"""Columns that are used of a wide terminal: longer lines are harder to read."""

_PATIENCE = 1.0  # seconds before it is shown how far tokenizing is
LOADING = "loading the model and the data ..."
STOPPING = "{}: stopping after this update, which is saved; once more stops at once, without saving"


def accept_every_character() -> None:
    """Let no character of a model's answer end the program where the terminal cannot show it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # replaced by a test or by a host program
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]


def close_stdout() -> None:
    """Go on without a reader: what is still to be written to stdout goes nowhere."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def on_terminal() -> bool:
    """Return whether a person watches stdout on a terminal that can move its cursor."""
    watched = sys.stdout is not None and sys.stdout.isatty()  # None where the shell closed it
    return watched and os.environ.get("TERM", "dumb") not in {"dumb", "unknown"}


def console() -> Console:
    """Return a rich console on stdout that changes no text on its own."""
    from rich.console import Console

    made = Console(highlight=False)
    made.width = min(made.width, WIDEST)
    return made


@contextlib.contextmanager
def tokenizing() -> Generator[None]:
    """Show how far reading and tokenizing is, on a terminal, where it takes more than a second."""
    from mlxfn.data.progress import Progress, listening

    if sys.stderr is None or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.status import Status

    from mlxfn_cli.words import duration

    status = Status("", console=Console(stderr=True, highlight=False))

    def tell(progress: Progress) -> None:
        if progress.ended:
            status.stop()
        elif progress.seconds > _PATIENCE:
            left = f", {duration(progress.left)} left" if progress.left is not None else ""
            done = f"{progress.rows:,} rows, {progress.rate:,.0f} a second"
            status.update(f"tokenizing {progress.name}: {done}{left}")
            status.start()

    with listening(tell):
        try:
            yield
        finally:
            status.stop()


def text(message: str) -> None:
    """Print a text to stdout as it is."""
    print(message, flush=True)


def json_value(value: Any) -> None:
    """Print a value as one line of JSON; numbers that JSON does not have become null."""
    from mlxfn.files import json_text

    print(json_text(value), flush=True)


def note(message: str) -> None:
    """Print something worth knowing to stderr, where it disturbs no output."""
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError:  # the terminal is closed: nobody is there to be told, and the exit code tells
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)


def error(message: str) -> None:
    """Print what went wrong to stderr."""
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    note(f"\x1b[1;31merror:\x1b[0m {message}" if colour else f"error: {message}")


def traceback(exception: BaseException) -> None:
    """Print where an exception comes from to stderr."""
    traceback_module.print_exception(exception)


def version() -> None:
    """Print the version of mlxfn."""
    text(f"mlxfn {installed_version('mlxfn')}")


def sink(*, as_json: bool, quiet: bool, notes: Sequence[str] = ()) -> Sink:
    """Return where the events of a run go: a live display, plain lines, or JSON lines.

    Args:
        as_json: JSON lines on stdout and nothing else there.
        quiet: Only warnings and the end.
        notes: What was noticed in the configuration, one sentence each.
    """
    if not as_json and not quiet and on_terminal():
        return Deaf(Terminal(notes))
    for remark in notes:
        note(f"note: {remark}")
    return Deaf(JsonLines() if as_json else PlainLines(quiet=quiet))


class Deaf:
    """A sink that goes silent when nobody reads any more, instead of ending the run."""

    def __init__(self, inner: Sink) -> None:
        self.inner: Sink | None = inner

    def write(self, event: Event) -> None:
        """Hand an event on, unless an earlier one could not be written."""
        self._try(lambda inner: inner.write(event))

    def close(self) -> None:
        """Finish the display, once."""
        self._try(lambda inner: inner.close())
        self.inner = None

    def tick(self, update: int, epoch: int) -> None:
        """Hand on that an update is done, to whom that concerns."""
        self._try(lambda inner: isinstance(inner, Terminal) and inner.tick(update, epoch))

    def stopping(self, name: str, last: bool) -> None:
        """Say at once that a signal was heard; JSON and --quiet say only how it ended."""
        if isinstance(self.inner, PlainLines) and not self.inner.quiet and not last:
            note(STOPPING.format(name))
        self._try(lambda inner: isinstance(inner, Terminal) and inner.stopping(name, last))

    def _try(self, act: Callable[[Sink], object]) -> None:
        try:
            if self.inner is not None:
                act(self.inner)
        except OSError:  # the pipe or the terminal is gone; the run is worth more
            self.inner = None
            close_stdout()


class JsonLines:
    """Every event as one line of JSON."""

    def write(self, event: Event) -> None:
        """Print an event."""
        from mlxfn.events import to_dict

        json_value(to_dict(event))

    def close(self) -> None:
        """Do nothing: every line is out already."""


class PlainLines:
    """Every event as one line of text.

    Args:
        quiet: Only warnings and the end.
    """

    def __init__(self, *, quiet: bool) -> None:
        from mlxfn_cli.lines import Plan

        self.quiet = quiet
        self.plan = Plan()

    def write(self, event: Event) -> None:
        """Print an event."""
        from mlxfn.events import End, Verdict
        from mlxfn_cli import lines

        said = lines.line(event, self.plan)
        if not self.quiet or isinstance(event, Verdict | End):
            text(said)

    def close(self) -> None:
        """Do nothing: every line is out already."""


class Terminal:
    """A header, two moving lines, what is worth keeping above them, and a summary.

    Args:
        notes: What was noticed in the configuration, for the header.
    """

    def __init__(self, notes: Sequence[str] = ()) -> None:
        from mlxfn_cli import panels

        self.panels = panels
        self.notes = notes
        self.console = console()
        self.moving: RichLive | None = None
        self.progress = panels.Live(total=0, epochs=0)
        self.valid: float | None = None
        self.run: dict[str, Any] = {}
        self.answers: dict[str, dict[str, str]] = {"before": {}, "after": {}}
        # Overwritten by the header; no moving line yet, a download may show its own.
        self.console.print(f"[dim]{LOADING}[/]", end="\r")

    def write(self, event: Event) -> None:
        """Show an event."""
        self.progress.observe(event)
        show = getattr(self, "_" + type(event).__name__.lower(), None)
        if show is not None:
            show(event)
        if self.moving is not None:
            self.moving.update(self.progress)

    def tick(self, update: int, epoch: int) -> None:
        """Move the bar; a thread of its own draws it, some times a second."""
        self.progress.tick(update, epoch)

    def stopping(self, name: str, last: bool) -> None:
        """Answer Ctrl-C at once, from another thread than the run's."""
        if last:  # no line any more, and only if it can be written without waiting
            if select.select([], [sys.stdout], [], 0)[1]:
                os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # the cursor was hidden
        else:
            self.console.print(f"[yellow]  {STOPPING.format(name)}[/]")

    def close(self) -> None:
        """Take the moving lines away and give the cursor back."""
        if not self.run:
            self.console.print(" " * len(LOADING), end="\r")
        if self.moving is not None:
            self.moving.stop()
            self.moving = None

    def _start(self, event: Start) -> None:
        from rich.live import Live

        self.run = event.run
        plan = event.run["plan"]
        title = f"mlxfn {installed_version('mlxfn')}"
        if event.resumed:
            title += f" · going on after update {event.update}"
            self.answers["before"] = _first_answers(event.run["output_dir"])
        self.console.print(self.panels.header(event.run, title=title, notes=self.notes))
        self.console.print("[dim]  Ctrl-C saves and stops; --resume goes on from there.[/]")
        self.progress = self.panels.Live(total=plan["updates"], epochs=plan["epochs"])
        self.progress.observe(event)
        self.moving = Live(
            self.progress, console=self.console, refresh_per_second=8, transient=True
        )
        self.moving.start()

    def _eval(self, event: Eval) -> None:
        self.console.print(self.panels.evaluation(event, self.valid))
        self.valid = event.loss

    def _verdict(self, event: Verdict) -> None:
        self.console.print(self.panels.warning(event))

    def _sample(self, event: Sample) -> None:
        self.answers[event.when][event.prompt] = event.text
        if event.when == "before":
            self.console.print(self.panels.sample(event))

    def _end(self, event: End) -> None:
        self.close()
        result = event.result
        if self.answers["after"]:
            self.console.print(self.panels.samples(**self.answers))
        drawn = self.panels.curve(
            result.get("history", ()), width=self.console.width - 4, ascii_only=self._ascii()
        )
        if drawn is not None:
            self.console.print(drawn)
        self.console.print(self.panels.closing(result))
        if event.exit_code == 0:
            self._next(result)

    def _next(self, result: Mapping[str, Any]) -> None:
        from mlxfn_cli.lines import next_commands

        prompt = next(iter(self.answers["after"]), "Hello")
        model = self.run.get("model", {}).get("path", "")
        self.console.print("[dim]next:[/]")
        for line in next_commands(result, model, prompt):
            # Not wrapped and not framed, so that it can be copied.
            self.console.print(f"  {line}", markup=False, soft_wrap=True)

    def _ascii(self) -> bool:
        return not self.console.encoding.lower().startswith("utf")


def _first_answers(run_dir: str) -> dict[str, str]:
    """Return the answers from before a run's first update, by prompt, from its log."""
    from mlxfn.files import expand
    from mlxfn.sinks.jsonl import read_events

    with contextlib.suppress(OSError):
        return {
            event["prompt"]: event["text"]
            for event in read_events(expand(run_dir) / "events.jsonl")
            if event.get("event") == "sample" and event.get("when") == "before"
        }
    return {}


def dry_run(summary: dict[str, Any], notes: Sequence[str]) -> None:
    """Show the plan of a run that is not started."""
    from mlxfn_cli import lines, panels

    if on_terminal():
        title = f"mlxfn {installed_version('mlxfn')} · dry run"
        console().print(panels.header(summary, title=title, notes=notes))
    else:
        for name, said in lines.describe(summary).items():
            for part in said.splitlines():
                text(f"{name + ':':<11}{part}")
        for remark in notes:
            text(f"{'note:':<11}{remark}")
    text("nothing was trained, nothing was written")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Show rows: drawn on a terminal, separated by tabs in a pipe."""
    if on_terminal():
        from mlxfn_cli import panels

        console().print(panels.table(heads, rows))
        return
    for row in (heads, *rows):
        text("\t".join(row))


def facts(rows: Mapping[str, str]) -> None:
    """Show names and texts."""
    width = max(map(len, rows), default=0) + 1
    for name, said in rows.items():
        text(f"{name + ':':<{width}} {said}")


def answers(texts: Mapping[str, str]) -> None:
    """Show one answer as it is, or several under their names."""
    if len(texts) == 1:
        text(*texts.values())
    elif on_terminal():
        from mlxfn_cli import panels

        console().print(panels.columns(texts))
    else:
        for name, said in texts.items():
            text(f"{name}:\n{said}\n")
