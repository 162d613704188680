"""From the start of the process to the first update: what takes how long, with warm caches.

``python benchmarks/startup.py`` writes a Llama of ``--millions`` parameters in fp16 (and takes the
embedded one besides), then starts in turns, each in a process of its own: ``mlxfn train`` up to its
first update, mlx-lm's ``lora`` up to its first update, and the mere load of the weights. Kernels,
tokens and the page cache are warm: the first turn fills them and is not counted. Rows are short, so
that the update itself is not what is measured.
"""

from __future__ import annotations

import time

BEGIN = time.time()  # before anything is imported

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

marks: dict[str, float] = {}


def mark(name: str) -> None:
    """Note the seconds since the process was asked for."""
    marks[name] = time.time() - float(os.environ["BENCHMARK_START"])


def ours(model: str, data: str, room: Path) -> None:
    """Train with mlxfn until the first update is done."""
    import mlxfn
    from mlxfn import configfile, events
    from mlxfn.models import load

    mark("import mlxfn")
    load._mlx_lm()  # noqa: SLF001 - the import that every run makes, for its own line
    mark("import mlx-lm and transformers")
    plain, read = load.load_model, "load the model"

    def load_model(*args: Any, **kwargs: Any) -> Any:
        found = plain(*args, **kwargs)
        mark(read)
        return found

    import mlxfn.assemble

    mlxfn.assemble.load_model = load_model

    class First:
        def write(self, event: events.Event) -> None:
            names = {events.Start: "tokens and the rest", events.Step: "first update"}
            if (name := names.get(type(event))) and name not in marks:
                mark(name)

        def close(self) -> None:
            pass

    settings = {
        "model.path": model, "data.path": data, "output_dir": str(room / "run"),
        "data.cache": str(room / "tokens"), "data.batch_size": 4, "train.max_steps": 1,
        "log.logging_steps": 1, "train.gradient_accumulation_steps": 1,
    }  # fmt: skip
    mlxfn.train(configfile.load(None, overrides=settings).config, mode="fresh", sinks=[First()])


def theirs(model: str, data: str, room: Path) -> None:
    """Train with mlx-lm until the first update is done, on the BLAS that mlxfn finds."""
    import mlxfn.blas
    import mlxfn.jit

    mlxfn.blas.setup()
    from mlx_lm import lora

    mark("import mlx-lm and transformers")

    class First:
        def on_train_loss_report(self, _: dict[str, Any]) -> None:
            mark("first update")

        def on_val_loss_report(self, _: dict[str, Any]) -> None:
            pass

    keys = ["self_attn.q_proj", "self_attn.v_proj"]
    settings = lora.CONFIG_DEFAULTS | {
        "model": model, "data": data, "train": True, "iters": 1, "batch_size": 4,
        "num_layers": -1, "steps_per_report": 1, "adapter_path": str(room / "mlx-lm"),
        "lora_parameters": {"rank": 16, "scale": 2.0, "dropout": 0.0, "keys": keys},
    }  # fmt: skip
    lora.get_reporting_callbacks = lambda *_, **__: First()
    lora.run(argparse.Namespace(**settings))


def weights(model: str, _: str, __: Path) -> None:
    """Load the weights, in the dtype they are computed in, and nothing else."""
    import mlxfn  # noqa: F401 - the import stays out of the figure
    import mlx.core as mx  # isort: skip

    start = time.time()
    cpu = mx.default_device().type == mx.DeviceType.cpu
    for path in sorted(Path(model).glob("*.safetensors")):
        leaves = mx.load(str(path))
        mx.eval([leaf.astype(mx.float32) if cpu else leaf for leaf in leaves.values()])
    marks["first update"] = time.time() - start


ROLES: dict[str, Callable[[str, str, Path], None]] = {
    "mlxfn": ours, "mlx-lm": theirs, "weights": weights,
}  # fmt: skip
PARTS = ["import mlxfn", "import mlx-lm and transformers", "load the model",
         "tokens and the rest", "first update"]  # fmt: skip


def main() -> None:
    """Measure and print."""
    import common

    parser = common.quick(argparse.ArgumentParser(description=__doc__.partition("\n")[0]))
    parser.add_argument("--millions", type=float, default=60, help="parameters of the model")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.quick:
        options.millions, options.rows, options.rounds = 0, 8, 1
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        data = write_rows(room / "data", options.rows)
        models = {"embedded, 1 M": Path(embedded("model"))}
        if options.millions:
            name = f"Llama, {options.millions:g} M"
            models[name] = write_model(room / "model", options.millions)
        print(common.machine() + "\n")
        print(f"{options.rows} rows; median of {options.rounds} turns, seconds\n")
        rows = [line for name, path in models.items()
                for line in measure(options, name, str(path), str(data), room)]  # fmt: skip
        print(common.table(["", *PARTS, "start to first update", "CPU s", "/ weights"], rows))


def measure(
    options: argparse.Namespace, name: str, model: str, data: str, room: Path
) -> list[list[str]]:
    """Return the rows of one model: the parts, the whole, and how it compares."""
    import common

    found: dict[str, list[dict[str, float]]] = {role: [] for role in ROLES}
    for turn in range(options.rounds + 1):
        for role in ROLES:
            words = [sys.executable, __file__, "child", role, model, data, str(room)]
            taken = common.measure(words, room, BENCHMARK_START=str(time.time()))
            if turn or options.quick:
                found[role].append({**common.answer(room), "CPU s": taken.cpu_s})
    middle = {
        role: {part: statistics.median(one.get(part, 0.0) for one in all_) for part in all_[0]}
        for role, all_ in found.items()
    }
    alone = middle["weights"]["first update"]
    lines = []
    for role, own in middle.items():
        before, cells = 0.0, []
        for part in PARTS:
            known = role != "weights" and part in own
            cells.append(f"{own[part] - before:.2f}" if known else "")
            before = own.get(part, before)
        whole = own["first update"]
        cells += [f"{whole:.2f}", f"{own['CPU s']:.2f}", f"{whole / alone:.1f}"]
        lines.append([f"{name}: {role}", *cells])
    return lines


def embedded(kind: str) -> str:
    """Return the folder of the model or the data that ship with mlxfn."""
    from mlxfn.assemble import locate

    return locate("default", kind)


def write_rows(folder: Path, count: int) -> Path:
    """Write short rows."""
    folder.mkdir()
    lines = (json.dumps({"prompt": f"Repeat: {i}", "completion": str(i)}) for i in range(count))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_model(folder: Path, millions: float) -> Path:
    """Write a Llama of about this size in fp16, with the embedded model's tokenizer."""
    import shutil

    import common
    import mlx.core as mx

    from mlxfn import tree
    from mlxfn.models.safetensors import write_safetensors

    width, layers = 1024, 1
    config = common.shape(width, layers, 1536, torch_dtype="float16")
    one = common.llama(config).parameter_count() - 1536 * width
    config["num_hidden_layers"] = max(1, round((1e6 * millions - 1536 * width) / one))
    model = common.llama(config, mx.float16)
    shutil.copytree(embedded("model"), folder)
    own = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(own | config), encoding="utf-8")
    flat = dict(tree.flatten(model.module.parameters()).items())
    write_safetensors(folder / "model.safetensors", flat)
    return folder


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        _, _, chosen, its_model, its_data, its_room = sys.argv
        mark("interpreter")
        ROLES[chosen](its_model, its_data, Path(its_room))
        print(json.dumps(marks))
    else:
        main()
