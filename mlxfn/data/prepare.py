"""From a path to the encoded splits: finds the files, splits off validation, encodes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mlxfn.data.encode import EncodeOptions, LossOn, Overlong
from mlxfn.data.record import Record
from mlxfn.data.records import Source, find_splits, read_records
from mlxfn.data.report import DataReport
from mlxfn.data.rows import EncodedRows, encode_split
from mlxfn.errors import DataError


class Split(NamedTuple):
    """The rows of a split and what became of those that were read."""

    rows: EncodedRows
    report: DataReport


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
) -> dict[str, Split]:
    """Read and encode the splits of a data set.

    Args:
        source: Folder, file, or list of files; see ``find_splits``.
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
        name: Split(*encode_split(readers[name](), tokenizer, options, name=name))
        for name in splits
        if name in readers
    }


def _readers(source: Source, valid_fraction: float) -> dict[str, Callable[[], Iterator[Record]]]:
    """Return how to read each split, with valid taken from train if asked for."""
    files = find_splits(source)
    if valid_fraction and "valid" in files:
        raise DataError(
            "there is a validation file, and valid_fraction asks for one from train",
            where=files["valid"][0],
            got=f"valid_fraction = {valid_fraction}",
            remedy="set data.valid_fraction to 0, or remove the file",
        )
    readers: dict[str, Callable[[], Iterator[Record]]] = {
        name: lambda paths=paths: _at_least_one(paths) for name, paths in files.items()
    }
    if valid_fraction and "train" in files:
        train = readers["train"]
        _check_fraction(train(), valid_fraction)
        readers["train"] = lambda: (r for r in train() if share(r.value) >= valid_fraction)
        readers["valid"] = lambda: (r for r in train() if share(r.value) < valid_fraction)
    return readers


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
    shares = sorted(share(record.value) for record in records)
    if shares and shares[0] >= fraction:
        raise DataError(
            "valid_fraction takes no row of train for validation",
            got=f"{fraction} of {len(shares)} rows",
            expected=f"more than {shares[0]:.4f}, which takes the first row",
            remedy="raise data.valid_fraction, or write a valid.jsonl",
        )
    if shares and shares[-1] < fraction:
        raise DataError(
            "valid_fraction leaves no row for training",
            got=f"{fraction} of {len(shares)} rows",
            expected=f"at most {shares[-1]:.4f}",
            remedy="lower data.valid_fraction",
        )
