"""What the data path costs: how it grows with the rows, and what padding it saves.

``python benchmarks/data.py scale`` builds stores of synthetic rows and opens them again, each in
a process of its own, and prints how build rate, start, memory and restore grow.
``python benchmarks/data.py padding`` prints the padding of lognormal lengths for buckets and packs.
``python benchmarks/data.py tokenize`` tokenizes conversations with one process and with several.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlxfn.assemble import locate
from mlxfn.data.buckets import bucket_for, choose_buckets, pack_buckets
from mlxfn.data.cursor import Loader
from mlxfn.data.encode import EncodeOptions
from mlxfn.data.order import Order, batches_by_bucket
from mlxfn.data.pack import pack
from mlxfn.data.prepare import encode_splits
from mlxfn.data.record import Record
from mlxfn.data.rows import outcomes
from mlxfn.data.store import StoredRows, StoreWriter, open_or_build
from mlxfn.data.tally import Tally

VOCAB, LIMIT, BATCH = 32_000, 512, 8
MB = 1e6 if sys.platform == "darwin" else 1e3  # units of ru_maxrss in a megabyte


def lognormal(count: int, *, median: float, sigma: float, seed: int = 0) -> np.ndarray:
    """Return lengths, int64 [count], from 2 to 512."""
    random = np.random.default_rng([seed])
    return random.lognormal(np.log(median), sigma, count).astype(np.int64).clip(2, LIMIT)


def memory() -> float:
    """Return the peak of the resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB


