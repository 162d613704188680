"""One update of a 7 B model on a GPU: mlxfn's ways to run it, beside mlx-lm's trainer step.

``python benchmarks/step.py`` takes minutes of a GPU with 64 GB and more; ``--quick`` runs tiny
shapes anywhere. Each row is a process of its own, in turns. The weights are random, the rows full:
nothing is loaded, padded or evaluated. Beside what was measured stands what ``mlxfn plan`` predicts.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "7b": {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768},
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128},
}  # fmt: skip
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROWS: list[dict[str, Any]] = [
    {"system": "mlx-lm"},
    {"system": "mlxfn"},
    {"system": "mlx-lm", "targets": "all-linear"},
    {"system": "mlxfn", "targets": "all-linear"},
    {"system": "mlx-lm", "bits": 4},
    {"system": "mlxfn", "bits": 4},
    {"system": "mlx-lm", "bits": 4, "remat": "all"},
    {"system": "mlxfn", "bits": 4, "budget": 8.0},
    {"system": "mlxfn", "bits": 4, "budget": 14.0},
    {"system": "mlxfn", "bits": 4, "targets": "all-linear", "lean": "all", "remat": "all"},
    {"system": "mlxfn", "bits": 8, "remat": "mlp"},
    {"system": "mlxfn", "lean": "all", "remat": "all"},
    {"system": "mlxfn", "lean": "all", "batch_size": 4, "length": 1024},
    {"system": "mlxfn", "shape": "1b"},
    {"system": "mlxfn", "shape": "1b", "remat": "all"},
    {"system": "mlxfn", "shape": "1b", "targets": "all-linear", "batch_size": 4},
]
QUICK: list[dict[str, Any]] = [
    {"system": "mlx-lm", "bits": 4},
    {"system": "mlxfn", "bits": 4, "budget": 8.0},
]
HEADS = (
    "model", "batch", "system", "bits", "targets", "recompute", "lean", "ms", "tokens/s", "peak GB",
    "predicted GB", "predicted ms", "loss after",
)  # fmt: skip


def main() -> None:
    """Run every row in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1, help="turns of every row")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run(options.child)))
        return
    given = {"shape": options.shape, "batch_size": options.batch_size, "length": options.length}
    rows = ROWS
    if options.quick:
        given, rows = {"shape": "tiny", "batch_size": 2, "length": 16}, QUICK
    print("one update, LoRA rank 16\n")
    print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}")
    # A folder of their own for kernels, so that neither side finds what the other compiled.
    with tempfile.TemporaryDirectory() as room:
        for row in rows * options.rounds:
            spec = {**given, "updates": 2 if options.quick else options.updates, **row}
            done = subprocess.run(
                [sys.executable, __file__, "--child", json.dumps(spec)],
                capture_output=True,
                text=True,
                check=False,
                env={**os.environ, "TMPDIR": room},
            )
            if done.returncode:
                sys.exit(f"{row} failed:\n{done.stderr[-2000:]}")
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"| {' | '.join(cells(spec, found))} |", flush=True)


