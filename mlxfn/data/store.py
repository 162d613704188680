"""Tokenized rows on disk: built once as a stream, published whole, read through a map.

A store is a folder named by its key. It is built under another name and renamed when it is
complete, so a folder with the right name is a whole store, whatever was killed meanwhile. A lock
lets a second run that needs the same rows wait for them instead of tokenizing them too.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
import zipfile
from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self

import attrs
import numpy as np

from mlxfn.data.blocks import BlockWriter, Mapped, damaged
from mlxfn.data.encode import EncodedRow, Outcome
from mlxfn.data.pack import Packs, pack
from mlxfn.data.report import DataReport, quantiles_of
from mlxfn.data.rows import DTYPES, id_range, joint_fingerprint
from mlxfn.errors import DataError
from mlxfn.files import atomic_write

VERSION = 1
_ARRAYS = {**DTYPES, "lines": "<i8", "by_length": "<i8"}
_CHUNK = 512  # rows written together
_UNUSED_DAYS = 30  # after which a store of the common cache is removed


class StoreWriter:
    """A store that is being built in a folder of its own.

    Args:
        folder: An existing empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: list[tuple[str, int]] = []  # a file, and the first row that is from it
        self._arrays = {name: BlockWriter(folder / name, _ARRAYS[name]) for name in _ARRAYS}
        self._end = 0
        self._ids = (0, 0)
        self._arrays["offsets"].append(np.zeros(1, np.int64))

    def write(self, outcomes: Iterable[Outcome]) -> None:
        """Append the rows that are kept."""
        kept = (outcome for outcome in outcomes if outcome.row is not None)
        while chunk := list(islice(kept, _CHUNK)):
            self._append([outcome.row for outcome in chunk if outcome.row is not None])
            self._append_places([outcome.where for outcome in chunk])

    def _append(self, rows: list[EncodedRow]) -> None:
        tokens = np.concatenate([row.tokens for row in rows])
        labels = np.concatenate([row.labels for row in rows])
        ends = self._end + np.cumsum([len(row.tokens) for row in rows])
        low, high = id_range(tokens, labels)
        self._ids = (min(low, self._ids[0]), max(high, self._ids[1]))
        self._end = int(ends[-1])
        for name, items in (("tokens", tokens), ("labels", labels), ("offsets", ends)):
            self._arrays[name].append(items)

    def _append_places(self, places: list[str]) -> None:
        lines: list[int] = []
        for place in places:
            path, _, line = place.rpartition(":")
            if not self.files or self.files[-1][0] != path:
                self.files.append((path, self._arrays["lines"].count + len(lines)))
            lines.append(int(line))
        self._arrays["lines"].append(np.array(lines))

    def finish(self, report: Callable[[tuple[int, ...]], DataReport], key: str) -> None:
        """Write what describes the rows; the store is complete after it.

        Args:
            report: From the quantiles of the lengths to the report of the rows.
            key: The name of the store.
        """
        for name in set(_ARRAYS) - {"by_length"}:
            self._arrays[name].close()
        lengths = np.diff(np.fromfile(self.folder / "offsets", "<i8"))
        # A sort of 16-bit numbers is a radix sort: ten million of them take half a second.
        small = lengths.astype(np.uint16 if lengths.max(initial=0) < 2**16 else np.int64)
        self._arrays["by_length"].append(np.argsort(small, kind="stable"))
        self._arrays["by_length"].close()
        sizes, counts = np.unique(small, return_counts=True)
        checks = b"".join(np.array(a.checks, "<u4").tobytes() for a in self._arrays.values())
        atomic_write(self.folder / "checks", checks)
        arrays = self._arrays
        manifest = {
            "version": VERSION,
            "key": key,
            "files": self.files,
            "arrays": {name: [array.count, len(array.checks)] for name, array in arrays.items()},
            "checks": hashlib.sha256(checks).hexdigest(),
            "fingerprint": joint_fingerprint(
                {name: arrays[name].digest.hexdigest() for name in DTYPES}
            ),
            "ids": self._ids,
            "histogram": [sizes.tolist(), counts.tolist()],
            "report": report(quantiles_of(sizes, counts)).to_dict(),
        }
        manifest["sha256"] = _digest(manifest)
        atomic_write(self.folder / "manifest.json", json.dumps(manifest).encode())

    def abort(self) -> None:
        """Close the files of a store that will not be finished."""
        for array in self._arrays.values():
            array.abort()


