"""How time and memory of an update grow, and whether the loop grows with anything at all.

``python benchmarks/scaling.py`` fits ``cost = a * size ** b`` over tokens (rows of one length, more
of them), layers, vocabulary and rank of a small Llama, and prints b: 1 is linear. The second table
is the loop of ``mlxfn train`` around a step that does nothing: Python's own time for an update, for
data sets and runs of different length. Every time is the lowest of some rounds that go through
all sizes in turn: what other processes add is never negative.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import common
import mlx.core as mx
import numpy as np

from mlxfn import blas, configfile, run
from mlxfn.assemble import Job, assemble
from mlxfn.checkpoint.store import CheckpointStore
from mlxfn.data.cursor import Loader
from mlxfn.data.rows import EncodedRows
from mlxfn.recorder import LONGEST_HISTORY, Recorder
from mlxfn.signals import StopRequest
from mlxfn.sinks.jsonl import JsonlSink
from mlxfn.state import RunState, StepMetrics

BASE = {"rows": 4, "layers": 4, "vocab": 2048, "rank": 8}
AXES: dict[str, list[int]] = {
    "tokens": [2, 4, 8, 16],  # rows of LENGTH tokens
    "layers": [2, 4, 8, 16],
    "vocabulary": [2048, 8192, 32768],
    "rank": [4, 16, 64],
}
QUICK: dict[str, list[int]] = {
    "tokens": [1, 2], "layers": [1, 2], "vocabulary": [64, 128], "rank": [2, 4],
}  # fmt: skip
NAMES = {"tokens": "rows", "layers": "layers", "vocabulary": "vocab", "rank": "rank"}


def main() -> None:
    """Measure and print."""
    parser = common.quick(argparse.ArgumentParser(description=__doc__.partition("\n")[0]))
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=300, help="of the loop, for each figure")
    options = parser.parse_args()
    if options.quick:
        options.hidden, options.length, options.rounds, options.updates = 32, 16, 1, 20
    blas.suit_threads(1)
    print(common.machine() + "\n")
    print(growth(options) + "\n")
    print(loop(options))


def growth(options: argparse.Namespace) -> str:
    """Return the table of exponents."""
    base = dict.fromkeys(BASE, 1) | {"vocab": 64} if options.quick else BASE
    rows: list[list[str]] = []
    for axis, sizes in (QUICK if options.quick else AXES).items():
        shapes = [base | {NAMES[axis]: size} for size in sizes]
        made = [prepare(options, shape) for shape in shapes]
        peaks = [trainer.peak_mb(batch) for trainer, batch in made]
        peaks = [trainer.peak_mb(batch) for trainer, batch in made]  # the first one compiles
        work = {
            str(size): lambda trainer=trainer, batch=batch: common.seconds(
                lambda: trainer.update(batch)
            )
            for size, (trainer, batch) in zip(sizes, made, strict=True)
        }
        times = [min(taken) for taken in common.in_turns(work, options.rounds).values()]
        scaled = [size * options.length if axis == "tokens" else size for size in sizes]
        rows.append([
            axis, ", ".join(map(str, scaled)),
            ", ".join(f"{1e3 * value:.1f}" for value in times),
            f"{common.exponent(scaled, times):.2f}",
            ", ".join(f"{value:.1f}" for value in peaks),
            f"{common.exponent(scaled, peaks):.2f}",
        ])  # fmt: skip
    around = ", ".join(f"{key} {value}" for key, value in base.items())
    head = (
        f"Llama of width {options.hidden} in fp32, {around}, rows of {options.length} tokens, "
        "LoRA on q and v; peak without the weights\n\n"
    )
    names = ["over", "sizes", "ms an update", "exponent", "peak MB", "exponent of the peak"]
    return head + common.table(names, rows)


def prepare(options: argparse.Namespace, shape: dict[str, int]) -> tuple[common.Trainer, Any]:
    """Return a trainer of a size and its batch."""
    config = common.shape(options.hidden, shape["layers"], shape["vocab"])
    trainer = common.Trainer(common.llama(config), rank=shape["rank"])
    return trainer, common.batch_of(shape["vocab"], shape["rows"], options.length)


# The loop


def loop(options: argparse.Namespace) -> str:
    """Return the table of the loop's own time."""
    job = idle_job()
    data = [100, 1000] if options.quick else [1_000, 100_000, 1_000_000]
    run_lengths = [0, 100] if options.quick else [100, 10_000, 100_000]
    cases = {f"{rows:,} rows": (rows, 0) for rows in data}
    cases |= {f"{done:,} updates done": (data[0], done) for done in run_lengths}
    lines: list[list[object]] = []
    for name, (rows, done) in cases.items():
        figures = [one_loop(options, job, rows, done) for _ in range(options.rounds)]
        lines.append([name, *(f"{min(column):.2f}" for column in zip(*figures, strict=True))])
    title = (
        "the loop around a step that does nothing, every update logged; a 100 ms step leaves it "
        "2 ms\n\n"
    )
    names = ["", "ms an update", "of the main thread's CPU", "ms pause of a save"]
    return title + common.table(names, lines)


