"""How a run ends: stopped, halted or finished, with everything it has learned on the disk."""

from __future__ import annotations

import time

import attrs

from mlxfn import events, memory
from mlxfn.assemble import Job
from mlxfn.models.export import export_mlx_lm
from mlxfn.models.generate import generate
from mlxfn.recorder import Recorder, updates_applied
from mlxfn.report import write_page
from mlxfn.result import Ending, TrainingResult
from mlxfn.rundir import RunDir
from mlxfn.signals import Interrupted, StopRequest
from mlxfn.state import RunState


def stopped(
    state: RunState, record: Recorder, stop: StopRequest, *, pending: bool = False
) -> Ending:
    """Save the state at the request of a signal.

    Raises:
        RunDirError: It cannot be saved.
    """
    record.save(state, pending=pending)
    record.settle(state, pending=pending)
    return Ending(stop.name, stop.exit_code, f"stopped by {stop.name} and saved")


def answer_samples(
    job: Job, state: RunState, record: Recorder, stop: StopRequest, *, when: str
) -> None:
    """Let the model answer the sample prompts; training draws nothing from it.

    Raises:
        Interrupted: A signal came.
    """
    for prompt in job.config.eval.sample_prompts:
        with stop.giving_up():
            text = generate(
                job.model,
                job.adapter,
                state.train.params,
                prompt,
                max_tokens=job.config.eval.sample_tokens,
            )
        record.tell(events.Sample, state, when=when, prompt=prompt, text=text)


def finish(
    job: Job,
    state: RunState,
    ending: Ending,
    folder: RunDir,
    record: Recorder,
    stop: StopRequest,
    started: float,
) -> TrainingResult:
    """Wait for the last checkpoint, export what was trained, and write the report.

    Raises:
        RunDirError: Something cannot be written.
    """
    record.settle(state)
    final = best = None
    if ending.exit_code == 0:
        try:
            answer_samples(job, state, record, stop, when="after")
        except Interrupted:
            ending = stopped(state, record, stop)
    if ending.exit_code == 0:
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
        total_time_s=time.monotonic() - started,
        tokens_per_s=record.tokens_per_s,
        real_tokens_per_s=record.real_tokens_per_s,
        peak_memory_gb=memory.readings().peak_gb,
        history=state.history,
    )
    report = attrs.asdict(result)
    folder.write_report(report)
    record.tell(events.End, state, reason=ending.reason, exit_code=ending.exit_code, result=report)
    record.settle_log()
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
