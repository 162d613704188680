"""Laws of monitors: folds that a checkpoint can cut anywhere, and that no NaN slips through."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from mlxfn.monitors import Monitor, MonitorState, Verdict
from mlxfn.testing.law import LawError, require


def observed(
    monitor: Monitor, values: Sequence[float], state: MonitorState | None = None
) -> tuple[MonitorState, list[Verdict]]:
    """Return the state after some observations, and the verdict on each.

    Args:
        monitor: Any monitor.
        values: What it observes, in order.
        state: Where it starts; at its own beginning where not given.

    Example:
        >>> from mlxfn.monitors import nonfinite
        >>> [v.name for v in observed(nonfinite(policy="skip", max_in_a_row=9), [1, 0])[1]]
        ['CONTINUE', 'NONFINITE']
    """
    state = monitor.init() if state is None else state
    verdicts: list[Verdict] = []
    for value in values:
        state, verdict = monitor.observe(state, value)
        verdicts.append(verdict)
    return state, verdicts


def monitor_is_a_fold(monitor: Monitor, values: Sequence[float], cut: int) -> float:
    """Observing a list at once, or in pieces with the state kept as JSON between, is the same.

    Args:
        monitor: Any monitor.
        values: What it observes.
        cut: Where the list is cut.

    Raises:
        LawError: The verdicts or the last state differ, or the state is no JSON.

    Example:
        >>> from mlxfn.monitors import early_stopping
        >>> monitor_is_a_fold(early_stopping(patience=1, min_delta=0.0), [1.0, 2.0], 1)
        0.0
    """
    end, whole = observed(monitor, values)
    middle, first = observed(monitor, values[:cut])
    kept = _through_json(middle)
    after, second = observed(monitor, values[cut:], kept)
    pairs = list(zip(whole, [*first, *second], strict=True))
    at = next((i for i, (a, b) in enumerate(pairs) if a is not b), None)
    require(at is None, "a monitor that was cut and resumed judges otherwise", at=at, cut=cut)
    require(json.dumps(end) == json.dumps(after), "it ends in another state", cut=cut)
    return 0.0


def _through_json(state: MonitorState) -> MonitorState:
    try:
        kept = json.loads(json.dumps(state))
    except (TypeError, ValueError) as problem:
        raise LawError("a checkpoint cannot hold the state", got=str(problem)) from problem
    require(json.dumps(kept) == json.dumps(state), "the state is not the same read back from JSON")
    return kept


def monitor_is_pure(monitor: Monitor, values: Sequence[float], last: float) -> float:
    """Observing changes no state that it was given, and gives the same twice.

    Args:
        monitor: Any monitor.
        values: What it observed before.
        last: What it observes now.

    Raises:
        LawError: The state it was given changed, or two results differ.
    """
    state, _ = observed(monitor, values)
    before = json.dumps(state)
    results = [monitor.observe(state, last) for _ in range(2)]
    require(json.dumps(state) == before, "observing changed the state it was given")
    texts = [(json.dumps(after), verdict) for after, verdict in results]
    require(texts[0] == texts[1], "observing the same twice gives two results")
    return 0.0


def monitor_never_swallows_nan(
    monitor: Monitor, values: Sequence[float], *, within: int, bad: float = math.nan
) -> float:
    """A value that is no number is worse than any number: it is spoken about, and never a success.

    Args:
        monitor: Any monitor.
        values: What it observed before.
        within: Bad values in a row after which it has to have spoken.
        bad: The bad value: NaN for losses; 0 for the flag "the update was finite".

    Returns:
        How many bad values it let pass before it spoke.

    Raises:
        LawError: It said nothing, or judged NaN otherwise than infinity.

    Example:
        >>> from mlxfn.monitors import divergence
        >>> healthy = [1.0] * 20
        >>> monitor_never_swallows_nan(divergence(window=20, threshold=2.0), healthy, within=1)
        0.0
    """
    state, before = observed(monitor, values)
    after, verdicts = observed(monitor, [bad] * within, state)
    spoke = [i for i, verdict in enumerate(verdicts) if verdict is not Verdict.CONTINUE]
    # A monitor that had spoken before may wait for a recovery before it speaks again.
    told = spoke or any(verdict is not Verdict.CONTINUE for verdict in before)
    require(bool(told), "a monitor said nothing", value=bad, times=within)
    if math.isnan(bad):
        _, worst = observed(monitor, [math.inf] * within, state)
        require(verdicts == worst, "NaN is judged otherwise than infinity", got=verdicts)
    recovered, _ = observed(monitor, values[-1:], after)
    _through_json(recovered)
    return float(spoke[0]) if spoke else 0.0
