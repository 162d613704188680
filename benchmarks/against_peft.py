"""Train the same rows with mlxfn and with PyTorch + PEFT: time, memory, and every loss on the way.

``python benchmarks/against_peft.py --python PATH`` needs the interpreter of an environment with
torch, transformers and peft. Both sides get the same model folder in fp32, the same batches, the same
initial adapters, AdamW at a constant rate, and the same number of threads, and run in turns in
processes of their own. The losses of all updates are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import against_mlx_lm as base
import common
import mlx.core as mx
import numpy as np

from mlxfn import blas, tree
from mlxfn.assemble import locate
from mlxfn.data.cursor import Loader
from mlxfn.data.prepare import encode_splits
from mlxfn.losses import causal_lm_loss
from mlxfn.models.load import load_model
from mlxfn.models.lora import lora
from mlxfn.state import Batch
from mlxfn.step import init_state, make_step
from mlxfn.transforms import adamw

TARGETS = ["q_proj", "v_proj"]


def main() -> None:
    """Measure and print."""
    parser = common.quick(argparse.ArgumentParser(description=__doc__.partition("\n")[0]))
    parser.add_argument("--python", help="interpreter with torch, transformers and peft; "
                        "without one only mlxfn runs")  # fmt: skip
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.quick:
        options.updates, options.rounds = 3, 1
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        prepare(options, room)
        threads = str(options.threads)
        sides = {"mlxfn": [sys.executable, __file__, "side", folder]}
        if options.python:
            side = str(Path(__file__).parent / "peft_side.py")
            sides["PyTorch + PEFT"] = [options.python, side, folder]
        runs: dict[str, list[tuple[common.Measured, dict[str, Any]]]] = {n: [] for n in sides}
        for turn in range(options.rounds + (not options.quick)):
            for name, command in sides.items():
                taken = common.measure(
                    command, room, OMP_NUM_THREADS=threads, OPENBLAS_NUM_THREADS=threads
                )
                if turn or options.quick:
                    runs[name].append((taken, common.answer(room)))
    print(common.machine() + "\n")
    print(report(options, runs))


def prepare(options: argparse.Namespace, room: Path) -> None:
    """Write the model, the batches, the initial adapter and the settings."""
    base.in_fp32(Path(locate("default", "model")), room / "model")
    model = load_model(room / "model")
    rows = encode_splits(locate("default", "data"), model.tokenizer)["train"].rows
    loader = Loader(rows, options.batch_size, vocab_size=model.vocab_size, max_seq_length=512)
    batches = {
        f"{name}{number}": part
        for number in range(options.updates)
        for name, part in loader.batch(0, number)._asdict().items()
    }
    np.savez(room / "batches.npz", **batches)
    adapter = lora(model, rank=options.rank, alpha=2.0 * options.rank, target_modules=TARGETS)
    start = {name: np.array(leaf) for name, leaf in tree.flatten(adapter.params).items()}
    np.savez(room / "start.npz", **start)
    settings = {"rank": options.rank, "scale": 2.0, "targets": TARGETS, "rate": 1e-3,
                "updates": options.updates, "threads": options.threads}  # fmt: skip
    (room / "settings.json").write_text(json.dumps(settings))


def side(room: Path) -> dict[str, Any]:
    """Train with mlxfn on the batches in a folder and say what it took."""
    begin = time.perf_counter()
    settings = json.loads((room / "settings.json").read_text())
    rank, scale = settings["rank"], settings["scale"]
    model = load_model(room / "model")
    blas.suit_threads(1 if settings["threads"] == 1 else blas.SMALL_WIDTH)
    adapter = lora(model, rank=rank, alpha=scale * rank, target_modules=settings["targets"])
    tx = adamw(settings["rate"], weight_decay=0.01)
    step = make_step(causal_lm_loss(adapter.apply), tx)
    state = init_state(adapter.params, tx)
    batches = np.load(room / "batches.npz")
    losses, times, cpu_times = [], [], []
    ready = time.perf_counter() - begin
    for number in range(settings["updates"]):
        start, cpu_start = time.perf_counter(), time.process_time()
        names = [f"{name}{number}" for name in Batch._fields]
        state, metrics = step(state, Batch(*(mx.array(batches[name]) for name in names)))
        mx.eval(tree.lower(state), metrics)
        losses.append(float(metrics.loss))
        times.append(time.perf_counter() - start)
        cpu_times.append(time.process_time() - cpu_start)
    return {"losses": losses, "times": times, "cpu_times": cpu_times, "ready_s": ready}


def report(
    options: argparse.Namespace, runs: dict[str, list[tuple[common.Measured, dict[str, Any]]]]
) -> str:
    """Return the table."""
    truth = runs["mlxfn"][0][1]["losses"]
    rows = []
    for name, all_ in runs.items():
        updates, cpu = (
            [1e3 * statistics.median(said[kind]) for _, said in all_]
            for kind in ("times", "cpu_times")
        )
        apart = max(
            abs(a / b - 1) for _, said in all_ for a, b in zip(said["losses"], truth, strict=True)
        )
        rows.append([
            name, common.spread(updates, 2), common.spread(cpu, 2),
            common.spread(taken.wall_s for taken, _ in all_),
            common.spread(taken.cpu_s for taken, _ in all_),
            f"{statistics.median(said['ready_s'] for _, said in all_):.1f}",
            f"{max(taken.resident_mb for taken, _ in all_):.0f}",
            f"{all_[0][1]['losses'][0]:.6f}", f"{all_[0][1]['losses'][-1]:.6f}", f"{apart:.1e}",
        ])  # fmt: skip
    heads = ["", "ms an update", "CPU ms an update", "wall s of the process", "CPU s", "ready after s", "resident MB",
             "first loss", "last loss", "largest relative difference"]  # fmt: skip
    title = (
        f"the embedded Llama in fp32, {options.updates} updates of {options.batch_size} rows, LoRA "
        f"rank {options.rank} on {', '.join(TARGETS)}, {options.threads} thread(s) a side; median "
        f"(lowest to highest) of {options.rounds} turns\n\n"
    )
    return title + common.table(heads, rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["side"]:
        print(json.dumps(side(Path(sys.argv[2]))))
    else:
        main()
