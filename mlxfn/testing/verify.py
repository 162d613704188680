"""The laws on a whole configuration: its model, its adapter, its data and its step."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import mlx.core as mx
import numpy as np

from mlxfn.assemble import Job, make_adapter, make_transform, paths_of
from mlxfn.config import Config
from mlxfn.data.collate import collate
from mlxfn.data.cursor import to_device
from mlxfn.data.encode import EncodedRow
from mlxfn.data.formats import Example, parse_rows
from mlxfn.data.readers import readers_of
from mlxfn.data.rows import Rows
from mlxfn.device import device_kind
from mlxfn.errors import ConfigError
from mlxfn.losses import causal_lm_loss, chunked_causal_lm_loss
from mlxfn.models.adapter import Adapter
from mlxfn.models.clone import clone_module
from mlxfn.models.execution import PLAIN, Execution
from mlxfn.models.export import export_mlx_lm
from mlxfn.models.head import split_head
from mlxfn.models.model import Model, compute_dtype
from mlxfn.state import IGNORED, Batch
from mlxfn.testing import laws
from mlxfn.testing.law import Fact, LawError, close, fact
from mlxfn.testing.masks import RowMask, mask_is_right
from mlxfn.testing.models import snapshot
from mlxfn.testing.pieces import Pieces, verify_pieces, waken
from mlxfn.tree import Params, flatten

DROPOUT = 0.1
"""What an adapter without dropout is checked with, so that recompute has something to redraw."""
TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""How far two orders of the same sums may be apart, by the dtype of the model."""
ROWS = 10
"""Rows whose masks are looked at."""
LARGEST_LOGITS = 2**26
"""Logits of the batch that everything is tried on (256 MB in fp32)."""


def verify(job: Job) -> Iterator[Fact]:
    """Run the laws on the pieces of a run; nothing is trained and nothing is written.

    Args:
        job: A run as :func:`mlxfn.assemble.assemble` builds it, best with ``model.dtype`` float32:
            in half precision rounding hides all but gross errors.

    Yields:
        One fact for each law. All of them hold for a run that can be trusted.
    """
    adapter, base = job.adapter, flatten(job.model.module.parameters())
    before = _of_modules(job)
    params = waken(adapter.params)
    batch = sample(job.train.rows, vocab_size=job.model.vocab_size)
    near = TOLERANCES[compute_dtype(job.model.module)]
    yield from verify_pieces(_pieces(job, base, batch, near))
    yield _chunked(adapter, params, batch, near)
    yield _packed(job, params, near)
    yield verify_masks(job.config, job.model.tokenizer, job.train.rows)
    yield _exported(adapter, params, batch, near)
    untouched = laws.base_is_untouched
    detail = f"{len(before)} arrays of the base and of its clone, after all of the above"
    yield fact("the model is untouched", untouched, before, _of_modules(job), detail=detail)


def _of_modules(job: Job) -> dict[str, tuple[int, int]]:
    """Return which arrays sit in the modules now, and their checksums."""
    modules = {"base": job.model.module.parameters(), "clone": job.adapter.module.parameters()}
    return snapshot(flatten(modules))


def sample(rows: Rows, *, vocab_size: int, count: int = 4, longest: int = 128) -> Batch:
    """Return a few rows of unequal lengths, cut so that they are quick to compute.

    Args:
        rows: Where they come from.
        vocab_size: Classes of the model, which the size of the logits goes by.
        count: How many.
        longest: Most positions; of a longer row those before its last target are taken.
    """
    order = np.argsort(rows.lengths, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, count).astype(int))]
    longest = max(8, min(longest, LARGEST_LOGITS // (count * vocab_size)))
    cut = [_window(rows.row(int(i)), longest) for i in chosen]
    length = max(len(row.tokens) for row in cut)
    return to_device(collate([[row] for row in cut], len(cut), length))


def _window(row: EncodedRow, longest: int) -> EncodedRow:
    end = int(np.flatnonzero(row.labels != IGNORED).max()) + 1
    part = slice(max(0, end - longest), end)
    return EncodedRow(row.tokens[part], row.labels[part])


def _pieces(job: Job, base: Mapping[str, mx.array], batch: Batch, near: float) -> Pieces:
    """Return the run's own loss and transform, its adapter as lean as can be, and with dropout."""
    config = job.config
    full = config.adapter.kind == "full"
    drops = attrs.evolve(config.adapter, dropout=config.adapter.dropout or DROPOUT)
    dropping = config if full else attrs.evolve(config, adapter=drops)
    ways = PLAIN, Execution(remat="all", lean="all")
    plain, again = (make_adapter(dropping, job.model, way) for way in ways)
    smoothing = config.train.label_smoothing
    exact = compute_dtype(job.model.module) == "float32"
    on_cpu = device_kind() == "cpu"
    return Pieces(
        loss_fn=causal_lm_loss(again.apply, label_smoothing=smoothing),
        params=job.adapter.params,
        batch=batch,
        tx=make_transform(config, job.plan),
        plain_loss=causal_lm_loss(plain.apply, label_smoothing=smoothing),
        base={} if full else base,
        drops=not full,
        tolerance=near,
        bitwise=on_cpu and exact,
        smooth=exact,
    )


def _chunked(adapter: Adapter, params: Params, batch: Batch, near: float) -> Fact:
    name = "the chunked loss is the full one"
    split = split_head(adapter)
    if split is None:
        why = "not used: this model does not come apart into a body and a head"
        return Fact(name, holds=True, figure=None, detail=why)
    if any(path.startswith(("lm_head", "model.embed_tokens")) for path in flatten(params)):
        why = "not used: the head is trained"
        return Fact(name, holds=True, figure=None, detail=why)
    chunked = chunked_causal_lm_loss(split.hidden_apply, split.head, chunk_size=37)
    full = causal_lm_loss(adapter.apply)
    law = laws.chunked_equals_full
    detail = "value and gradient, 37 positions at a time"
    return fact(name, law, chunked, full, params, batch, tolerance=near, detail=detail)


def _packed(job: Job, params: Params, near: float) -> Fact:
    name = "packed documents are alone"
    config = attrs.evolve(job.config, data=attrs.evolve(job.config.data, packing=True))
    alone = attrs.evolve(job.config, data=attrs.evolve(job.config.data, packing=False))
    try:
        packed = make_adapter(config, job.model)
    except ConfigError as refused:
        return Fact(name, holds=True, figure=None, detail=f"not used: {refused.what}")
    texts = [row.tokens[:32].tolist() for row in _spread(job.train.rows, 3)]
    plain = make_adapter(alone, job.model).apply
    detail = f"{len(texts)} documents in a row of {sum(map(len, texts))}, against each by itself"
    law = laws.packed_equals_separate
    return fact(name, law, packed.apply, params, texts, alone=plain, tolerance=near, detail=detail)


def _spread(rows: Rows, count: int) -> list[EncodedRow]:
    return [rows.row(i) for i in _indices(len(rows), count)]


def _indices(length: int, count: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, length - 1, count)})


