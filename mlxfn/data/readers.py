"""What there is to read: the records of each split, from files or data sets, and what they depend on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache as remember
from pathlib import Path
from typing import Any

import attrs

from mlxfn.data.hub import HubSplit, is_dataset, load_splits
from mlxfn.data.keys import content_of
from mlxfn.data.progress import Meter
from mlxfn.data.record import Record
from mlxfn.data.records import Source, find_splits, scan_records
from mlxfn.errors import DataError

Scan = Callable[[], Iterator[Record | DataError]]
"""Reads a split from its beginning; a line that is no row comes as the error that names it."""


def _nothing() -> None:
    """Check nothing."""


@attrs.frozen
class Reader:
    """How to read the records of a split, and what they depend on."""

    files: tuple[Path, ...]
    scan: Scan
    part: tuple[str, float] = ("whole", 0.0)  # which part of the files, by valid_fraction
    data: HubSplit | None = None  # instead of files
    check: Callable[[], None] = _nothing  # before the records are used
    meter: Meter = attrs.field(factory=Meter, eq=False)  # how much of the files has been read

    def records(self) -> Iterator[Record]:
        """Yield the records, of which there has to be one.

        Raises:
            DataError: A line is no row, or there is none.
        """
        self.check()
        count = 0
        for item in self.scan():
            if isinstance(item, DataError):
                raise item
            count += 1
            yield item
        if not count and self.part[0] == "whole":
            where = ", ".join(str(path) for path in self.files) or (self.data and self.data.name)
            raise DataError("the data set is empty", where=where, expected="at least one row")

    def look_at_beginnings(self) -> None:
        """Read the first line of each file of text, before whole files are hashed for nothing.

        Raises:
            DataError: A file cannot be read, or has no line ends.
        """
        for path in self.files:
            if path.suffix != ".parquet" and path.is_file():
                next(scan_records(path), None)

    def content(self, folder: Path) -> str:
        """Return what identifies the rows; the hashes of files are remembered in a folder."""
        return self.data.fingerprint if self.data else content_of(self.files, folder / "contents")

    def is_worth(self, size: int, rows: int) -> bool:
        """Whether there are at least so many bytes in the files, or rows in the data set.

        Raises:
            OSError: A file is not there.
        """
        if self.data is not None:
            return self.data.count is None or self.data.count >= rows
        return sum(path.stat().st_size for path in self.files) >= size


def readers_of(
    source: Source, valid_fraction: float = 0.0, *, streaming: bool = False
) -> dict[str, Reader]:
    """Return how to read each split, with valid taken from train if asked for.

    Args:
        source: Folder, file, or list of files, see ``find_splits``; or a saved data set, or the
            name of one on the hub.
        valid_fraction: Share of train that becomes valid.
        streaming: Read a data set row by row, without copying it to this machine first.

    Raises:
        DataError: There is nothing, or both a validation file and a ``valid_fraction``.
    """
    if is_dataset(source):
        splits = load_splits(str(source), streaming=streaming)
        readers = {name: Reader((), split.records, data=split) for name, split in splits.items()}
    else:
        readers = {name: _reader_of(paths) for name, paths in find_splits(source).items()}
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


def _reader_of(paths: Sequence[Path]) -> Reader:
    meter = Meter()
    return Reader(tuple(paths), lambda: scan_records(paths, meter), meter=meter)


def _part(whole: Reader, name: str, fraction: float, check: Callable[[], None]) -> Reader:
    """Return the reader of the rows of train that stay there, or of those that become valid."""

    def scan() -> Iterator[Record | DataError]:
        for item in whole.scan():
            broken = isinstance(item, DataError)  # a line without content stays in train
            if (not broken and share(item.value) < fraction) == (name == "valid"):
                yield item

    return Reader(whole.files, scan, (name, fraction), whole.data, check, whole.meter)


def share(value: dict[str, Any]) -> float:
    """Return a number in [0, 1) that depends on the content of a row alone.

    Example:
        >>> share({"a": 1, "b": 2}) == share({"b": 2, "a": 1})
        True
    """
    return int.from_bytes(hashlib.sha256(canonical(value)).digest()[:6]) / 2**48


def canonical(value: dict[str, Any]) -> bytes:
    """Return the content of a row, the same for every order of its columns."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return text.encode()


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
