"""Supervised tokens a second on rows of lognormal lengths: mlxfn, packed or not, and mlx-lm.

``python benchmarks/data_training.py`` writes rows whose lengths are lognormal (median 60 tokens,
at most 512) and trains on them with each contender as a command, for few epochs and for more; the
difference is training alone, without the start. Updates are of as many rows as a pack holds on
average, so that an epoch has about as many updates packed or not, and losses compare. CPU seconds
are the figure to trust on a machine that others use. The adapters are judged by one evaluation,
mlxfn's; the rate falls along a cosine, and the loss is the mean over several seeds: at a constant
rate the last few updates alone move it by 3%.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import against_mlx_lm as base  # first: it loads mlxfn, and the fast BLAS, before mlx
import numpy as np
import yaml
from common import Measured, machine, measure, quick

from mlxfn.assemble import locate
from mlxfn.data.cursor import Loader
from mlxfn.data.encode import EncodeOptions
from mlxfn.data.prepare import Split, encode_splits
from mlxfn.models.load import load_model
from mlxfn.state import IGNORED

LIMIT = 512
FOLDERS = {
    "mlx-lm, same BLAS": "mlx-lm",
    "mlxfn, packed": "packed/adapters",
    "mlxfn, buckets, 3 batches an update": "mixed/adapters",
    "mlxfn, buckets": "buckets/adapters",
}
"""The contenders, and where their adapters are written."""


def main() -> None:
    """Measure and print."""
    parser = quick(argparse.ArgumentParser(description=__doc__.partition("\n")[0]))
    parser.add_argument("--rows", type=int, default=480)
    parser.add_argument("--valid-rows", type=int, default=64)
    parser.add_argument("--sigma", type=float, default=0.8)
    parser.add_argument("--batch-size", type=int, default=6, help="rows, as many as a pack holds")
    parser.add_argument("--epochs", type=int, nargs=2, default=[1, 6])
    parser.add_argument("--seeds", type=int, default=4, help="runs that the loss is the mean of")
    parser.add_argument("--rate", type=float, default=2e-3)
    options = parser.parse_args()
    options.rank, options.scale, options.accumulation = 8, 2.0, 1
    if options.quick:
        options.rows, options.valid_rows, options.epochs, options.seeds = 12, 6, [1, 2], 2
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        (room / "tmp").mkdir()
        options.model = str(base.in_fp32(Path(locate("default", "model")), room / "model"))
        model = load_model(options.model)
        write(options, room / "data", model.tokenizer)
        splits = encode_splits(room / "data", model.tokenizer, EncodeOptions(max_seq_length=LIMIT))
        print(f"{machine()}\n\n{about(options, splits['train'])}", flush=True)
        valid = Loader(splits["valid"].rows, 8, vocab_size=model.vocab_size, max_seq_length=LIMIT)
        print("| | marginal CPU s | marginal wall s | supervised tokens/CPU s | /wall s "
              "| padding | validation loss |\n|---|---|---|---|---|---|---|")  # fmt: skip
        for name, adapters in FOLDERS.items():
            if not options.quick:  # the first run compiles
                train(options, room, name, options.epochs[0])
            few, many = (train(options, room, name, epochs) for epochs in options.epochs)
            losses = [base.loss_of(model, valid, options, room / "out" / adapters)]
            for seed in range(1, options.seeds):
                train(options, room, name, options.epochs[1], seed)
                losses.append(base.loss_of(model, valid, options, room / "out" / adapters))
            cpu, wall = many.cpu_s - few.cpu_s, many.wall_s - few.wall_s
            epochs = options.epochs[1] - options.epochs[0]
            tokens = splits["train"].report.label_tokens * epochs
            share = padding(options, room, model, splits["train"], name)
            print(f"| {name} | {cpu:.1f} | {wall:.1f} | {tokens / cpu:,.0f} | {tokens / wall:,.0f} "
                  f"| {share:.1%} | {sum(losses) / len(losses):.4f} "
                  f"({min(losses):.4f} to {max(losses):.4f}) |", flush=True)  # fmt: skip


def write(options: argparse.Namespace, folder: Path, tokenizer: Any) -> None:
    """Write prompts and completions, each of as many sentences as make its length."""
    folder.mkdir()
    random = np.random.default_rng([3])
    for split, count in (("train", options.rows), ("valid", options.valid_rows)):
        lines = (Path(locate("default", "data")) / f"{split}.jsonl").read_text().splitlines()
        pool = [[turn["content"] for turn in json.loads(line)["messages"]] for line in lines]
        lengths = random.lognormal(np.log(60), options.sigma, count).clip(20, LIMIT - 16)
        rows = [json.dumps(row(pool, random, int(n), tokenizer)) for n in lengths]
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")


def row(pool: list[list[str]], random: Any, length: int, tokenizer: Any) -> dict[str, str]:
    """Join sentences until they have about a number of tokens."""
    prompt, completion = pool[random.integers(len(pool))]
    while True:
        more, answer = pool[random.integers(len(pool))]
        longer = f"{prompt} {more.partition(': ')[2]}", f"{completion} {answer}"
        if sum(len(tokenizer.encode(part)) for part in longer) > length:
            return {"prompt": prompt, "completion": completion}
        prompt, completion = longer


def about(options: argparse.Namespace, train: Split) -> str:
    """Return what is trained on."""
    low, half, most, _, top = train.report.lengths
    return (
        f"{train.report.kept} rows of {low} to {top} positions, median {half}, 90% {most}; "
        f"{train.report.label_tokens:,} supervised; batches of {options.batch_size} rows, packed: "
        f"1 pack of {LIMIT} positions; {options.epochs[1]} epochs, less {options.epochs[0]}\n"
    )


def train(
    options: argparse.Namespace, room: Path, name: str, epochs: int, seed: int = 0
) -> Measured:
    """Train for some epochs, at a rate that falls to a tenth along a cosine."""
    if name.startswith("mlx-lm"):
        command = base.mlx_lm_command(options, room, base.with_fast_blas(options), "mlx-lm")
        path = room / "mlx-lm.yaml"
        config = yaml.safe_load(path.read_text())
        iterations = epochs * (options.rows // options.batch_size)
        config |= {"iters": iterations, "steps_per_eval": iterations, "save_every": iterations}
        config |= {"max_seq_length": LIMIT, "adapter_path": str(room / "out" / "mlx-lm")}
        falling = [options.rate, iterations, options.rate / 10]
        config |= {"seed": seed, "lr_schedule": {"name": "cosine_decay", "arguments": falling}}
        path.write_text(yaml.safe_dump(config))
    else:
        command = base.mlxfn_command(options, room)
        settings: dict[str, Any] = {"train.num_epochs": epochs, "data.max_seq_length": LIMIT}
        settings |= {"train.seed": seed, "schedule.name": '"cosine"'}
        if name.endswith("packed"):
            settings |= {"data.packing": "true", "data.batch_size": 1}
        if name.endswith("update"):
            settings |= {"data.batch_size": options.batch_size // 3}
            settings |= {"train.gradient_accumulation_steps": 3}
        command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        command[command.index("--output") + 1] = str((room / "out" / FOLDERS[name]).parent)
    return measure(command, room)


def padding(options: argparse.Namespace, room: Path, model: Any, train: Split, name: str) -> float:
    """Return the share of computed positions that is padding."""
    if name.startswith("mlx-lm"):
        real = train.report.tokens
        return 1 - real / base.positions_of_mlx_lm(options, room, model)
    packed = name.endswith("packed")
    size = 1 if packed else options.batch_size // (3 if name.endswith("update") else 1)
    loader = Loader(train.rows, size, packing=packed,
                    vocab_size=model.vocab_size, max_seq_length=LIMIT)  # fmt: skip
    positions = sum(batch.tokens.size for batch in loader.epoch())
    supervised = sum(int((batch.labels != IGNORED).sum()) for batch in loader.epoch())
    if supervised != train.report.label_tokens:
        sys.exit("an epoch lost tokens")
    return 1 - train.report.tokens / positions


if __name__ == "__main__":
    main()
