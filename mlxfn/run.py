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
from mlxfn.errors import CheckpointError
from mlxfn.health import already_over, judge_update, observe, stopped_early
from mlxfn.models.export import export_mlx_lm
from mlxfn.models.generate import generate
from mlxfn.recorder import Recorder, remember, updates_applied
from mlxfn.report import write_page
from mlxfn.result import FINISHED, Ending, TrainingResult
from mlxfn.rundir import Mode, RunDir, open_run
from mlxfn.signals import StopRequest
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
    """
    started = time.monotonic()
    with StopRequest() as stop, open_run(Path(config.output_dir), mode=mode) as folder:
        job = assemble(config)
        with open_recorder(job, folder, sinks) as record:
            state = resume(job, folder, record) if mode == "resume" else begin(job, folder, record)
            state, ending = fold(job, state, record, stop)
            return finish(job, state, ending, folder, record, time.monotonic() - started)


@contextmanager
def open_recorder(job: Job, folder: RunDir, sinks: Sequence[events.Sink]) -> Generator[Recorder]:
    """Open the checkpoint store and the log; both are closed however the run ends."""
    config = job.config
    log = [JsonlSink(folder.events)] if "jsonl" in config.log.sinks else []
    meta = {"config": configfile.to_plain(config), "fingerprints": job.fingerprints}
    with CheckpointStore(folder.checkpoints, keep_last_n=config.checkpoint.keep_last_n) as store:
        recorder = Recorder(sinks=[*log, *sinks], store=store, meta=meta)
        try:
            yield recorder
        finally:
            for sink in recorder.sinks:
                sink.close()


def begin(job: Job, folder: RunDir, record: Recorder) -> RunState:
    """Write down what is about to run, and how good the model is before it."""
    state = job.state
    folder.write_start(configfile.to_nested(job.config), job.fingerprints)
    record.tell(events.Start, state, resumed=False, run=job.summary())
    answer_samples(job, state, record, when="before")
    if job.valid is not None and job.config.eval.eval_at_start:
        state, _ = evaluate(job, state, record)
    return state


def resume(job: Job, folder: RunDir, record: Recorder) -> RunState:
    """Return the newest valid state of the run, after checking that it belongs to this one."""
    found = newest(job, record)
    if found is None:
        folder.truncate_events(-1)
        return begin(job, folder, record)
    check_same_run(found.manifest["meta"], record.meta, found.path)
    folder.truncate_events(updates_applied(found.state))
    record.tell(events.Start, found.state, resumed=True, run=job.summary())
    for path, reason in record.store.damaged:
        message = f"{path} is damaged and was passed over: {reason}"
        record.tell(events.Verdict, found.state, kind="damaged_checkpoint", message=message)
    return found.state


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


def fold(job: Job, state: RunState, record: Recorder, stop: StopRequest) -> tuple[RunState, Ending]:
    """Fold the step over the batches that are left, and say why it ended."""
    if stop:
        return state, stopped(state, record, stop)
    if over := already_over(job, state):
        return state, over
    epochs = None if job.config.train.max_steps else job.config.train.num_epochs
    k = job.config.train.gradient_accumulation_steps
    cursor = (state.epoch, state.position)
    with closing(job.train.windows(*cursor, k, last_epoch=epochs)) as windows:
        for window in windows:
            state, metrics, seconds = update(job, state, window)
            record.count(seconds, float(metrics.weight))
            state, ending, best = watch(job, state, window, metrics, seconds, record)
            if ending is None and stop:
                return state, stopped(state, record, stop)
            if ending is not None or best or save_is_due(job, state, metrics):
                record.save(state, best=best)
            if ending is not None:
                return state, ending
    return state, FINISHED


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
    """Log, evaluate and judge an update; returns the state, the ending, and whether it is best."""
    number, config = updates_applied(state), job.config
    applied = bool(metrics.finite)
    state, ending = judge_update(job, state, window, metrics, record)
    if updates_applied(state) != number:
        return state, ending, False  # rolled back: what follows is about another update
    if applied and number % config.log.logging_steps == 0:
        state = log(state, window, metrics, seconds, record)
    epoch_ended = state.position == 0
    last = number >= job.plan.updates
    eval_due = applied and config.eval.eval_steps and number % config.eval.eval_steps == 0
    best = False
    if job.valid is not None and (eval_due or epoch_ended or last):
        state, best = evaluate(job, state, record)
        ending = ending or stopped_early(job, state, record)
    if epoch_ended:
        state = end_epoch(state, record)
    return state, ending or (FINISHED if last else None), best


def log(
    state: RunState, window: Window, metrics: StepMetrics, seconds: float, record: Recorder
) -> RunState:
    """Tell the sinks about an update and keep it in the history."""
    told = {
        "loss": float(metrics.loss),
        "grad_norm": float(metrics.grad_norm),
        "learning_rate": float(metrics.learning_rate),
        "tokens": int(metrics.weight),
        "rows": window.rows,
    }
    readings = memory.readings()
    record.tell(
        events.Step,
        state,
        **told,
        finite=bool(metrics.finite),
        step_time_s=seconds,
        tokens_per_s=told["tokens"] / seconds,
        memory_gb=readings.active_gb,
        peak_memory_gb=readings.peak_gb,
    )
    return remember(state, event="step", **told)


def evaluate(job: Job, state: RunState, record: Recorder) -> tuple[RunState, bool]:
    """Evaluate every validation row once; returns the state and whether it is the best so far."""
    if job.valid is None:
        return state, False
    start = time.monotonic()
    valid = job.valid
    batches = (to_device(batch) for batch in valid.epoch())
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


def stopped(state: RunState, record: Recorder, stop: StopRequest) -> Ending:
    """Save the state at the request of a signal."""
    record.save(state)
    return Ending(stop.name, stop.exit_code, f"stopped by {stop.name} and saved")


def answer_samples(job: Job, state: RunState, record: Recorder, *, when: str) -> None:
    """Let the model answer the sample prompts; training draws nothing from it."""
    for prompt in job.config.eval.sample_prompts:
        text = generate(
            job.model,
            job.adapter,
            state.train.params,
            prompt,
            max_tokens=job.config.eval.sample_tokens,
        )
        record.tell(events.Sample, state, when=when, prompt=prompt, text=text)


def finish(
    job: Job, state: RunState, ending: Ending, folder: RunDir, record: Recorder, seconds: float
) -> TrainingResult:
    """Wait for the last checkpoint, export what was trained, and write the report."""
    record.store.flush()
    final = best = None
    if ending.exit_code == 0:
        answer_samples(job, state, record, when="after")
        final, best = export(job, state, folder, record)
    result = TrainingResult(
        reason=ending.reason,
        exit_code=ending.exit_code,
        message=ending.message,
        epochs=state.epoch,
        steps=updates_applied(state),
        samples=state.samples,
        tokens=state.tokens,
        skipped=int(state.train.skipped),
        dropped_rows=sum(report.dropped for report in job.reports.values()),
        first_valid_loss=valid_losses(state)[0] if valid_losses(state) else None,
        last_valid_loss=valid_losses(state)[-1] if valid_losses(state) else None,
        best_loss=state.best_loss,
        best_step=state.best_step,
        run_dir=str(folder.path),
        final_path=final,
        best_path=best,
        total_time_s=seconds,
        tokens_per_s=record.tokens_per_s,
        peak_memory_gb=memory.readings().peak_gb,
        history=state.history,
    )
    report = attrs.asdict(result)
    folder.write_report(report)
    record.tell(events.End, state, reason=ending.reason, exit_code=ending.exit_code, result=report)
    write_page(folder.path)
    return result


def valid_losses(state: RunState) -> list[float]:
    """Return the validation losses of a run in order."""
    return [entry["loss"] for entry in state.history if entry["event"] == "eval"]


def export(job: Job, state: RunState, folder: RunDir, record: Recorder) -> tuple[str, str | None]:
    """Write the final and the best adapters in mlx-lm's layout; returns where they are."""
    export_mlx_lm(job.adapter, state.train.params, folder.adapters)
    if state.best_step is None:
        return str(folder.adapters), None
    current = state.best_step == updates_applied(state)
    best = state if current else record.store.load(state.best_step, job.state).state
    export_mlx_lm(job.adapter, best.train.params, folder.best)
    return str(folder.adapters), str(folder.best)