def verify_masks(config: Config, tokenizer: Any, rows: Rows, *, count: int = ROWS) -> Fact:
    """Check the masks of a few rows against what stands in their files.

    Args:
        config: Where the data is and how it was encoded.
        tokenizer: The tokenizer it was encoded with.
        rows: The encoded training rows; each has to know its place.
        count: How many rows, evenly spread.

    Returns:
        The fact; its figure is the number of rows that are wrong.
    """
    name = "the masks learn the answers"
    wanted = {rows.where(i): i for i in _indices(len(rows), count)}
    checked: list[RowMask] = []
    for example in _examples(config, wanted):
        try:
            mask = mask_is_right(
                example,
                rows.row(wanted[example.where]),
                tokenizer,
                loss_on=config.data.loss_on,
                max_seq_length=config.data.max_seq_length,
            )
        except LawError as broken:
            return Fact(name, holds=False, figure=1.0, detail=str(broken))
        checked.append(mask)
    parts = ", ".join(f"{mask.prompt_tokens}+{mask.target_tokens}" for mask in checked)
    found = f"{len(checked)} rows decoded; tokens read + learned: {parts}"
    return Fact(name, holds=len(checked) == len(wanted), figure=0.0, detail=found)


def _examples(config: Config, wanted: Mapping[str, int]) -> Iterator[Example]:
    data = config.data
    left = set(wanted)
    for path in paths_of(config):
        records = readers_of(path, streaming=data.streaming)["train"].records()
        for example in parse_rows(records, fmt=data.format, columns=data.columns):
            if example.where in left:
                left.discard(example.where)
                yield example
            if not left:
                return


def _exported(adapter: Adapter, params: Params, batch: Batch, near: float) -> Fact:
    name = "mlx-lm runs the export with the same logits"
    row = Batch(*(field[-1:] for field in batch))  # the longest, which has no padding
    with tempfile.TemporaryDirectory(prefix="mlxfn-verify-") as scratch:
        folder = export_mlx_lm(adapter, params, Path(scratch) / "adapter")
        try:
            theirs, base = _as_mlx_lm_runs_it(adapter, folder, row)
        except ValueError as problem:
            return Fact(name, holds=False, figure=None, detail=str(problem))
    ours = adapter.apply(params, row, None)
    detail = f"its own loader and layers, the base {base}"
    return fact(name, close, "the logits are others", theirs, ours, near, detail=detail)


def _as_mlx_lm_runs_it(adapter: Adapter, folder: Path, batch: Batch) -> tuple[mx.array, str]:
    """Return the logits that mlx-lm gives with an adapter folder, and where the base came from."""
    from mlx_lm.tuner.utils import load_adapters
    from mlx_lm.utils import load_model  # imported here: it takes seconds

    model = adapter.model
    if model.folder is None or _quantized_on_load(model):
        module, base = clone_module(model.module), "in memory"
    else:
        module, base = load_model(model.folder, lazy=True)[0], "from its files"
        module.set_dtype(getattr(mx, compute_dtype(model.module)))
    module = load_adapters(module, str(folder))
    module.eval()
    logits = module(batch.tokens)
    mx.eval(logits)
    return logits, base


def _quantized_on_load(model: Model) -> bool:
    """Return whether the files hold other weights than the ones in memory."""
    if model.folder is None:
        return False
    written = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    return ("quantization" in model.config) != ("quantization" in written)