def idle_job() -> Job:
    """Return the job of the embedded model with a step that computes nothing."""
    settings = {
        "model.path": "default", "data.path": "default", "log.logging_steps": 1,
        "checkpoint.save_steps": 0, "eval.eval_steps": 0, "train.num_epochs": 10**9,
    }  # fmt: skip
    job = assemble(configfile.load(None, overrides=settings).config)
    one = mx.array(1.0)
    metrics = StepMetrics(one, one, one, one, mx.array(True))
    mx.eval(metrics)

    def step(state: Any, _: Any) -> Any:
        return attrs.evolve(state, step=state.step + 1), metrics

    return attrs.evolve(job, step=step, valid=None)


def one_loop(
    options: argparse.Namespace, job: Job, rows: int, done: int
) -> tuple[float, float, float]:
    """Run some updates; returns ms of each, of the main thread, and of the pause of a save."""
    loader = Loader(synthetic(rows), 4, vocab_size=job.model.vocab_size, max_seq_length=128)
    state = far(job.state, done)
    with recorder() as record, StopRequest() as stop, loader.windows(0, 0, 1) as windows:
        for _ in range(10):
            state, _ = run.turn(job, state, next(windows), record, stop)
        wall, cpu = time.perf_counter(), time.thread_time()
        for _ in range(options.updates):
            window = next(windows)
            if window.position == 0:  # an epoch that ends would save
                window = window._replace(position=1)
            state, _ = run.turn(job, state, window, record, stop)
        wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
        pause = common.seconds(lambda: record.save(state))
    return 1e3 * wall / options.updates, 1e3 * cpu / options.updates, 1e3 * pause


def synthetic(count: int) -> EncodedRows:
    """Return rows of 8 to 64 random ids."""
    random = np.random.default_rng([count])
    offsets = np.cumsum([0, *random.integers(8, 65, count)], dtype=np.int64)
    ids = random.integers(0, 1000, int(offsets[-1]), np.int32)
    return EncodedRows(ids, ids, offsets)


def far(state: RunState, done: int) -> RunState:
    """Return the state as it is after some updates, each of them logged."""
    history = tuple(
        {"event": "step", "loss": 1.234567, "grad_norm": 1.0, "lr": 1e-4, "tokens": 100, "rows": 4,
         "update": number, "epoch": 0} for number in range(min(done, LONGEST_HISTORY))
    )  # fmt: skip
    train = attrs.evolve(state.train, step=mx.array(done, mx.int32))
    return attrs.evolve(state, train=train, history=history)


@contextmanager
def recorder() -> Iterator[Recorder]:
    """Open a log and a store in a folder that goes away."""
    with tempfile.TemporaryDirectory() as folder:
        log = JsonlSink(Path(folder) / "events.jsonl")
        with CheckpointStore(Path(folder) / "checkpoints", keep_last_n=1) as store:
            yield Recorder(sinks=[log], store=store, meta={}, log=log)
            log.close()


if __name__ == "__main__":
    main()
