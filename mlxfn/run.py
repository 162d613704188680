"""A run is a fold: batches into a state, watched by monitors, told as events and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx

from mlxfn import configfile, events, memory, tree
from mlxfn.assemble import Job, assemble
from mlxfn.checkpoint.store import CheckpointStore, Found
from mlxfn.config import Config
from mlxfn.data.cursor import Window, to_device
from mlxfn.ending import answer_samples, finish, stopped
from mlxfn.errors import CheckpointError
from mlxfn.governor import Governor, governed
from mlxfn.health import already_over, judge_update, observe, stopped_early
from mlxfn.models.execution import Execution
from mlxfn.recorder import Recorder, remember, updates_applied
from mlxfn.result import FINISHED, Ending, TrainingResult
from mlxfn.rundir import Mode, RunDir, open_run
from mlxfn.signals import Interrupted, StopRequest
from mlxfn.sinks.jsonl import JsonlSink
from mlxfn.state import RunState, StepMetrics


def train(
    config: Config, *, mode: Mode = "new", sinks: Sequence[events.Sink] = ()
) -> TrainingResult:
    """Fine-tune a model as a configuration says, from the data to the exported adapters.

    Args:
        config: The run's settings.
        mode: ``"new"`` starts in an empty run directory, ``"resume"`` continues the run in it
            bit for bit, ``"fresh"`` removes the run in it first.
        sinks: Where events go besides the run's own log.

    Returns:
        The report; its exit code is 0 when the run finished or stopped early, 5 when it was
        halted, and 128 plus the signal's number when it was asked to stop.

    Raises:
        ConfigError: A setting, the model or the adapter is wrong.
        DataError: The data cannot be trained on as it is.
        RunDirError: The run directory cannot be used, or a file in it cannot be written.
        CheckpointError: The checkpoint belongs to another configuration, model or data set.
        StoppedError: A signal came before the first update of this process.
    """
    started = time.monotonic()
    with (
        StopRequest(lambda name, last: show_stop(sinks, name, last)) as stop,
        open_run(Path(config.output_dir), mode=mode) as folder,
        governed(config.memory.budget_gb) as governor,
    ):
        try:
            with stop.giving_up():
                job = assemble(config, decided(folder) if mode == "resume" else None)
            governor.expect(job.model.module.parameters(), tree.lower(job.state.train))
            with open_recorder(job, folder, sinks, governor) as record:
                state, pending = (resume if mode == "resume" else begin)(job, folder, record, stop)
                state, ending = fold(job, state, record, stop, pending=pending)
                return finish(job, state, ending, folder, record, stop, started)
        except Interrupted:
            raise stop.error(folder.path) from None


def show_stop(sinks: Sequence[events.Sink], name: str, last: bool) -> None:
    """Tell whoever watches that a signal was heard, and whether it is the last one."""
    for display in events.displays(sinks):
        display.stopping(name, last)


@contextmanager
def open_recorder(
    job: Job, folder: RunDir, sinks: Sequence[events.Sink], governor: Governor
) -> Generator[Recorder]:
    """Open the checkpoint store and the log; both are closed however the run ends."""
    config = job.config
    log = JsonlSink(folder.events) if "jsonl" in config.log.sinks else None
    meta = {"config": configfile.to_plain(config), "fingerprints": job.fingerprints}
    with CheckpointStore(folder.checkpoints, keep_last_n=config.checkpoint.keep_last_n) as store:
        heard = sinks if log is None else [log, *sinks]
        recorder = Recorder(sinks=heard, store=store, meta=meta, log=log, governor=governor)
        try:
            yield recorder
        finally:
            for sink in recorder.sinks:
                sink.close()


def decided(folder: RunDir) -> Execution | None:
    """Return how the run in the folder executes, if it says so."""
    plan = folder.read_plan()
    try:
        return Execution(**plan) if plan else None
    except TypeError:  # written by another version
        return None


def begin(job: Job, folder: RunDir, record: Recorder, stop: StopRequest) -> tuple[RunState, bool]:
    """Write down what is about to run, and how good the model is before it."""
    state = job.state
    plan = attrs.asdict(job.adapter.execution)
    folder.write_start(configfile.to_nested(job.config), job.fingerprints, plan)
    record.tell(events.Start, state, resumed=False, run=job.summary())
    answer_samples(job, state, record, stop, when="before")
    if job.valid is not None and job.config.eval.eval_at_start:
        state, _ = evaluate(job, state, record, stop)
    return state, False


def resume(job: Job, folder: RunDir, record: Recorder, stop: StopRequest) -> tuple[RunState, bool]:
    """Return the newest valid state of the run, and whether an evaluation of it is still due."""
    found = newest(job, record)
    if found is None and record.store.damaged:
        raise CheckpointError(
            "every checkpoint of the run is damaged",
            where=folder.checkpoints,
            got="; ".join(f"{path.name}: {reason}" for path, reason in record.store.damaged),
            remedy="put a copy of one back, or start again with --fresh",
        )
    if found is None:
        folder.truncate_events(-1)
        return begin(job, folder, record, stop)
    meta = found.manifest["meta"]
    check_same_run(meta, record.meta, found.path)
    folder.truncate_events(updates_applied(found.state), size=meta.get("log_bytes"))
    record.tell(events.Start, found.state, resumed=True, run=job.summary())
    for path, reason in record.store.damaged:
        message = f"{path} is damaged and was passed over: {reason}"
        record.tell(events.Verdict, found.state, kind="damaged_checkpoint", message=message)
    return found.state, bool(meta.get("pending"))


def newest(job: Job, record: Recorder) -> Found | None:
    """Return the newest valid checkpoint of the run, if there is one.

    Raises:
        CheckpointError: It holds arrays of other names or shapes; the message shows which
            settings differ, where they do.
    """
    try:
        return record.store.latest(job.state)
    except CheckpointError as error:
        if isinstance(error.where, Path):
            # Other shapes come from other settings, which say it better than 200 arrays do.
            check_same_run(record.store.verify(error.where)["meta"], record.meta, error.where)
        raise


def check_same_run(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    """Check that a checkpoint belongs to this configuration, model and data.

    Raises:
        CheckpointError: It does not; the message shows what differs.
    """
    changed = configfile.differences(old["config"], new["config"]) + [
        f"{name}: another fingerprint"
        for name, value in new["fingerprints"].items()
        if old["fingerprints"].get(name) != value
    ]
    if changed:
        raise CheckpointError(
            "the run cannot go on: it was started with something else\n"
            + "\n".join(f"  - {line}" for line in changed),
            where=path,
            remedy="put the old values back, or start again with --fresh or another --output",
        )


def fold(
    job: Job, state: RunState, record: Recorder, stop: StopRequest, *, pending: bool = False
) -> tuple[RunState, Ending]:
    """Fold the step over the batches that are left, and say why it ended.

    Args:
        job: The pieces of the run.
        state: Where it stands.
        record: Where everything is told and saved.
        stop: Says when to stop.
        pending: Whether the evaluation of this state was given up and has to be done first.
    """
    ending = None
    if pending:
        state, ending = close(job, state, None, record, stop, due=True, save=True)
    elif stop:
        ending = stopped(state, record, stop)
    if ending := ending or already_over(job, state):
        return state, ending
    epochs = None if job.config.train.max_steps else job.config.train.num_epochs
    k = job.config.train.gradient_accumulation_steps
    cursor = (state.epoch, state.position)
    with closing(job.train.windows(*cursor, k, last_epoch=epochs)) as windows:
        for window in windows:
            state, ending = turn(job, state, window, record, stop)
            if ending is not None:
                return state, ending
    return state, FINISHED


def turn(
    job: Job, state: RunState, window: Window, record: Recorder, stop: StopRequest
) -> tuple[RunState, Ending | None]:
    """Apply one update and do all that follows from it; the ending is None while there is none."""
    try:
        with stop.excusing():
            state, metrics, seconds = update(job, state, window)
    except Interrupted:
        return state, stopped(state, record, stop)
    record.count(state, seconds, int(metrics.weight), window.tokens)
    state, ending, due = watch(job, state, window, metrics, seconds, record)
    save = save_is_due(job, state, metrics)
    return close(job, state, ending, record, stop, due=due, save=save)


def close(
    job: Job,
    state: RunState,
    ending: Ending | None,
    record: Recorder,
    stop: StopRequest,
    *,
    due: bool,
    save: bool,
) -> tuple[RunState, Ending | None]:
    """Evaluate where that is due, save where that is, and stop where that is asked for."""
    best = False
    if due:
        try:
            state, ending, best = assess(job, state, record, stop)
        except Interrupted:
            return state, stopped(state, record, stop, pending=True)
    if ending is None and stop:
        return state, stopped(state, record, stop)
    if ending is not None or best or save or record.retry_is_due(state):
        record.save(state, best=best)
    return state, ending


def update(job: Job, state: RunState, window: Window) -> tuple[RunState, StepMetrics, float]:
    """Apply one update and wait for it; returns the new state, what it reports, and seconds."""
    start = time.monotonic()
    train_state, metrics = job.step(state.train, [to_device(b) for b in window.batches])
    mx.eval(tree.lower(train_state), metrics)
    weight = float(metrics.weight)
    counted = weight if bool(metrics.finite) else 0.0
    after = attrs.evolve(
        state,
        train=train_state,
        epoch=window.epoch,
        position=window.position,
        samples=state.samples + window.rows,
        tokens=state.tokens + int(weight),
        epoch_total=state.epoch_total + (float(metrics.loss) * counted if counted else 0.0),
        epoch_weight=state.epoch_weight + counted,
    )
    return after, metrics, time.monotonic() - start


def watch(
    job: Job,
    state: RunState,
    window: Window,
    metrics: StepMetrics,
    seconds: float,
    record: Recorder,
) -> tuple[RunState, Ending | None, bool]:
    """Log and judge an update; returns the state, the ending, and whether more is due.

    What is due is the evaluation, or the end of the epoch: see :func:`assess`.
    """
    number, config = updates_applied(state), job.config
    applied = bool(metrics.finite)
    state, ending = judge_update(job, state, window, metrics, record)
    if updates_applied(state) != number:  # rolled back: the rest is about another update
        return state, ending, ending is None and state.position == 0
    if applied and number % config.log.logging_steps == 0:
        state = log(state, window, metrics, seconds, record)
    every = config.eval.eval_steps
    ends = state.position == 0 or number >= job.plan.updates
    return (
        state,
        ending,
        ending is None and (ends or bool(applied and every and number % every == 0)),
    )


def assess(
    job: Job, state: RunState, record: Recorder, stop: StopRequest
) -> tuple[RunState, Ending | None, bool]:
    """Evaluate, and end the epoch; returns the state, the ending, and whether it is the best.

    Raises:
        Interrupted: A signal came; nothing was told and the state is as it was.
    """
    ending, best = None, False
    if job.valid is not None:
        state, best = evaluate(job, state, record, stop)
        ending = stopped_early(job, state, record)
    if state.position == 0:
        state = end_epoch(state, record)
    return state, ending or already_over(job, state), best


def log(
    state: RunState, window: Window, metrics: StepMetrics, seconds: float, record: Recorder
) -> RunState:
    """Tell the sinks about an update and keep it in the history."""
    told = {
        "loss": float(metrics.loss),
        "grad_norm": float(metrics.grad_norm),
        "lr": float(metrics.learning_rate),
        "tokens": int(metrics.weight),
        "rows": window.rows,
    }
    real = window.tokens
    readings = memory.readings()
    record.tell(
        events.Step,
        state,
        **told,
        finite=bool(metrics.finite),
        step_time_s=seconds,
        tokens_per_s=told["tokens"] / seconds,
        real_tokens=real,
        real_tokens_per_s=real / seconds,
        memory_gb=readings.active_gb,
        peak_memory_gb=readings.peak_gb,
    )
    return remember(state, event="step", **told)


def evaluate(
    job: Job, state: RunState, record: Recorder, stop: StopRequest
) -> tuple[RunState, bool]:
    """Evaluate every validation row once; returns the state and whether it is the best so far.

    Raises:
        Interrupted: A signal came between two batches.
    """
    if job.valid is None:
        return state, False
    start = time.monotonic()
    valid = job.valid
    with stop.excusing():
        batches = (to_device(batch) for batch in stop.until(valid.epoch()))
        result = job.evaluate(state.train.params, batches)
    number, loss = updates_applied(state), result.loss
    # The untrained model sets the mark to beat in the log, but is no checkpoint to come back to.
    best = number > 0 and loss < (math.inf if state.best_loss is None else state.best_loss)
    if number > 0:
        state, _ = observe(job, state, "early_stopping", loss)
    if best:
        state = attrs.evolve(state, best_loss=loss, best_step=number)
    told = {"loss": loss, "perplexity": result.perplexity, "tokens": int(result.weight)}
    record.tell(
        events.Eval,
        state,
        **told,
        rows=len(valid.rows),
        time_s=time.monotonic() - start,
        best=best,
    )
    return remember(state, event="eval", **told), best


def end_epoch(state: RunState, record: Recorder) -> RunState:
    """Tell the mean training loss of the epoch that just ended and start the next sum."""
    losses = [entry["loss"] for entry in state.history[-1:] if entry["event"] == "eval"]
    mean = state.epoch_total / state.epoch_weight if state.epoch_weight else float("nan")
    record.tell(
        events.Epoch,
        state,
        train_loss=mean,
        valid_loss=losses[0] if losses else None,
        time_s=record.lap(),
    )
    state = remember(state, event="epoch", train_loss=mean)
    return attrs.evolve(state, epoch_total=0.0, epoch_weight=0.0)


def save_is_due(job: Job, state: RunState, metrics: StepMetrics) -> bool:
    """Return whether this update is one to save: by its number, or as the last of an epoch."""
    every = job.config.checkpoint.save_steps
    due = bool(every) and updates_applied(state) % every == 0 and bool(metrics.finite)
    return due or state.position == 0
