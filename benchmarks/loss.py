"""Cross-entropy in chunks, from hidden states, against full logits: time and peak memory.

``python benchmarks/loss.py`` takes the loss and its gradient with respect to the hidden states of
some positions, under a frozen head, over vocabularies of different size: from full logits as
mlx-lm's trainer takes it, from full logits with mlxfn's loss, in chunks, and in chunks under a memory
limit. MLX prepares some operations ahead of the one that computes, and several chunks are among them
until a limit holds it back: ``mx.set_memory_limit`` at three chunks of logits. The losses of a row are
compared. On a GPU give it the sizes of a large model, for example
``--width 4096 --positions 4096 --dtype bfloat16``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import common
import mlx.core as mx
from mlx import nn

from mlxfn import blas
from mlxfn.losses import chunked_cross_entropy, cross_entropy

LIMITED = "chunks, limited"
Loss = Callable[[mx.array, mx.array, mx.array], mx.array]


def main() -> None:
    """Measure and print."""
    parser = common.quick(argparse.ArgumentParser(description=__doc__.partition("\n")[0]))
    parser.add_argument("--width", type=int, default=256, help="of the hidden states")
    parser.add_argument("--positions", type=int, default=2048)
    parser.add_argument("--chunk", type=int, default=128, help="positions with logits at a time")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--vocab", type=int, nargs="+", default=[2048, 8192, 32768])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.quick:
        options.width, options.positions, options.chunk, options.rounds = 16, 32, 8, 1
        options.vocab = [64, 128]
    blas.suit_threads(options.width)
    print(common.machine() + "\n")
    print(
        f"{options.positions} positions of width {options.width} in {options.dtype}, chunks of "
        f"{options.chunk}; lowest of {options.rounds} rounds; peak without the head\n"
    )
    names = list(contenders(options.chunk))
    heads = ["vocabulary", *(f"{n}: ms" for n in names), *(f"{n}: peak MB" for n in names),
             "limited / full, time", "peak", "largest difference of the loss"]  # fmt: skip
    print(common.table(heads, [measure(options, vocab) for vocab in options.vocab]))


def contenders(chunk: int) -> dict[str, Loss]:
    """Return the mean loss of hidden [N, D], head [V, D] and labels [N], each in its own way."""

    def as_mlx_lm(hidden: mx.array, head: mx.array, labels: mx.array) -> mx.array:
        losses = nn.losses.cross_entropy(hidden @ head.T, labels)
        return losses.astype(mx.float32).sum() / labels.size

    def full(hidden: mx.array, head: mx.array, labels: mx.array) -> mx.array:
        return cross_entropy(hidden @ head.T, labels).mean()

    def chunks(hidden: mx.array, head: mx.array, labels: mx.array) -> mx.array:
        return chunked_cross_entropy(
            hidden[None], labels[None], lambda rows: rows @ head.T, chunk_size=chunk
        ).mean()

    return {"mlx-lm": as_mlx_lm, "full": full, "chunks": chunks, LIMITED: chunks}


def measure(options: argparse.Namespace, vocab: int) -> list[object]:
    """Return the row of one vocabulary."""
    keys = mx.random.split(mx.random.key(vocab), 3)
    dtype = getattr(mx, options.dtype)
    hidden = mx.random.normal((options.positions, options.width), key=keys[0]).astype(dtype)
    head = (mx.random.normal((vocab, options.width), key=keys[1]) / 16).astype(dtype)
    labels = mx.random.randint(0, vocab, (options.positions,), key=keys[2])
    mx.eval(hidden, head, labels)
    losses: dict[str, float] = {}
    peaks: dict[str, float] = {}

    def contender(name: str, loss: Loss) -> Callable[[], float]:
        both = mx.compile(mx.value_and_grad(loss))

        def act() -> float:
            mx.clear_cache()
            mx.reset_peak_memory()
            before = mx.get_active_memory()
            chunks = 3 * options.chunk * vocab * 4  # fp32, whatever the head computes in
            usual = mx.set_memory_limit(before + chunks) if name == LIMITED else None
            value, gradient = both(hidden, head, labels)
            taken = common.seconds(lambda: mx.eval(value, gradient))
            if usual is not None:
                mx.set_memory_limit(usual)
            peaks[name] = (mx.get_peak_memory() - before) / 1e6
            losses[name] = float(value)
            return taken

        return act

    work = {name: contender(name, loss) for name, loss in contenders(options.chunk).items()}
    times = {name: min(taken) for name, taken in common.in_turns(work, options.rounds).items()}
    apart = max(losses.values()) - min(losses.values())
    return [
        f"{vocab:,}",
        *(f"{1e3 * taken:.1f}" for taken in times.values()),
        *(f"{peaks[name]:.1f}" for name in times),
        f"{times[LIMITED] / times['full']:.2f}",
        f"{peaks[LIMITED] / peaks['full']:.2f}",
        f"{apart:.1e}",
    ]


if __name__ == "__main__":
    main()
