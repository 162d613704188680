"""From a path to the encoded splits: finds the files, splits off validation, encodes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache as remember
from pathlib import Path
from typing import Any, NamedTuple

import attrs

from mlxfn.cachedir import private_cache
from mlxfn.data.encode import EncodeOptions, LossOn, Overlong
from mlxfn.data.hub import HubSplit, is_dataset, load_splits
from mlxfn.data.keys import content_of, store_key, tokenizer_fingerprint
from mlxfn.data.record import Record
from mlxfn.data.records import Source, find_splits, read_records
from mlxfn.data.report import DataReport
from mlxfn.data.rows import Rows, encode_split, outcomes
from mlxfn.data.store import StoreWriter, open_or_build, remove_unused
from mlxfn.data.tally import Tally
from mlxfn.errors import DataError
from mlxfn.files import expand

WORTH_KEEPING = 4 << 20
"""Bytes of a split from which on ``cache = "auto"`` keeps its tokens: less is tokenized at once."""


class Split(NamedTuple):
    """The rows of a split and what became of those that were read."""

    rows: Rows
    report: DataReport


@attrs.frozen
class Reader:
    """How to read the records of a split, and what they depend on."""

    files: tuple[Path, ...]
    records: Callable[[], Iterator[Record]]
    part: tuple[str, float] = ("whole", 0.0)  # which part of the files, by valid_fraction
    data: HubSplit | None = None  # instead of files

    def content(self, folder: Path) -> str:
        """Return what identifies the rows; the hashes of files are remembered in a folder."""
        return self.data.fingerprint if self.data else content_of(self.files, folder / "contents")


def encode_splits(
    source: Source,
    tokenizer: Any,
    *,
    format: str = "auto",  # noqa: A002 - the name of the key in the configuration
    columns: Mapping[str, str] | None = None,
    loss_on: LossOn = "completion",
    max_seq_length: int = 2048,
    overlong: Overlong = "truncate",
    valid_fraction: float = 0.0,
    vocab_size: int | None = None,
    splits: Sequence[str] = ("train", "valid", "test"),
    cache: str | Path = "off",
) -> dict[str, Split]:
    """Read and encode the splits of a data set.

    Args:
        source: Folder, file, or list of files, see ``find_splits``; or a saved data set, or the
            name of one on the hub.
        tokenizer: A Hugging Face tokenizer, or mlx-lm's wrapper of one.
        format: auto, messages, completions, text or tokens.
        columns: Names of the columns where they differ, e.g. ``{"prompt": "question"}``.
        loss_on: Which tokens are targets; see ``encode``.
        max_seq_length: Most ids of a row.
        overlong: What happens to a longer row: truncate, drop or error.
        valid_fraction: Share of train that becomes valid, by a hash of each row's content: adding
            rows moves no other row, and equal rows stay on one side.
        vocab_size: Rows of the model's embedding; ids are checked against it.
        splits: The splits wanted; those that are not there are left out.
        cache: Folder in which tokenized rows are kept and found again; ``"auto"`` is one under
            the user's cache, for splits of more than 4 MB; ``"off"`` keeps nothing.

    Returns:
        The splits by name.

    Raises:
        DataError: A file or row is wrong, a split has no usable row, or ``valid_fraction`` is set
            although there is a validation file.
        ConfigError: ``columns`` names a column that no format has.
    """
    options = EncodeOptions(
        fmt=format,
        columns=dict(columns or {}),
        loss_on=loss_on,
        max_seq_length=max_seq_length,
        overlong=overlong,
        vocab_size=vocab_size,
    )
    readers = _readers(source, valid_fraction)
    return {
        name: _encoded(name, readers[name], tokenizer, options, cache)
        for name in splits
        if name in readers
    }


def _encoded(
    name: str, reader: Reader, tokenizer: Any, options: EncodeOptions, cache: str | Path
) -> Split:
    folder = _cache_folder(cache, reader)
    fingerprint = tokenizer_fingerprint(tokenizer) if folder else None
    if folder is None or fingerprint is None:
        return Split(*encode_split(reader.records(), tokenizer, options, name=name))
    settings = {**attrs.asdict(options), "split": name, "part": reader.part}
    try:
        content = reader.content(folder)
    except OSError:  # reading the rows says what is wrong, and where
        return Split(*encode_split(reader.records(), tokenizer, options, name=name))
    key = store_key(content, fingerprint, settings)

    def build(writer: StoreWriter) -> None:
        tally = Tally(name)
        writer.write(outcomes(reader.records(), tokenizer, options, tally))
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
        size = sum(path.stat().st_size for path in reader.files)
    except OSError:
        return None
    return private_cache("data") if reader.data or size >= WORTH_KEEPING else None


def _readers(source: Source, valid_fraction: float) -> dict[str, Reader]:
    """Return how to read each split, with valid taken from train if asked for."""
    if is_dataset(source):
        splits = load_splits(str(source))
        readers = {name: Reader((), split.records, data=split) for name, split in splits.items()}
    else:
        readers = {
            name: Reader(tuple(paths), lambda paths=paths: _at_least_one(paths))
            for name, paths in find_splits(source).items()
        }
    if valid_fraction and "valid" in readers:
        raise DataError(
            "there is a validation file, and valid_fraction asks for one from train",
            where=readers["valid"].files[0] if readers["valid"].files else source,
            got=f"valid_fraction = {valid_fraction}",
            remedy="set data.valid_fraction to 0, or remove the file",
        )
    if valid_fraction and "train" in readers:
        whole = readers["train"]
        # Once for both parts, and only when one of them has to be read.
        check = remember(lambda: _check_fraction(whole.records(), valid_fraction))
        readers |= {name: _part(whole, name, valid_fraction, check) for name in ("train", "valid")}
    return readers


def _part(whole: Reader, name: str, fraction: float, check: Callable[[], None]) -> Reader:
    """Return the reader of the rows of train that stay there, or of those that become valid."""

    def records() -> Iterator[Record]:
        check()
        for record in whole.records():
            if (share(record.value) < fraction) == (name == "valid"):
                yield record

    return Reader(whole.files, records, (name, fraction), whole.data)


def _at_least_one(paths: Sequence[Path]) -> Iterator[Record]:
    """Yield the rows of files, of which there has to be one; the error names the files."""
    count = 0
    for record in read_records(paths):
        count += 1
        yield record
    if not count:
        names = ", ".join(str(path) for path in paths)
        raise DataError("the data set is empty", where=names, expected="at least one row")


def share(value: dict[str, Any]) -> float:
    """Return a number in [0, 1) that depends on the content of a row alone.

    Example:
        >>> share({"a": 1, "b": 2}) == share({"b": 2, "a": 1})
        True
    """
    content = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:6]) / 2**48


def _check_fraction(records: Iterator[Record], fraction: float) -> None:
    """Refuse a fraction that leaves one side empty, and say which one would not."""
    count, lowest, highest = 0, math.inf, -math.inf
    for record in records:
        place = share(record.value)
        count, lowest, highest = count + 1, min(lowest, place), max(highest, place)
    if lowest >= fraction:
        raise DataError(
            "valid_fraction takes no row of train for validation",
            got=f"{fraction} of {count} rows",
            expected=f"more than {lowest:.4f}, which takes the first row",
            remedy="raise data.valid_fraction, or write a valid.jsonl",
        )
    if highest < fraction:
        raise DataError(
            "valid_fraction leaves no row for training",
            got=f"{fraction} of {count} rows",
            expected=f"at most {highest:.4f}",
            remedy="lower data.valid_fraction",
        )