def resident() -> float:
    """Return the resident memory now, in MB; the peak where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return memory()
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def synthetic(count: int) -> Iterator[Record]:
    """Yield rows of ids, a block of lengths in memory at a time."""
    line = 0
    for start in range(0, count, 10_000):
        size = min(10_000, count - start)
        lengths = lognormal(size, median=20, sigma=0.6, seed=start)
        ids = np.random.default_rng([1, start]).integers(0, VOCAB, int(lengths.sum())).tolist()
        end = 0
        for length in lengths.tolist():
            line, end = line + 1, end + length
            yield Record({"input_ids": ids[end - length : end]}, "synthetic", line)


def build(folder: Path, count: int) -> dict[str, Any]:
    """Build a store and say what it took."""
    import mlx_lm.utils

    tokenizer = mlx_lm.utils.load_tokenizer(Path(locate("default", "model")))
    baseline = memory()

    def write(writer: StoreWriter) -> None:
        tally = Tally("train")
        writer.write(outcomes(synthetic(count), tokenizer, EncodeOptions(), tally))
        writer.finish(lambda lengths: tally.report(lengths, LIMIT), "rows")

    cpu, wall = time.process_time(), time.perf_counter()
    rows = open_or_build(folder, "rows", write)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"rows/s": count / cpu, "tokens/s": rows.token_count / cpu, "s": wall,
            "MB": memory(), "over": memory() - baseline}  # fmt: skip


def start(folder: Path) -> dict[str, Any]:
    """Open a store as a run does, and restore a cursor in the middle of a later epoch."""
    baseline, begin, cpu = resident(), time.perf_counter(), time.process_time()
    loader = Loader(
        StoredRows.open(folder / "rows"), BATCH, vocab_size=VOCAB, max_seq_length=LIMIT, seed=1
    )
    padding = loader.report().padding
    with loader.windows(0, 0, 4) as windows:
        next(windows)
    ready, ready_cpu = time.perf_counter() - begin, time.process_time() - cpu
    restores: list[float] = []
    for epoch in range(1, 30):
        begin = time.process_time()
        loader.batch(epoch, loader.batches_per_epoch * epoch // 31)
        restores.append(time.process_time() - begin)
    begin, some = time.process_time(), min(3000, loader.batches_per_epoch)
    most = 0.0
    for position in range(some):
        loader.batch(40, position)
        most = max(most, resident()) if position % 50 == 0 else most
    per_batch = (time.process_time() - begin) / some
    return {"start_s": ready, "start_cpu_s": ready_cpu, "restore_ms": 1e3 * max(restores), "batch_ms": 1e3 * per_batch,
            "MB": memory(), "over": most - baseline, "padding": padding}  # fmt: skip


def scale(options: argparse.Namespace) -> None:
    """Print how the costs grow."""
    print(f"lengths lognormal, median 20, sigma 0.6; batches of {BATCH}; a process for each figure")
    print("| rows | build rows/s of one core | build s | build MB (over the start) | store GB "
          "| start s (CPU s) | restore CPU ms, worst of 29 | CPU ms a batch "
          "| MB (over the start) |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for count in options.rows:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            made = in_a_process("build", folder, count)
            used = in_a_process("start", folder)
            size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        print(f"| {count:,} | {made['rows/s']:,.0f} | {made['s']:.1f} "
              f"| {made['MB']:.0f} ({made['over']:.0f}) | {size / 1e9:.2f} "
              f"| {used['start_s']:.2f} ({used['start_cpu_s']:.2f}) | {used['restore_ms']:.1f} | {used['batch_ms']:.2f} "
              f"| {used['MB']:.0f} ({used['over']:.0f}) |", flush=True)  # fmt: skip


def in_a_process(what: str, *words: object) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    command = [sys.executable, __file__, what, *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def tokenize(options: argparse.Namespace) -> None:
    """Print what tokenizing conversations takes, by one process and by several."""
    print("| rows | MB of text | processes | wall s | CPU s here | CPU s in the others "
          "| rows/CPU s | tokens/CPU s |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "train.jsonl"
            path.write_text("".join(conversations(rows)), encoding="utf-8")
            for count in (1, options.processes):
                made = in_a_process("encode", path, count)
                used = made["here"] + made["others"]
                print(f"| {rows:,} | {path.stat().st_size / 1e6:.1f} | {count} | {made['s']:.1f} "
                      f"| {made['here']:.1f} | {made['others']:.1f} | {rows / used:,.0f} "
                      f"| {made['tokens'] / used:,.0f} |", flush=True)  # fmt: skip


def conversations(count: int) -> Iterator[str]:
    """Yield conversations of two turns of 5 to 60 words as lines of JSON."""
    random = np.random.default_rng(0)
    words = np.array(
        [
            "the",
            "quick",
            "brown",
            "fox",
            "what",
            "is",
            "two",
            "plus",
            "answer",
            "four",
            "hello",
            "how",
            "are",
            "you",
        ]
    )
    for _ in range(count):
        texts = [" ".join(random.choice(words, int(random.integers(5, 60)))) for _ in range(2)]
        turns = zip(("user", "assistant"), texts, strict=True)
        yield json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}) + "\n"


def encode(path: Path, count: int) -> dict[str, Any]:
    """Tokenize a file into a store and say what it took."""
    import mlx_lm.utils

    tokenizer = mlx_lm.utils.load_tokenizer(Path(locate("default", "model")))
    begin, cpu = time.perf_counter(), time.process_time()
    split = encode_splits(path, tokenizer, cache=path.parent / f"{count}", workers=count)["train"]
    others = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"s": time.perf_counter() - begin, "here": time.process_time() - cpu,
            "others": others.ru_utime + others.ru_stime, "tokens": split.report.tokens}  # fmt: skip


def padding(_: argparse.Namespace) -> None:
    """Print the padding of lognormal lengths."""
    print("| sigma | lengths, median / mean / longest | 8 buckets | best 8 lengths there are "
          "| lengths needed for 12% | packed | mean line |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for sigma in (0.3, 0.4, 0.5, 0.6, 0.8, 1.0):
        lengths = lognormal(20_000, median=60, sigma=sigma)
        shares = {count: share(lengths, count) for count in (8, 10, 12, 14, 16, 20, 24)}
        needed = next((count for count, part in shares.items() if part <= 0.12), None)
        packed, line = lines_of(lengths)
        print(f"| {sigma} | {np.median(lengths):.0f} / {lengths.mean():.0f} / {lengths.max()} "
              f"| {shares[8]:.1%} | {least(lengths):.1%} | {needed} | {packed:.1%} | {line:.0f} |")  # fmt: skip


def lines_of(lengths: np.ndarray) -> tuple[float, float]:
    """Return the padding of an epoch of packs, and the mean line of a position."""
    packs = pack(lengths, LIMIT)
    buckets = pack_buckets(packs.sizes, LIMIT)
    ends = np.searchsorted(np.sort(packs.sizes), buckets, side="right")
    positions = batches_by_bucket(ends, BATCH) * BATCH * (LIMIT // buckets * buckets)
    return 1 - lengths.sum() / positions.sum(), positions.dot(buckets) / positions.sum()


def share(sizes: np.ndarray, count: int) -> float:
    """Return the padding of an epoch of batches with at most ``count`` lengths."""
    buckets = choose_buckets(sizes, LIMIT, count)
    held = bucket_for(sizes, buckets)
    positions = int(np.dot(Order.of(held, BATCH).batch_buckets(), np.unique(held))) * BATCH
    return 1 - int(sizes.sum()) / positions


def least(lengths: np.ndarray, count: int = 8) -> float:
    """Return the least padding with ``count`` lengths of any kind: no batches, no multiples of 8."""
    tops, rows = np.unique(lengths, return_counts=True)
    before = np.concatenate([[0], np.cumsum(rows)])
    cost = (before[None, 1:] - before[:-1, None]) * tops[None, :].astype(float)
    cost[np.tril_indices(len(tops), -1)] = np.inf
    best = cost[0]
    for _ in range(count - 1):
        best = np.minimum(best, (np.append(np.inf, best[:-1])[:, None] + cost).min(axis=0))
    return 1 - lengths.sum() / best[-1]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    modes = parser.add_subparsers(dest="mode", required=True)
    mode = modes.add_parser("scale")
    mode.add_argument("--rows", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    mode.add_argument("--folder", default=None, help="where the stores are built")
    modes.add_parser("padding")
    mode = modes.add_parser("tokenize")
    mode.add_argument("--rows", type=int, nargs="+", default=[5_000, 20_000, 80_000])
    mode.add_argument("--processes", type=int, default=os.cpu_count() or 2)
    mode = modes.add_parser("build")
    mode.add_argument("folder", type=Path)
    mode.add_argument("count", type=int)
    modes.add_parser("start").add_argument("folder", type=Path)
    mode = modes.add_parser("encode")
    mode.add_argument("folder", type=Path)
    mode.add_argument("count", type=int)
    options = parser.parse_args()
    if options.mode == "build":
        print(json.dumps(build(options.folder, options.count)))
    elif options.mode == "start":
        print(json.dumps(start(options.folder)))
    elif options.mode == "encode":
        print(json.dumps(encode(options.folder, options.count)))
    else:
        {"scale": scale, "padding": padding, "tokenize": tokenize}[options.mode](options)


if __name__ == "__main__":
    main()
