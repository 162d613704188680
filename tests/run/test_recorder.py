"""What a run remembers of itself: enough for every report, and never more than a limit."""

from __future__ import annotations

from mlxfn import recorder
from mlxfn.recorder import remember, thinned
from mlxfn.state import RunState
from tests.support.states import small_state


def remembered(updates: int, state: RunState | None = None) -> RunState:
    state = state or RunState(small_state().train)
    for number in range(updates):
        state = remember(state, event="eval" if number % 10 == 9 else "step", loss=float(number))
    return state


def test_a_history_never_grows_beyond_its_limit(monkeypatch):
    """Copied by every logged update and written by every save, it made long runs quadratic."""
    monkeypatch.setattr(recorder, "LONGEST_HISTORY", 64)
    history = remembered(1000).history
    assert 32 < len(history) <= 64
    losses = [entry["loss"] for entry in history]
    assert losses == sorted(losses)
    assert losses[-1] == 999.0


def test_the_first_and_the_last_evaluation_are_never_forgotten(monkeypatch):
    """The report of a run says how good the model was before and after."""
    monkeypatch.setattr(recorder, "LONGEST_HISTORY", 64)
    evals = [entry["loss"] for entry in remembered(1000).history if entry["event"] == "eval"]
    assert (evals[0], evals[-1]) == (9.0, 999.0)


def test_a_run_that_was_cut_anywhere_remembers_the_same(monkeypatch):
    """The history is part of what a resumed run must have in common with one that never stopped."""
    monkeypatch.setattr(recorder, "LONGEST_HISTORY", 64)
    whole = remembered(200)
    again = RunState(small_state().train, history=remembered(200).history)
    assert remembered(100, again).history == remembered(100, whole).history


def test_a_short_history_keeps_every_entry():
    """Nobody misses an entry of an ordinary run."""
    assert [entry["loss"] for entry in remembered(50).history] == [float(i) for i in range(50)]
    assert thinned([]) == ()