def _digest(manifest: dict[str, Any]) -> str:
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@attrs.frozen(eq=False)
class StoredRows:
    """Rows in a store: what is asked for is read, and checked when it is read first."""

    folder: Path
    report: DataReport
    _manifest: dict[str, Any]
    _arrays: dict[str, Mapped]
    _files: tuple[str, ...]
    _starts: np.ndarray  # int64 [files], first row from each file

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a store.

        Raises:
            OSError: It is not there.
            DataError: It is damaged.
        """
        try:
            manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
            if manifest["version"] != VERSION or manifest["sha256"] != _digest(manifest):
                raise damaged(folder / "manifest.json", "another manifest than was written")
            checks = (folder / "checks").read_bytes()
        except (ValueError, KeyError, TypeError) as error:
            raise damaged(folder / "manifest.json", "no manifest of a store") from error
        if hashlib.sha256(checks).hexdigest() != manifest["checks"]:
            raise damaged(folder / "checks", "other checksums than were written")
        return cls(
            folder,
            DataReport.from_dict(manifest["report"]),
            manifest,
            _mapped(folder, manifest["arrays"], np.frombuffer(checks, "<u4")),
            tuple(path for path, _ in manifest["files"]),
            np.array([start for _, start in manifest["files"]], np.int64),
        )

    def __len__(self) -> int:
        return len(self._arrays["lines"])

    @property
    def token_count(self) -> int:
        """Positions of all rows together."""
        return len(self._arrays["tokens"])

    @property
    def lengths(self) -> np.ndarray:
        """Positions of each row, int32 [rows]."""
        offsets = self._arrays["offsets"]
        return np.diff(offsets.read(0, len(offsets))).astype(np.int32)

    def row(self, index: int) -> EncodedRow:
        """Return one row, as views into the files."""
        start, stop = self._arrays["offsets"].read(index, index + 2).tolist()
        return EncodedRow(
            self._arrays["tokens"].read(start, stop), self._arrays["labels"].read(start, stop)
        )

    def where(self, index: int) -> str:
        """Return the file and line a row came from when it was tokenized."""
        path = self._files[int(np.searchsorted(self._starts, index, side="right")) - 1]
        return f"{path}:{self._arrays['lines'].read(index, index + 1)[0]}"

    def fingerprint(self) -> str:
        """Return a SHA-256 over all ids, labels and borders of rows, in hexadecimal."""
        return self._manifest["fingerprint"]

    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lengths there are, ascending, and how many rows have each."""
        sizes, counts = self._manifest["histogram"]
        return np.array(sizes, np.int64), np.array(counts, np.int64)

    def by_length(self) -> Mapped:
        """Return the rows by rising length, int64 [rows]; rows of one length in file order."""
        return self._arrays["by_length"]

    def id_range(self) -> tuple[int, int]:
        """Return the lowest and the highest id, labels included."""
        low, high = self._manifest["ids"]
        return low, high

    def packs(self, capacity: int) -> Packs:
        """Return which rows share a pack; found once and kept beside the rows."""
        path = self.folder / f"lines-{capacity}.npz"
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                return Packs(kept["rows"], kept["offsets"], kept["sizes"], capacity)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            packs = pack(self.lengths, capacity)
        temporary = path.with_name(f".{secrets.token_hex(8)}.npz")
        with contextlib.suppress(OSError):  # a full disk: the next start packs again
            np.savez(temporary, rows=packs.rows, offsets=packs.offsets, sizes=packs.sizes)
            temporary.replace(path)
        return packs


def _mapped(folder: Path, arrays: dict[str, Any], checks: np.ndarray) -> dict[str, Mapped]:
    mapped: dict[str, Mapped] = {}
    at = 0
    for name, (count, blocks) in arrays.items():
        mapped[name] = Mapped(folder / name, _ARRAYS[name], count, checks[at : at + blocks])
        at += blocks
    return mapped


def open_or_build(cache: Path, key: str, build: Callable[[StoreWriter], None]) -> StoredRows:
    """Open a store, after building it if it is not there or damaged.

    Args:
        cache: Folder of stores; made if it is not there.
        key: Name of the store: equal keys mean equal rows.
        build: Writes the rows and finishes the store.

    Raises:
        DataError: The rows are wrong, or the store cannot be written.
    """
    path = cache / key
    try:
        if found := _opened(path):
            return found
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _lock(cache / f".{key}.lock"):
            return _opened(path) or _built(path, build)
    except OSError as error:
        raise DataError(
            "the store of tokenized rows cannot be written",
            where=cache,
            got=f"{type(error).__name__}: {error}",
            remedy="make room there, name another folder in data.cache, or set it to off",
        ) from error


def _opened(path: Path) -> StoredRows | None:
    try:
        found = StoredRows.open(path)
        os.utime(path / "manifest.json")  # in use: not to be removed
    except (OSError, DataError):
        return None
    return found


def _built(path: Path, build: Callable[[StoreWriter], None]) -> StoredRows:
    """Build a store under another name and publish it; the lock is held."""
    for orphan in path.parent.glob(f".{path.name}.*.tmp"):  # of a build that was killed
        shutil.rmtree(orphan, ignore_errors=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    temporary.mkdir(mode=0o700)
    writer = StoreWriter(temporary)
    try:
        build(writer)
        if path.exists():  # damaged, or _opened would have returned it
            path.rename(temporary.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp"))
        temporary.rename(path)
    except BaseException:
        writer.abort()
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return StoredRows.open(path)


@contextlib.contextmanager
def _lock(path: Path) -> Generator[None]:
    """Wait for whoever builds the same store; the lock of a process that dies is free."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: both build, one wins
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def remove_unused(cache: Path, *, days: float = _UNUSED_DAYS, keep: Sequence[str] = ()) -> None:
    """Remove the stores that no run has opened for some days; one in use stays readable."""
    for manifest in cache.glob("*/manifest.json"):
        with contextlib.suppress(OSError):
            if manifest.parent.name not in keep and time.time() - manifest.stat().st_mtime > (
                days * 86_400
            ):
                shutil.rmtree(manifest.parent, ignore_errors=True)
