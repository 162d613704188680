"""Train the same rows with mlxfn and with mlx-lm: time, padding, memory, and the loss reached.

``python benchmarks/against_mlx_lm.py`` runs each contender as a person would, as a command in a
process of its own, in turns, and prints one table. The settings are the same: model folder, rows,
LoRA rank, scale and targets, AdamW with bias correction at a constant rate, no clipping, one
epoch, validation before and after. Both adapters are judged by one evaluation, mlxfn's, because
the losses that the tools print are not defined alike.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from common import Measured, machine, measure, quick, spread, table

from mlxfn.assemble import locate
from mlxfn.data.cursor import Loader, to_device
from mlxfn.data.prepare import encode_splits
from mlxfn.evaluate import make_evaluate
from mlxfn.losses import causal_lm_loss
from mlxfn.models.load import Model, load_model
from mlxfn.models.lora import lora

TARGETS = ["q_proj", "v_proj"]
KEYS = [f"self_attn.{name}" for name in TARGETS]  # the same modules, as mlx-lm names them
MLX_LM = [sys.executable, "-m", "mlx_lm"]


def main() -> None:
    """Measure and print."""
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        write_data(options, room / "data")
        if not options.keep_dtype:
            options.model = str(in_fp32(Path(options.model), room / "model"))
        (room / "tmp").mkdir()  # where MLX keeps kernels when nobody tells it otherwise
        starts = {
            "mlxfn": lambda epochs: mlxfn_command(options, room, epochs),
            "mlx-lm, its own BLAS": lambda epochs: mlx_lm_command(
                options, room, MLX_LM, "plain", epochs
            ),
            "mlx-lm, same BLAS": lambda epochs: mlx_lm_command(
                options, room, with_fast_blas(options), "fast", epochs
            ),
        }
        if options.quick:
            del starts["mlx-lm, its own BLAS"]
        runs: dict[str, list[Measured]] = {name: [] for name in starts}
        longer: dict[str, list[Measured]] = {name: [] for name in starts}
        for turn in range(options.rounds + (not options.quick)):
            for name, start in starts.items():
                # The shorter one last: its adapters are the ones that are judged.
                more = [measure(start(1 + options.more), room)] if options.more else []
                measured = measure(start(1), room)
                if turn or options.quick:  # the first turn fills the caches of compiled kernels
                    runs[name].append(measured)
                    longer[name] += more
        report(options, room, runs, longer)


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = quick(argparse.ArgumentParser(description=__doc__.partition("\n")[0]))
    parser.add_argument("--model", default=locate("default", "model"))
    parser.add_argument("--data", default=locate("default", "data"))
    parser.add_argument("--rows", type=int, default=400, help="training rows")
    parser.add_argument("--valid-rows", type=int, default=80)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--accumulation", type=int, default=1, help="batches in an update")
    parser.add_argument(
        "--more", type=int, default=0,
        help="train this many more epochs in further runs; the difference is training alone",
    )  # fmt: skip
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--scale", type=float, default=2.0, help="alpha / rank")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument(
        "--keep-dtype",
        action="store_true",
        help="leave the model's folder as it is; otherwise both get a copy of it in fp32",
    )
    parser.add_argument("--rounds", type=int, default=3, help="measured turns after the first")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.valid_rows, options.rounds = 8, 4, 1
    # mlx-lm drops the rows that fill no batch; then both would not have seen the same.
    options.rows -= options.rows % (options.batch_size * options.accumulation)
    options.valid_rows -= options.valid_rows % options.batch_size
    return options


def write_data(options: argparse.Namespace, folder: Path) -> None:
    """Copy the first rows of each split."""
    folder.mkdir()
    for split, rows in (("train", options.rows), ("valid", options.valid_rows)):
        with (Path(options.data) / f"{split}.jsonl").open(encoding="utf-8") as source:
            (folder / f"{split}.jsonl").write_text("".join(islice(source, rows)), encoding="utf-8")


def in_fp32(model: Path, folder: Path) -> Path:
    """Copy a model's folder with its weights in fp32, in which both sides then compute.

    The embedded model lies in fp16. mlxfn computes in fp32 on a CPU whatever the folder holds;
    mlx-lm computes in fp16 then, which MLX's CPU backend does without any BLAS.
    """
    import mlx.core as mx  # after mlxfn, which has to come first to put the fast BLAS in place

    shutil.copytree(model, folder)
    for path in folder.glob("*.safetensors"):
        weights = {name: leaf.astype(mx.float32) for name, leaf in mx.load(str(path)).items()}
        mx.eval(weights)  # before the file they are read from is written over
        mx.save_safetensors(str(path), weights, metadata={"format": "mlx"})
    return folder


def mlxfn_command(options: argparse.Namespace, room: Path, epochs: int = 1) -> list[str]:
    """Return the command that trains with mlxfn."""
    settings = {
        "adapter.rank": options.rank,
        "adapter.alpha": options.scale * options.rank,
        "adapter.target_modules": TARGETS,
        "data.batch_size": options.batch_size,
        "data.loss_on": '"completion"',
        "optimizer.learning_rate": options.rate,
        "schedule.name": '"constant"',
        "schedule.warmup_steps": 0,
        "train.num_epochs": epochs,
        "train.gradient_accumulation_steps": options.accumulation,
        "train.max_grad_norm": 0.0,
        "eval.eval_steps": 0,
        "checkpoint.save_steps": 0,
    }
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    paths = ["--model", options.model, "--data", str(room / "data"), "--output", str(room / "run")]
    return [sys.executable, "-m", "mlxfn_cli.main", "train", *paths, "--fresh", *sets]


def mlx_lm_command(
    options: argparse.Namespace, room: Path, start: list[str], name: str, epochs: int = 1
) -> list[str]:
    """Return the command that trains with mlx-lm."""
    iterations = options.rows // options.batch_size
    config: dict[str, Any] = {
        "model": options.model,
        "data": str(room / "data"),
        "train": True,
        "mask_prompt": True,
        "num_layers": -1,
        "batch_size": options.batch_size,
        "iters": epochs * iterations,
        "grad_accumulation_steps": options.accumulation,
        "val_batches": -1,
        "steps_per_eval": iterations,
        "save_every": iterations,
        "learning_rate": options.rate,
        "optimizer": "adamw",
        "optimizer_config": {"adamw": {"bias_correction": True, "weight_decay": 0.01}},
        "lora_parameters": {
            "rank": options.rank, "scale": options.scale, "dropout": 0.0, "keys": KEYS,
        },
        "adapter_path": str(room / name),
    }  # fmt: skip
    path = room / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return [*start, "lora", "--config", str(path)]


def with_fast_blas(options: argparse.Namespace) -> list[str]:
    """Return the start of mlx-lm, unchanged, in a process whose BLAS mlxfn has set up.

    The library and its number of threads are then those that mlxfn itself computes with.
    """
    width = json.loads((Path(options.model) / "config.json").read_text())["hidden_size"]
    code = f"import runpy, mlxfn; mlxfn.blas.suit_threads({width}); "
    return [sys.executable, "-c", code + "runpy.run_module('mlx_lm', run_name='__main__')"]


def report(
    options: argparse.Namespace,
    room: Path,
    runs: dict[str, list[Measured]],
    longer: dict[str, list[Measured]],
) -> None:
    """Print the table."""
    model = load_model(options.model)
    loaders = make_loaders(options, room, model)
    real = loaders["train"].rows.token_count
    positions = {"mlxfn": positions_of(loaders["train"])}
    losses = {"mlxfn": loss_of(model, loaders["valid"], options, room / "run" / "adapters")}
    for name, folder in (("mlx-lm, its own BLAS", "plain"), ("mlx-lm, same BLAS", "fast")):
        if name not in runs:
            continue
        positions[name] = positions_of_mlx_lm(options, room, model)
        losses[name] = loss_of(model, loaders["valid"], options, room / folder)
    dtype = "as it is" if options.keep_dtype else "in fp32"
    print(f"{machine()}\n\nmodel: {options.model}, {dtype}")
    updates = options.rows // options.batch_size // options.accumulation
    print(
        f"rows: {options.rows} of {real} tokens, batch {options.batch_size} × "
        f"{options.accumulation}, {updates} updates, LoRA rank {options.rank} on "
        f"{', '.join(TARGETS)}; median of {options.rounds} turns (lowest to highest)"
    )
    before = loss_of(model, loaders["valid"], options, None)
    print(f"validation loss before training: {before:.4f}\n")
    heads = ["", "wall s", "CPU s", "resident MB", "positions computed", "padding",
             "validation loss"]  # fmt: skip
    rows = [
        [name, *map(spread, zip(*measured, strict=True)), f"{positions[name]:,}",
         f"{1 - real / positions[name]:.0%}", f"{losses[name]:.4f}"]
        for name, measured in runs.items()
    ]  # fmt: skip
    if options.more:
        heads += ["training alone, ms an update: wall", "CPU"]
        for row, name in zip(rows, runs, strict=True):
            for field in ("wall_s", "cpu_s"):
                pairs = zip(longer[name], runs[name], strict=True)
                apart = [getattr(long, field) - getattr(short, field) for long, short in pairs]
                row.append(spread(1e3 * value / updates / options.more for value in apart))
    print(table(heads, rows))


def make_loaders(options: argparse.Namespace, room: Path, model: Model) -> dict[str, Loader]:
    """Return the loaders of both splits as mlxfn's run makes them."""
    splits = encode_splits(str(room / "data"), model.tokenizer)
    return {
        name: Loader(
            split.rows,
            options.batch_size,
            vocab_size=model.vocab_size,
            max_seq_length=2048,
            shuffle=name == "train",
        )
        for name, split in splits.items()
    }


