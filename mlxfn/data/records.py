"""JSON lines on disk, one record at a time, each with the place it came from."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

from mlxfn.data.hub import read_parquet
from mlxfn.data.progress import Meter
from mlxfn.data.record import Record, shorten, unreadable
from mlxfn.errors import DataError
from mlxfn.files import expand

Source = str | Path | Sequence[str | Path]
"""A file, a folder, or several files."""

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
SPLITS = {"train": ("train",), "valid": ("valid", "validation"), "test": ("test",)}
LONGEST_LINE = 16 << 20  # bytes: more in one row is a file without line ends
DEEPEST = 100  # lists and objects inside each other
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def find_splits(source: Source) -> dict[str, list[Path]]:
    """Find the files of each split.

    In a folder a split is ``NAME.jsonl``, its shards ``NAME-*.jsonl``, or the files of a folder
    ``NAME/``, each also with ``.gz`` or as ``.parquet``; NAME is train, valid or validation, test. A single file or
    a list of files is ``train``.

    Args:
        source: Folder, file, or list of files.

    Returns:
        The files of each split that is there, sorted by name.

    Raises:
        DataError: Nothing is there, or both ``valid`` and ``validation`` are.
    """
    if not isinstance(source, str | Path):
        return {"train": [existing(Path(path)) for path in source]}
    folder = existing(Path(source))
    if not folder.is_dir():
        return {"train": [folder]}
    try:
        found = {split: _files_of_split(folder, names) for split, names in SPLITS.items()}
    except OSError as error:
        raise _unreadable(folder, error) from error
    if not any(found.values()):
        raise DataError(
            "the data folder has no split that can be read",
            where=folder,
            got=", ".join(sorted(entry.name for entry in _entries(folder))[:8])
            or "an empty folder",
            expected="train.jsonl, and optionally valid.jsonl and test.jsonl (each also as .jsonl.gz)",
            remedy="convert the rows to JSON lines: one JSON object per line",
        )
    return {split: files for split, files in found.items() if files}


def existing(path: Path) -> Path:
    """Return the path if something is there, else raise a DataError."""
    reason = None
    try:
        path = expand(path)
        if path.exists():
            return path
    except OSError as error:  # no permission, a name too long, no such user
        reason = error
    raise DataError(
        "the data path does not exist" if reason is None else "the data path cannot be read",
        where=shorten(str(path)),
        got=reason,
        expected="a .jsonl file, or a folder with train.jsonl",
        remedy="check the spelling; a data set on a hub has to be saved as JSON lines first",
    )


def files_in(source: Source) -> list[Path]:
    """Return the JSON lines files of a file, a folder or a list of files, in a fixed order."""
    if not isinstance(source, str | Path):
        return [existing(Path(path)) for path in source]
    path = existing(Path(source))
    return _jsonl_files(path) if path.is_dir() else [path]


def read_records(source: Source) -> Iterator[Record]:
    r"""Yield every record of the files, in file order; blank lines are skipped.

    Args:
        source: A ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` file, a folder of them, or a list of files.

    Yields:
        One record per line, with its file and line number.

    Raises:
        DataError: A file cannot be read or changes meanwhile, or a line is no JSON object in
            UTF-8.

    Example:
        >>> import tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "train.jsonl"
        >>> _ = file.write_text('{"text": "one"}\n\n{"text": "two"}\n')
        >>> [(record.value["text"], record.line) for record in read_records(file)]
        [('one', 1), ('two', 3)]
    """
    for record in scan_records(source):
        if isinstance(record, DataError):
            raise record
        yield record


def scan_records(source: Source, meter: Meter | None = None) -> Iterator[Record | DataError]:
    """Yield every record of the files, and for a line that is none the error that names it.

    Args:
        source: As ``read_records``.
        meter: Is told how much there is, and what is being read.

    Raises:
        DataError: A file cannot be read, or changes meanwhile.
    """
    paths, meter = files_in(source), meter or Meter()
    meter.begin(_bytes_in(paths))
    for path in paths:
        yield from read_parquet(path) if path.suffix == ".parquet" else _scan_file(path, meter)


def _bytes_in(paths: Sequence[Path]) -> int | None:
    """Return the size of the files, if the place in each can be told."""
    try:
        if any(path.suffix == ".parquet" or not path.is_file() for path in paths):
            return None
        return sum(path.stat().st_size for path in paths)
    except OSError:  # reading it will say what is wrong
        return None


def _scan_file(path: Path, meter: Meter) -> Iterator[Record | DataError]:
    line = 0
    try:
        with path.open("rb") as file, meter.following(file):
            size = os.fstat(file.fileno()).st_size
            text = cast("BinaryIO", gzip.GzipFile(fileobj=file)) if path.suffix == ".gz" else file
            for line, raw in enumerate(_lines(text, path), start=1):
                found = _record(raw, path, line)
                if isinstance(found, DataError):  # perhaps the last line of what is left
                    _check_size(path, line, size, file)
                if found is not None:
                    yield found
            _check_size(path, line, size, file)
    except (OSError, EOFError, zlib.error) as error:
        expected = "a readable text file of JSON lines, or the same compressed with gzip"
        raise unreadable(path, "line", line, error, expected=expected) from error


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, none of which may fill the memory."""
    number = 0
    while raw := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(raw) > LONGEST_LINE:
            raise DataError(
                "a line is too long for one row",
                where=f"{path}:{number}",
                got=shorten(raw[:200]),
                expected=f"at most {LONGEST_LINE >> 20} MB in a line",
                remedy="write one JSON object per line; cut long documents into several rows",
            )
        yield raw


def _check_size(path: Path, line: int, size: int, file: BinaryIO) -> None:
    """Refuse a file that lost its end while it was read: the rows so far are not the data set."""
    now = os.fstat(file.fileno()).st_size
    if now < size:
        raise DataError(
            "the data file became shorter while it was read",
            where=f"{path}, after line {line}",
            got=f"{now:,} bytes",
            expected=f"{size:,} bytes, as when it was opened",
            remedy="let whatever writes the file finish first",
        )


def _record(raw: bytes, path: Path, line: int) -> Record | DataError | None:
    text = raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw
    if not text.strip():
        return None
    try:
        return Record(_parse(text, f"{path}:{line}"), str(path), line)
    except DataError as error:
        return error


def _parse(raw: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
        if _SURROGATE.search(raw):  # half a surrogate pair is JSON, but no text
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        _check_depth(raw, value)
    except UnicodeError as error:
        raise DataError(
            "a line is not valid UTF-8",
            where=where,
            got=shorten(raw[:500]),
            expected=f"UTF-8 text ({error.reason if isinstance(error, UnicodeDecodeError) else error})",
            remedy="convert the file to UTF-8",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            "a line is not valid JSON",
            where=where,
            got=shorten(raw[:500]),
            expected=f"one JSON object per line ({error})",
            remedy="correct or remove the line",
        ) from error
    if not isinstance(value, dict):
        raise DataError(
            "a line is not a JSON object",
            where=where,
            got=shorten(raw[:500]),
            expected='an object such as {"text": "..."}',
        )
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; of a key that is there twice JSON readers keep different ones."""
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r} is there twice")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _check_depth(raw: bytes, value: Any) -> None:
    """Refuse values so deep that walking through them would end the program."""
    if raw.count(b"[") + raw.count(b"{") <= DEEPEST:
        return
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"lists and objects are nested more than {DEEPEST} deep")
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]


def _files_of_split(folder: Path, names: Sequence[str]) -> list[Path]:
    found = {name: files for name in names if (files := _named(folder, name))}
    if len(found) > 1:
        raise DataError(
            "one split is there under two names",
            where=folder,
            got=", ".join(found),
            remedy="keep one of them",
        )
    return next(iter(found.values()), [])


def _named(folder: Path, name: str) -> list[Path]:
    inside = _jsonl_files(folder / name) if (folder / name).is_dir() else []
    beside = [
        path
        for path in _jsonl_files(folder)
        if path.name.startswith((f"{name}.jsonl", f"{name}.parquet", f"{name}-"))
    ]
    return beside + inside


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: OSError) -> DataError:
    return DataError("the data folder cannot be read", where=folder, got=error)


def _jsonl_files(folder: Path) -> list[Path]:
    return sorted(path for path in _entries(folder) if path.name.endswith(SUFFIXES))