def cells(spec: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return a row of the table."""
    tokens = spec["batch_size"] * spec["length"]
    budget = f" in {spec['budget']:g} GB" if "budget" in spec else ""
    predicted = [f"{found[name]:.{digits}f}" if name in found else ""
                 for name, digits in (("predicted_gb", 2), ("predicted_ms", 0))]  # fmt: skip
    return [
        spec["shape"],
        f"{spec['batch_size']} x {spec['length']}",
        spec["system"] + budget,
        str(spec.get("bits", 16)),
        spec.get("targets", "q, v"),
        str(found.get("remat", spec.get("remat", "none"))),
        str(found.get("lean", "")),
        f"{found['seconds'] * 1e3:.1f}",
        f"{tokens / found['seconds']:,.0f}",
        f"{found['peak_gb']:.2f}",
        *predicted,
        f"{found['loss']:.4f}",
    ]


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Return what one row measures; only a process that runs mlxfn imports it."""
    if spec["system"] == "mlxfn":
        # First: it decides in which order, and how far ahead of the device, MLX evaluates.
        import mlxfn  # noqa: F401
    module, config = random_llama(SHAPES[spec["shape"]], spec.get("bits"))
    make = ours if spec["system"] == "mlxfn" else theirs
    updates, said = make(module, config, spec)
    return {**said, **measured(updates, spec["updates"])}


def random_llama(sizes: dict[str, int], bits: int | None) -> tuple[Any, dict[str, Any]]:
    """Return a Llama in bf16 with random weights, quantized layer by layer where asked for."""
    import mlx.core as mx
    from mlx import nn
    from mlx.utils import tree_map
    from mlx_lm.models import llama

    config = {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": False, **sizes}
    module = llama.Model(llama.ModelArgs.from_dict(config))

    def draw(leaf: mx.array) -> mx.array:
        if leaf.ndim == 1:
            return mx.ones(leaf.shape, mx.bfloat16)
        return mx.random.normal(leaf.shape, dtype=mx.bfloat16) * 0.02

    mx.random.seed(0)
    module.update(tree_map(draw, module.parameters()))
    if bits:
        for layer in module.layers:
            nn.quantize(layer, 64, bits)
            mx.eval(layer.parameters())
        nn.quantize(module, 64, bits)
    mx.eval(module.parameters())
    return module.freeze(), config


def ids(spec: dict[str, Any], vocab: int) -> Any:
    """Return random rows, one token longer than the length."""
    import mlx.core as mx

    return mx.random.randint(
        0, vocab, (spec["batch_size"], spec["length"] + 1), key=mx.random.key(1)
    )


def ours(
    module: Any, sizes: dict[str, Any], spec: dict[str, Any]
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Return mlxfn's update, run as the plan says, and what the plan predicts."""
    import attrs
    import mlx.core as mx

    import mlxfn as mf
    from mlxfn import governor, planning
    from mlxfn.assemble import make_adapter, make_losses
    from mlxfn.models.model import Model

    base, budget = mf.Config(), spec.get("budget")
    config = attrs.evolve(
        base,
        adapter=attrs.evolve(
            base.adapter, target_modules=spec.get("targets", ["q_proj", "v_proj"])
        ),
        data=attrs.evolve(base.data, batch_size=spec["batch_size"], max_seq_length=spec["length"]),
        train=attrs.evolve(
            base.train,
            gradient_accumulation_steps=1,
            remat=spec.get("remat", "auto" if budget else "none"),
            lean=spec.get("lean", "auto" if budget else "mlp"),
        ),
        memory=attrs.evolve(base.memory, budget_gb=budget or "auto"),
    )
    model = Model(module, config=sizes, vocab_size=sizes["vocab_size"])
    choice, limit = planning.choose(config, model)
    if budget:
        own = governor.Limits(mx.set_memory_limit(0), 1 << 62, 0)
        mx.set_memory_limit(governor.limits_for(budget, before=own).memory)
    adapter = make_adapter(config, model, choice.execution)
    tx = mf.chain(mf.clip_by_global_norm(1.0), mf.adamw(mf.constant(1e-4)))
    step = mf.make_step(make_losses(config, adapter).train, tx)
    tokens = ids(spec, model.vocab_size)
    batch = mf.Batch(tokens[:, :-1], tokens[:, 1:], mx.ones_like(tokens[:, 1:]))
    states = [mf.init_state(adapter.params, tx)]

    def update() -> mx.array:
        states[0], metrics = step(states[0], [batch])
        mx.eval(states[0].params, states[0].opt, metrics)
        return metrics.loss

    return update, {
        "remat": choice.execution.remat,
        "lean": choice.execution.lean,
        "predicted_gb": choice.peak(limit if budget else float("inf")) / 1e9,
        "predicted_ms": choice.seconds * 1e3,
    }


def theirs(
    module: Any, _: dict[str, Any], spec: dict[str, Any]
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """Return the update of mlx-lm's trainer: its loss, its adapters, its optimizer, compiled."""
    import mlx.core as mx
    from mlx import nn, optimizers
    from mlx_lm.tuner.trainer import default_loss, grad_checkpoint
    from mlx_lm.tuner.utils import linear_to_lora_layers

    names = LINEAR if spec.get("targets") == "all-linear" else ("q_proj", "v_proj")
    inside = {name: "mlp" if name in LINEAR[4:] else "self_attn" for name in names}
    keys = [f"{inside[name]}.{name}" for name in names]
    settings = {"rank": 16, "scale": 2.0, "dropout": 0.0, "keys": keys}
    linear_to_lora_layers(module, len(module.layers), settings)
    if spec.get("remat") == "all":
        grad_checkpoint(module.layers[0])
    module.train()
    optimizer = optimizers.AdamW(1e-4, bias_correction=True)  # as mlxfn's, so that losses compare
    tokens = ids(spec, module.args.vocab_size)
    lengths = mx.array([[0, spec["length"]]] * spec["batch_size"])
    gradient = nn.value_and_grad(module, default_loss)
    state = [module.state, optimizer.state, mx.random.state]

    def step() -> mx.array:
        (loss, _), grads = gradient(module, tokens, lengths)
        optimizer.update(module, grads)
        return loss

    compiled = mx.compile(step, inputs=state, outputs=state)

    def update() -> mx.array:
        loss = compiled()
        mx.eval(state, loss)
        return loss

    return update, {}


def measured(update: Callable[[], Any], count: int) -> dict[str, float]:
    """Return the median time of an update, the peak and the last loss; two more go before."""
    import mlx.core as mx

    for _ in range(2):
        update()
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    times: list[float] = []
    loss = mx.array(0.0)
    for _ in range(count):
        start = time.perf_counter()
        loss = update()
        times.append(time.perf_counter() - start)
    return {
        "seconds": sorted(times)[len(times) // 2],
        "peak_gb": mx.get_peak_memory() / 1e9,
        "loss": float(loss),
    }


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()
