"""How long the loop waits for a checkpoint, and how long one takes behind its back.

``python benchmarks/checkpoint.py`` saves the state of LoRA adapters of three sizes, up to rank 16 on
q and v of a model of 7 B parameters: adapters, both moments of Adam, and a history as long as it can
be. In the same turns it does what mlx-lm does at that point: ``mx.save_safetensors`` of the adapters
alone, with the loop waiting, unsynchronised. The pause is set against an update of a step: of the
embedded model on this machine, or of ``--step-ms``, whichever belongs to the row.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import common
import mlx.core as mx

from mlxfn import tree
from mlxfn.checkpoint.store import CheckpointStore
from mlxfn.recorder import LONGEST_HISTORY
from mlxfn.state import RunState
from mlxfn.step import init_state
from mlxfn.transforms import adamw

ENTRY = {"event": "step", "loss": 1.23456789, "grad_norm": 0.98765, "lr": 1e-4, "tokens": 2048,
         "rows": 4, "update": 100_000, "epoch": 3}  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = common.quick(argparse.ArgumentParser(description=__doc__.partition("\n")[0]))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--step-ms", type=float, default=230.0,
        help="an update of the largest model; the default is the fastest known of 2 x 2048 tokens "
        "at 7 B parameters on an H200",
    )  # fmt: skip
    options = parser.parse_args()
    cases = {
        "1 M, rank 8": sizes(layers=5, width=128, values=64, rank=8),
        "0.5 B, rank 16": sizes(layers=24, width=896, values=128, rank=16),
        "7 B, rank 16": sizes(layers=32, width=4096, values=4096, rank=16),
    }
    if options.quick:
        options.rounds = 1
        cases = {"tiny": sizes(layers=1, width=16, values=16, rank=2)}
    print(common.machine() + "\n")
    heads = ["model", "values", "file MB", "pause ms", "of it the history ms", "behind the back ms",
             "mlx-lm's save ms", "an update ms", "pause / update"]  # fmt: skip
    rows = [measure(options, name, arrays) for name, arrays in cases.items()]
    print(f"median (lowest to highest) of {options.rounds} rounds\n\n{common.table(heads, rows)}")


def sizes(*, layers: int, width: int, values: int, rank: int) -> dict[str, tuple[int, int]]:
    """Return the shapes of LoRA on q and v."""
    return {
        f"model.layers.{layer}.self_attn.{name}.lora_{side}": shape
        for layer in range(layers)
        for name, out in (("q_proj", width), ("v_proj", values))
        for side, shape in (("a", (width, rank)), ("b", (rank, out)))
    }


def measure(
    options: argparse.Namespace, name: str, shapes: dict[str, tuple[int, int]]
) -> list[object]:
    """Return the row of one size."""
    keys = mx.random.split(mx.random.key(0), len(shapes))
    params: Any = tree.unflatten(
        {
            path: mx.random.normal(shape, key=own)
            for (path, shape), own in zip(shapes.items(), keys, strict=True)
        }
    )
    train = init_state(params, adamw(1e-4))
    mx.eval(tree.lower(train))
    history = (ENTRY,) * (10 if options.quick else LONGEST_HISTORY)
    behind: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        with CheckpointStore(room / "checkpoints", keep_last_n=1) as store:

            def save(state: RunState) -> float:
                taken = common.seconds(lambda: store.save(state))
                behind.append(common.seconds(store.flush))
                return taken

            def as_mlx_lm() -> float:
                flat = tree.flatten(train.params)
                path = str(room / "adapters.safetensors")
                return common.seconds(lambda: mx.save_safetensors(path, flat))

            times = common.in_turns(
                {
                    "without history": lambda: save(RunState(train)),
                    "whole": lambda: save(RunState(train, history=history)),
                    "mlx-lm": as_mlx_lm,
                },
                options.rounds,
            )
            (info,) = store.list()
    middle = {key: sorted(taken)[len(taken) // 2] for key, taken in times.items()}
    update = options.step_ms if name.startswith("7 B") else own_update(name)
    return [
        name,
        f"{sum(a * b for a, b in shapes.values()):,}",
        f"{info.bytes / 1e6:.1f}",
        common.spread(1e3 * value for value in times["whole"]),
        f"{1e3 * (middle['whole'] - middle['without history']):.1f}",
        f"{1e3 * sorted(behind)[len(behind) // 2]:.0f}",
        f"{1e3 * middle['mlx-lm']:.1f}",
        f"{update:.1f}" if update else "",
        f"{1e3 * middle['whole'] / update:.2f}" if update else "",
    ]


def own_update(name: str) -> float | None:
    """Return the ms of an update of the embedded model's size on this machine, 4 × 64 tokens."""
    if not name.startswith("1 M"):
        return None
    config = common.shape(128, 5, 1536, intermediate_size=320, num_attention_heads=4,
                          num_key_value_heads=2)  # fmt: skip
    trainer, batch = common.Trainer(common.llama(config)), common.batch_of(1536, 4, 64)
    return 1e3 * min(common.seconds(lambda: trainer.update(batch)) for _ in range(10))


if __name__ == "__main__":
    main()
