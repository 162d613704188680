"""What a terminal shows, as values for rich to draw; nothing is printed here."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import define, field
from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from mlxfn import events
from mlxfn_cli import lines
from mlxfn_cli.plot import is_logarithmic, plot, smoothed
from mlxfn_cli.words import Pace, duration, memory, one_line, plural, rate, trend

STYLES = {"axis": "dim", "line": "cyan", "marks": "bold green"}


def pairs(rows: Mapping[str, str]) -> Table:
    """Return names and texts in two columns."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows.items():
        table.add_row(name, escape(text))
    return table


def header(run: dict[str, Any], *, title: str, notes: Iterable[str] = ()) -> Panel:
    """Return what is about to run: model, adapter, data, plan, device and place."""
    rows = lines.describe(run)
    rows |= {"note" if index == 0 else " " * index: note for index, note in enumerate(notes)}
    return Panel(
        pairs(rows),
        title=f"[bold]{escape(title)}[/]",
        title_align="left",
        border_style="cyan",
        padding=(0, 1),
        width=None,
    )


@define
class Live:
    """The two moving lines at the bottom: how far the run is, and how it goes.

    Args:
        total: Updates of the run.
        epochs: Epochs of the run.
    """

    total: int
    epochs: int
    update: int = 0
    epoch: int = 0
    doing: str = "getting ready: samples, a first evaluation, compilation"
    pace: Pace = field(factory=Pace)
    losses: list[float] = field(factory=list[float])
    step: events.Step | None = None
    spinner: Spinner = field(factory=lambda: Spinner("dots", style="cyan"))

    def observe(self, event: events.Event) -> None:
        """Take what an event says about progress."""
        self.update, self.epoch = event.update, event.epoch
        if isinstance(event, events.Step) or self.pace.seen:
            # Not from the start: the first update compiles, and would promise hours.
            self.pace = self.pace.observe(event.update, event.time)
        if isinstance(event, events.Step):
            self.step = event
            self.losses = [*self.losses, event.loss][-10:]

    def tick(self, update: int, epoch: int) -> None:
        """Take that an update is done which is perhaps not logged."""
        self.update, self.epoch, self.doing = update, epoch, "training"

    def __rich__(self) -> RenderableType:
        """Return the two lines as they are now."""
        bar = Table.grid(expand=True, padding=(0, 1))
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True, justify="right")
        bar.add_row(
            f"epoch {min(self.epoch + 1, self.epochs)}/{self.epochs}",
            ProgressBar(total=max(self.total, 1), completed=self.update),
            f"{self.update}/{self.total}  [cyan]{self._left()}[/]",
        )
        self.spinner.update(text=self._numbers())
        return Group(bar, self.spinner)

    def _left(self) -> str:
        if not self.pace.seen:
            return ""
        # Between two events the clock goes on, and so does this.
        left = self.pace.left(self.total) - (time.time() - self.pace.seen[-1][1])
        return "" if math.isnan(left) else f"{duration(max(left, 0))} left"

    def _numbers(self) -> Text:
        if self.step is None:
            return Text(self.doing, style="dim")
        arrow = trend(self.losses)
        colour = {"↘": "green", "↗": "red"}.get(arrow, "dim")
        return Text.assemble(
            f"loss {self.step.loss:.4f} ",
            (arrow, colour),
            f"  lr {rate(self.step.lr)}",
            f"  norm {self.step.grad_norm:.2f}",
            f"  {self.step.real_tokens_per_s:,.0f} tok/s, {self.step.tokens_per_s:,.0f} learned",
            f"  {memory(self.step.memory_gb)}, peak {memory(self.step.peak_memory_gb)}",
        )


def evaluation(event: events.Eval, previous: float | None) -> Text:
    """Return the line of an evaluation: where the loss is and whether it is the best."""
    text = Text.assemble(
        ("  valid  ", "dim"),
        f"update {event.update:<6}",
        f"loss {event.loss:.4f}  ",
        (f"perplexity {event.perplexity:,.2f}  ", "dim"),
    )
    if previous is not None and math.isfinite(previous) and math.isfinite(event.loss):
        change = event.loss - previous
        text.append(f"{change:+.4f}  ", style="green" if change < 0 else "red")
    if event.best:
        text.append("★ best", style="bold green")
    return text