def positions_of(loader: Loader) -> int:
    """Return the positions that an epoch sends through the model."""
    return sum(loader.batch(0, i).tokens.size for i in range(loader.batches_per_epoch))


def positions_of_mlx_lm(options: argparse.Namespace, room: Path, model: Model) -> int:
    """Return the same for mlx-lm, counted on its own batches."""
    from mlx_lm.tuner.datasets import CacheDataset, load_dataset
    from mlx_lm.tuner.trainer import iterate_batches

    settings = argparse.Namespace(data=str(room / "data"), train=True, test=False, mask_prompt=True)
    train, _, _ = load_dataset(settings, model.tokenizer)
    batches = iterate_batches(CacheDataset(train), options.batch_size, 2048)
    return sum(batch[:, :-1].size for batch, _ in batches)


def loss_of(
    model: Model, loader: Loader, options: argparse.Namespace, folder: Path | None
) -> float:
    """Return the validation loss of an adapter folder, or of the base without one."""
    alpha = options.scale * options.rank
    adapter = lora(model, rank=options.rank, alpha=alpha, target_modules=TARGETS, init_from=folder)
    batches = (to_device(loader.batch(0, i)) for i in range(loader.batches_per_epoch))
    return make_evaluate(causal_lm_loss(adapter.apply))(adapter.params, batches).loss


if __name__ == "__main__":
    main()
