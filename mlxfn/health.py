"""The health of a run: what its monitors say about each update, and what follows from it."""

from __future__ import annotations

import attrs

from mlxfn import events, tree
from mlxfn.assemble import Job
from mlxfn.data.cursor import Window, to_device
from mlxfn.monitors import Verdict
from mlxfn.recorder import Recorder, remember, updates_applied
from mlxfn.result import FINISHED, Ending
from mlxfn.state import RunState, StepMetrics
from mlxfn.transforms import with_rate_factor

MAX_ROLLBACKS = 3
"""Rollbacks after which a run that diverges once more is halted."""


def judge_update(
    job: Job, state: RunState, window: Window, metrics: StepMetrics, record: Recorder
) -> tuple[RunState, Ending | None]:
    """Show an update to the monitors of non-finite values and of divergence."""
    finite = bool(metrics.finite)
    state, verdict = observe(job, state, "nonfinite", finite)
    if verdict is not Verdict.CONTINUE:
        message = f"{verdict.value} {where_nonfinite(job, state, window)}"
        record.tell(events.Verdict, state, kind=verdict.name.lower(), message=message)
        if verdict is not Verdict.TOO_MANY_NONFINITE:
            return state, None
        ending = Ending("nonfinite", 5, message)
        if job.config.train.nonfinite == "rollback":
            return roll_back(job, state, ending, record)
        return state, ending
    state, verdict = observe(job, state, "divergence", float(metrics.loss))
    if verdict is Verdict.DIVERGED:
        record.tell(events.Verdict, state, kind="diverged", message=verdict.value)
        ending = Ending("diverged", 5, verdict.value)
        if job.config.monitor.on_divergence == "halt":
            return state, ending
        if job.config.monitor.on_divergence == "rollback":
            return roll_back(job, state, ending, record)
    return state, None


def observe(job: Job, state: RunState, name: str, value: float) -> tuple[RunState, Verdict]:
    """Fold one value into a monitor's state."""
    after, verdict = job.monitors[name].observe(state.monitors[name], value)
    return attrs.evolve(state, monitors={**state.monitors, name: after}), verdict


def where_nonfinite(job: Job, state: RunState, window: Window) -> str:
    """Name the leaves and the rows of an update that was not finite; its state is unchanged."""
    grads, loss = job.step.gradients(state.train, [to_device(b) for b in window.batches])
    leaves = [name for name, leaf in tree.leaves(grads) if not bool(tree.all_finite(leaf))]
    where = ", ".join(leaves[:3]) + (f" and {len(leaves) - 3} more" if len(leaves) > 3 else "")
    rows = ", ".join(window.row_ids[:8]) + (" ..." if len(window.row_ids) > 8 else "")
    return f"Loss {float(loss.mean())}; gradients: {where or 'finite'}; rows: {rows}."


def roll_back(
    job: Job, state: RunState, ending: Ending, record: Recorder
) -> tuple[RunState, Ending | None]:
    """Go back to the best checkpoint with half the learning rate, and on with the next rows.

    The rows since that checkpoint are not seen again in this epoch, the offending ones included.

    Args:
        job: The pieces of the run.
        state: Where the run went wrong.
        ending: How it ends where it cannot go back, or has done so too often.
        record: Where the states are.
    """
    count = state.monitors["rollback"]["count"] + 1
    record.store.flush()
    found = (
        record.store.latest(job.state)
        if state.best_step is None
        else record.store.load(state.best_step, job.state)
    )
    if found is None or count > MAX_ROLLBACKS:
        why = "there is no checkpoint to go back to" if found is None else "rolled back too often"
        return state, attrs.evolve(ending, message=f"{ending.message} ({why})")
    good = found.state
    opt = with_rate_factor(good.train.opt, 0.5**count)
    after = attrs.evolve(
        state,
        train=attrs.evolve(good.train, opt=opt, skipped=state.train.skipped),
        monitors={
            **good.monitors,
            "divergence": job.monitors["divergence"].init(),
            "nonfinite": job.monitors["nonfinite"].init(),
            "rollback": {"count": count},
        },
        history=good.history,
    )
    message = f"back to update {updates_applied(good)} with the learning rate times {0.5**count}"
    record.tell(events.Verdict, after, kind="rollback", message=message)
    record.store.drop_after(updates_applied(good))
    after = remember(after, event="rollback", reason=ending.reason, rate_factor=0.5**count)
    record.save(after)
    return after, None


def already_over(job: Job, state: RunState) -> Ending | None:
    """Say whether a resumed run had come to its end before."""
    if updates_applied(state) >= job.plan.updates:
        return FINISHED
    patience = job.config.monitor.early_stopping_patience
    if patience and state.monitors["early_stopping"]["without_improvement"] >= patience:
        return Ending("early_stopping", 0, Verdict.EARLY_STOP.value)
    return None


def stopped_early(job: Job, state: RunState, record: Recorder) -> Ending | None:
    """Say whether the early-stopping monitor wants to stop, and tell the sinks if so."""
    ending = already_over(job, state)
    if ending is None or ending is FINISHED:
        return None
    record.tell(events.Verdict, state, kind=ending.reason, message=ending.message)
    return ending
