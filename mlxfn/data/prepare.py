"""From a path, or several, to the encoded splits: reads, encodes, keeps, mixes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import attrs

from mlxfn.cachedir import private_cache
from mlxfn.data.encode import EncodeOptions
from mlxfn.data.keys import store_key, tokenizer_fingerprint
from mlxfn.data.mix import exact_weights
from mlxfn.data.mixed_rows import MixedRows, joint_report
from mlxfn.data.progress import counted
from mlxfn.data.readers import Reader, readers_of
from mlxfn.data.records import Source
from mlxfn.data.report import DataReport
from mlxfn.data.rows import Rows, encode_split
from mlxfn.data.store import StoreWriter, open_or_build, remove_unused
from mlxfn.data.tally import Tally
from mlxfn.data.workers import MOST, cores, encoded
from mlxfn.errors import DataError
from mlxfn.files import expand

Sources = Source | Mapping[str, float]
"""One source, or the weights of several."""

WORTH_KEEPING = 256 << 10
"""Bytes of a split from which on ``cache = "auto"`` keeps its tokens: less takes a fifth of a second."""

WORTH_WORKERS = 16 << 20
"""Bytes of a split from which on several processes tokenize it sooner than one."""


class Split(NamedTuple):
    """The rows of a split and what became of those that were read."""

    rows: Rows
    report: DataReport


def encode_splits(
    source: Sources,
    tokenizer: Any,
    options: EncodeOptions | None = None,
    *,
    valid_fraction: float = 0.0,
    splits: Sequence[str] = ("train", "valid", "test"),
    cache: str | Path = "off",
    streaming: bool = False,
    workers: int | Literal["auto"] = 1,
) -> dict[str, Split]:
    """Read and encode the splits of a data set, or of several that are mixed.

    Args:
        source: Folder, file, or list of files, see ``find_splits``; or a saved data set, or the
            name of one on the hub. Several of them with their weights, ``{"a": 0.7, "b": 0.3}``,
            are mixed: train by weight, the other splits whole.
        tokenizer: A Hugging Face tokenizer, or mlx-lm's wrapper of one.
        options: How rows become tokens.
        valid_fraction: Share of train that becomes valid, by a hash of each row's content: adding
            rows moves no other row, and equal rows stay on one side.
        splits: The splits wanted; those that are not there are left out.
        cache: Folder in which tokenized rows are kept and found again; ``"auto"`` is one under
            the user's cache, for splits of more than 256 KB; ``"off"`` keeps nothing.
        streaming: Read a data set of the hub row by row, without copying it to this machine.
        workers: Processes that tokenize what is kept; ``"auto"`` is one for each core, where
            there is so much to tokenize that their start pays.

    Returns:
        The splits by name.

    Raises:
        DataError: A file or row is wrong, a split has no usable row, ``valid_fraction`` is set
            although there is a validation file, or a source of a mix has no train or no weight.
        ConfigError: ``options.columns`` names a column that no format has.
    """
    options = options or EncodeOptions()
    if isinstance(source, Mapping):
        weights = exact_weights(source)
        sources = {name: readers_of(name, valid_fraction, streaming=streaming) for name in source}
        _check_all_train(sources)
    else:
        weights = None
        sources = {"": readers_of(source, valid_fraction, streaming=streaming)}
    encoded: dict[str, Split] = {}
    for name in splits:
        found = {source: readers[name] for source, readers in sources.items() if name in readers}
        parts = {
            source: _encoded(name, reader, tokenizer, options, cache, workers)
            for source, reader in found.items()
        }
        if weights is not None and name == "train":
            encoded[name] = _joined(name, parts, MixedRows.of(_rows_of(parts), weights))
        elif len(parts) > 1:
            encoded[name] = _joined(name, parts, MixedRows.of(_rows_of(parts)))
        elif parts:
            encoded[name] = next(iter(parts.values()))
    return encoded


def _check_all_train(sources: Mapping[str, Mapping[str, Reader]]) -> None:
    if not sources:
        raise DataError("a mix has no source", where="data.mix", expected='{"a.jsonl" = 0.7}')
    for name, readers in sources.items():
        if "train" not in readers:
            raise DataError(
                "a source of the mix has no training data",
                where=name,
                got=", ".join(readers),
                expected="train.jsonl, or one file",
            )


def _rows_of(parts: Mapping[str, Split]) -> dict[str, Rows]:
    return {source: split.rows for source, split in parts.items()}


def _joined(name: str, parts: Mapping[str, Split], rows: MixedRows) -> Split:
    return Split(rows, joint_report(name, [split.report for split in parts.values()], rows))


def _encoded(
    name: str,
    reader: Reader,
    tokenizer: Any,
    options: EncodeOptions,
    cache: str | Path,
    workers: int | Literal["auto"],
) -> Split:
    folder = _cache_folder(cache, reader)
    fingerprint = tokenizer_fingerprint(tokenizer) if folder else None
    if folder is None or fingerprint is None:
        return _at_once(name, reader, tokenizer, options)
    settings = {**attrs.asdict(options), "split": name, "part": reader.part}
    try:
        reader.look_at_beginnings()
        content = reader.content(folder)
    except OSError:  # reading the rows says what is wrong, and where
        return _at_once(name, reader, tokenizer, options)
    key = store_key(content, fingerprint, settings)

    def build(writer: StoreWriter) -> None:
        tally = Tally(name)
        count = _worker_count(reader) if workers == "auto" else workers
        made = encoded(reader.records(), tokenizer, options, tally, count)
        with closing(made):  # ends the processes, whatever happens here
            writer.write(counted(name, made, reader.meter.share))
        if reader.content(folder) != content:
            raise DataError(
                "the data changed while it was read",
                where=", ".join(str(path) for path in reader.files),
                remedy="let whatever writes the files finish first",
            )
        writer.finish(lambda lengths: tally.report(lengths, options.max_seq_length), key)

    rows = open_or_build(folder, key, build)
    if cache == "auto":
        remove_unused(folder, keep=[key])
    return Split(rows, rows.report)


def _at_once(name: str, reader: Reader, tokenizer: Any, options: EncodeOptions) -> Split:
    """Encode a split into memory, in this process."""
    records = counted(name, reader.records(), reader.meter.share)
    return Split(*encode_split(records, tokenizer, options, name=name))


def _worker_count(reader: Reader) -> int:
    """Return how many processes suit a split: each takes a second to start, and work for many."""
    return min(cores(), MOST) if reader.is_worth(WORTH_WORKERS, rows=100_000) else 1


def _cache_folder(cache: str | Path, reader: Reader) -> Path | None:
    """Return where the tokens of a split are kept; None: nowhere."""
    if cache == "off":
        return None
    try:
        if cache != "auto":
            return expand(cache)
    except OSError as error:
        raise DataError("the cache of tokens has no place", where=cache, got=error) from error
    try:
        return private_cache("data") if reader.is_worth(WORTH_KEEPING, rows=0) else None
    except OSError:
        return None
