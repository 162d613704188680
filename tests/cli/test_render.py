"""What is drawn from events, without a run: every kind of event, and numbers that are none."""

from __future__ import annotations

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mlxfn import events
from mlxfn_cli import lines, panels, plot, render, words

WHEN = {"update": 3, "epoch": 0, "time": 0.0}
RESULT = {
    "reason": "finished",
    "exit_code": 0,
    "steps": 3,
    "samples": 24,
    "tokens": 900,
    "skipped": 0,
    "dropped_rows": 0,
    "first_valid_loss": None,
    "last_valid_loss": None,
    "best_loss": None,
    "best_step": None,
    "run_dir": "runs/x",
    "final_path": "runs/x/adapters",
    "best_path": None,
    "total_time_s": 4.0,
    "tokens_per_s": 225.0,
    "real_tokens_per_s": 300.0,
    "peak_memory_gb": 0.2,
    "history": [],
}
PLAN = {"updates": 3, "epochs": 1, "warmup": 0, "batch_size": 8, "accumulation": 1}
EVENTS = [
    events.Start(**WHEN, resumed=False, run={"plan": PLAN}),
    events.Step(
        **WHEN,
        loss=math.nan,
        grad_norm=math.inf,
        lr=1e-4,
        tokens=300,
        rows=8,
        finite=False,
        step_time_s=0.1,
        tokens_per_s=3000.0,
        real_tokens=400,
        real_tokens_per_s=4000.0,
        memory_gb=0.1,
        peak_memory_gb=0.2,
    ),
    events.Eval(**WHEN, loss=2.0, perplexity=7.39, tokens=90, rows=4, time_s=0.1, best=True),
    events.Epoch(**WHEN, train_loss=2.0, valid_loss=None, time_s=1.0),
    events.Save(**WHEN, path="runs/x/checkpoints/step-00000003.npz", best=True, pause_s=0.0),
    events.Verdict(**WHEN, kind="diverged", message="It [bold]rises[/] far\nabove its average."),
    events.Sample(**WHEN, when="before", prompt="[red]?", text="two\nlines"),
    events.End(**WHEN, reason="finished", exit_code=0, result=RESULT),
]


def drawn(renderable, width=80):
    """Return what rich makes of a value, as plain text."""
    screen = Console(file=io.StringIO(), width=width, highlight=False)
    screen.print(renderable)
    return screen.file.getvalue()


def test_there_is_an_example_of_every_event():
    """A new kind of event has to be drawn too; this list is what the tests below run over."""
    assert {type(event) for event in EVENTS} == set(events.Event.__subclasses__())


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_is_one_line_of_its_own(event):
    """An event without a line of its own would vanish from every log file."""
    told = lines.line(event, lines.Plan())
    assert len(told.splitlines()) == 1
    assert len(told.split()) > 1


def test_a_run_without_validation_or_history_has_its_summary():
    """Nothing in the report but the counts is certain to be there."""
    shown = drawn(panels.closing(RESULT))
    assert "3 updates, 24 rows, 900 tokens" in shown
    assert "validation" not in shown
    assert panels.curve(RESULT["history"], width=80, ascii_only=False) is None


def test_markup_of_users_is_text():
    """A prompt with square brackets is shown as it was written."""
    assert "[bold]rises[/]" in drawn(panels.warning(EVENTS[5]))
    shown = drawn(panels.samples({"[red]?": "[x]"}, {"[red]?": "[y]"}))
    assert all(text in shown for text in ("[red]?", "[x]", "[y]"))


class Refusing:
    """A sink whose terminal is gone."""

    def __init__(self):
        self.calls = 0

    def write(self, event):
        """Fail as a write to a closed pipe does."""
        self.calls += 1
        raise BrokenPipeError

    def close(self):
        """Must not be reached."""
        raise AssertionError


def test_a_sink_without_a_reader_is_asked_once(monkeypatch):
    """The run goes on, and does not try the dead pipe a thousand times."""
    monkeypatch.setattr(render, "close_stdout", lambda: None)
    inner = Refusing()
    sink = render.Deaf(inner)
    for _ in range(3):
        sink.write(EVENTS[0])
    sink.close()
    assert inner.calls == 1


def test_the_time_left_does_not_count_the_first_update():
    """It compiles for seconds or minutes, and would promise hours."""
    live = panels.Live(total=100, epochs=1)
    live.observe(events.Start(update=0, epoch=0, time=0.0, resumed=False, run={}))
    assert live.pace.seen == ()


@given(
    st.lists(st.tuples(st.integers(0, 500), st.floats(allow_infinity=True, allow_nan=True))),
    st.lists(st.tuples(st.integers(0, 500), st.floats(-1e6, 1e6))),
    st.integers(12, 120),
    st.integers(3, 20),
)
def test_every_curve_is_drawn_within_its_box(line, marks, width, height):
    """NaN, infinity, one point, equal points: whatever a run logs."""
    rows = plot.plot(sorted(line, key=lambda point: point[0]), marks, width=width, height=height)
    texts = ["".join(text for text, _ in row) for row in rows]
    assert len(texts) in {0, height}
    assert len({len(text) for text in texts[:-1]}) <= 1


def test_a_falling_loss_is_drawn_from_the_upper_left_to_the_lower_right():
    """The one thing the drawing is for."""
    rows = plot.plot([(0, 4.0), (10, 1.0)], width=40, height=8, ascii_only=True)
    texts = ["".join(text for text, _ in row) for row in rows]
    assert texts[0].startswith("4.00 |.")
    assert texts[-2].startswith("1.00 |")
    assert texts[-2].rstrip().endswith(".")
    assert len(texts[-2].rstrip()) == 40


@given(st.lists(st.floats(min_value=0.1, max_value=10.0), min_size=4, max_size=20))
def test_the_arrow_points_where_the_numbers_go(losses):
    """Sorted losses can only rise or stay, reversed ones only fall or stay."""
    assert words.trend(sorted(losses)) in "↗→"
    assert words.trend(sorted(losses, reverse=True)) in "↘→"
