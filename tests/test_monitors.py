"""Monitors: folds whose verdicts do not depend on how the observations were cut."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn.monitors import Verdict, divergence, early_stopping, nonfinite

MONITORS = {
    "early_stopping": early_stopping(patience=2, min_delta=0.01),
    "divergence": divergence(window=20, threshold=1.5),
    "nonfinite": nonfinite(policy="skip", max_in_a_row=2),
}
values = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=40)


def observe_all(monitor, state, losses):
    verdicts = []
    for loss in losses:
        state, verdict = monitor.observe(state, loss)
        verdicts.append(verdict)
    return state, verdicts


@pytest.mark.parametrize("name", MONITORS)
@given(losses=values, cut=st.integers(0, 40))
def test_a_monitor_restored_from_json_goes_on_as_if_never_stopped(name, losses, cut):
    """Its state is part of the checkpoint: a resumed run must stop where the whole one does."""
    monitor = MONITORS[name]
    _, whole = observe_all(monitor, monitor.init(), losses)
    middle, first = observe_all(monitor, monitor.init(), losses[:cut])
    _, rest = observe_all(monitor, json.loads(json.dumps(middle)), losses[cut:])
    assert first + rest == whole


@pytest.mark.parametrize("name", MONITORS)
def test_observing_changes_no_state_it_was_given(name):
    monitor = MONITORS[name]
    state, _ = observe_all(monitor, monitor.init(), [1.0] * 12)
    before = json.dumps(state)
    monitor.observe(state, math.nan)
    assert json.dumps(state) == before


def test_early_stopping_waits_for_its_patience_and_ignores_small_falls():
    monitor = early_stopping(patience=2, min_delta=0.1)
    _, verdicts = observe_all(monitor, monitor.init(), [1.0, 0.95, 0.5, 0.45, 0.45])
    assert [v is Verdict.EARLY_STOP for v in verdicts] == [False, False, False, False, True]


def test_a_patience_of_zero_never_stops():
    monitor = early_stopping(patience=0, min_delta=0.0)
    _, verdicts = observe_all(monitor, monitor.init(), [1.0] * 50)
    assert set(verdicts) == {Verdict.CONTINUE}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_never_an_improvement_and_always_divergence(bad):
    """NaN compares as false with everything: a careless comparison lets it pass."""
    stop = early_stopping(patience=1, min_delta=0.0)
    assert stop.observe(stop.init(), bad)[1] is Verdict.EARLY_STOP
    diverged = divergence(window=100, threshold=2.0)
    _, verdicts = observe_all(diverged, diverged.init(), [1.0] * 30 + [bad])
    assert verdicts[-1] is Verdict.DIVERGED


def test_divergence_is_told_once_and_again_after_recovery():
    monitor = divergence(window=100, threshold=2.0)
    losses = [1.0] * 90 + [10.0] * 10 + [0.1] * 40 + [50.0] * 10
    _, verdicts = observe_all(monitor, monitor.init(), losses)
    assert verdicts.count(Verdict.DIVERGED) == 2


@pytest.mark.parametrize(("high", "told"), [(1.5, False), (2.2, False), (2.3, True)])
def test_only_a_rise_over_the_threshold_is_divergence(high, told):
    """Ten losses h after ninety of 1: h / (0.9 + 0.1 h) is 2 where h is 2.25."""
    monitor = divergence(window=100, threshold=2.0)
    _, verdicts = observe_all(monitor, monitor.init(), [1.0] * 90 + [high] * 10)
    assert (Verdict.DIVERGED in verdicts) == told


def test_the_past_beyond_the_window_is_forgotten():
    """High losses of the first updates would hide a divergence for the rest of the run."""
    monitor = divergence(window=20, threshold=1.4)
    state, verdicts = observe_all(monitor, monitor.init(), [10.0] * 99 + [1.0] * 20 + [3.0] * 10)
    assert Verdict.DIVERGED in verdicts[-10:]
    assert len(state["losses"]) == 20


def test_a_steady_or_falling_loss_is_not_divergence():
    monitor = divergence(window=100, threshold=2.0)
    _, verdicts = observe_all(monitor, monitor.init(), [5.0 * 0.97**i for i in range(200)])
    assert set(verdicts) == {Verdict.CONTINUE}


def test_one_more_than_the_limit_in_a_row_halts():
    monitor = nonfinite(policy="skip", max_in_a_row=2)
    _, verdicts = observe_all(monitor, monitor.init(), [0, 0, 1, 0, 0, 0])
    assert verdicts[-1] is Verdict.TOO_MANY_NONFINITE
    assert Verdict.TOO_MANY_NONFINITE not in verdicts[:-1]


def test_the_halt_policy_halts_at_the_first():
    monitor = nonfinite(policy="halt", max_in_a_row=2)
    assert monitor.observe(monitor.init(), False)[1] is Verdict.TOO_MANY_NONFINITE