def warning(event: events.Verdict) -> Table:
    """Return what a monitor found, to stand out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_row(Text("  warning", "bold yellow"), f"update {event.update}", escape(event.message))
    return grid


def sample(event: events.Sample) -> Text:
    """Return an answer to a sample prompt on two lines."""
    return Text.assemble(
        (f"  {event.when}  ", "dim"),
        (one_line(event.prompt), "cyan"),
        "\n    → ",
        (one_line(event.text), "italic"),
    )


def samples(before: Mapping[str, str], after: Mapping[str, str]) -> RenderableType:
    """Return the answers to each prompt before and after training, side by side."""
    prompts = list(dict.fromkeys([*before, *after]))
    columns = {"before": before, "after": after}
    shown = {name: texts for name, texts in columns.items() if texts}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True, show_lines=True)
    table.add_column("prompt", style="cyan", ratio=2, overflow="fold")
    for name in shown:
        table.add_column(name, ratio=3, overflow="fold", style="dim" if name == "before" else "")
    for prompt in prompts:
        table.add_row(
            escape(one_line(prompt)),
            *(escape(one_line(texts.get(prompt, ""))) for texts in shown.values()),
        )
    return table


def curve(history: Sequence[Mapping[str, Any]], *, width: int, ascii_only: bool) -> Text | None:
    """Return the losses of a run as a drawing, or None where there are too few."""
    train = smoothed([(e["update"], e["loss"]) for e in history if e["event"] == "step"])
    valid = [(e["update"], e["loss"]) for e in history if e["event"] == "eval"]
    if len(train) + len(valid) < 3:
        return None
    rows = plot(train, valid, width=width, height=12, ascii_only=ascii_only)
    drawing = Text("\n").join(
        Text.assemble("  ", *((text, STYLES[kind]) for text, kind in row)) for row in rows
    )
    legend = Text.assemble(
        ("\n  loss:  ", "dim"),
        ("... " if ascii_only else "⠒⠒⠒ ", STYLES["line"]),
        ("train, smoothed    ", "dim"),
        ("o " if ascii_only else "● ", STYLES["marks"]),
        (
            "validation    by update" + (", log scale" if is_logarithmic(train, valid) else ""),
            "dim",
        ),
    )
    return Text.assemble(drawing, legend)


def closing(result: Mapping[str, Any]) -> RenderableType:
    """Return what a run came to: losses, work, and where everything was written."""
    rows: dict[str, str] = {}
    first, best, last = (result.get(f"{name}") for name in (
        "first_valid_loss", "best_loss", "last_valid_loss",
    ))  # fmt: skip
    if best is not None:
        start = "" if first is None else f"{first:.4f} → "
        rows["validation"] = f"{start}{best:.4f} at update {result['best_step']}"
        rows["validation"] += f" (perplexity {_perplexity(best)})"
        if last is not None and last != best:
            rows["validation"] += f", last {last:.4f}"
    work = [plural(result["steps"], "update"), plural(result["samples"], "row")]
    rows["trained"] = ", ".join([*work, plural(result["tokens"], "token")])
    rows["speed"] = f"{result['real_tokens_per_s']:,.0f} tok/s, {result['tokens_per_s']:,.0f} of "
    rows["speed"] += f"them learned, peak memory {memory(result['peak_memory_gb'])}"
    lost = {"skipped": ("skipped", "update"), "dropped_rows": ("dropped", "row")}
    for key, (verb, noun) in lost.items():
        if result.get(key):
            rows[verb] = plural(result[key], noun)
    places = {"run": "run_dir", "adapters": "final_path", "best": "best_path"}
    rows |= {name: str(result[key]) for name, key in places.items() if result.get(key)}
    rows["report"] = f"{result['run_dir']}/report.html"
    reason = "finished" if result["reason"] == "finished" else f"ended: {result['reason']}"
    title = f"{reason} in {duration(result['total_time_s'])}"
    style = "green" if result["exit_code"] == 0 else "yellow"
    return Panel(
        pairs(rows),
        title=f"[bold]{escape(title)}[/]",
        title_align="left",
        border_style=style,
        padding=(0, 1),
    )


def _perplexity(loss: float) -> str:
    return f"{math.exp(min(loss, 700)):,.2f}"


def columns(texts: Mapping[str, str]) -> Table:
    """Return texts side by side under their names."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True)
    for name in texts:
        table.add_column(name, ratio=1, overflow="fold")
    table.add_row(*(escape(text) for text in texts.values()))
    return table


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return rows under their heads; the last column may wrap."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, head in enumerate(heads):
        drawn.add_column(head, overflow="fold", no_wrap=index < 1)
    for row in rows:
        drawn.add_row(*(escape(cell) for cell in row))
    return drawn
