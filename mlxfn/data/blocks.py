"""Arrays in files: written as a stream, mapped when read, every block with a checksum."""

from __future__ import annotations

import hashlib
import mmap
import os
import zlib
from pathlib import Path

import numpy as np

from mlxfn.errors import DataError

BLOCK = 64 << 10  # bytes under one checksum
_PAGES = 2 << 20  # bytes that the system may map around a place that is touched
_KEPT = 32 << 20  # bytes of a file that may stay mapped in


class BlockWriter:
    """An array that is appended to a file, with what is needed to check it later.

    Args:
        path: The file; it must not exist.
        dtype: Of the items, little-endian.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        self.dtype = np.dtype(dtype)
        self.count = 0
        self.checks: list[int] = []
        self.digest = hashlib.sha256()
        self._file = path.open("xb")
        self._rest = bytearray()

    def append(self, items: np.ndarray) -> None:
        """Append items, converted to the type of the file."""
        self.count += len(items)
        self._rest += np.ascontiguousarray(items, self.dtype).data
        whole = len(self._rest) // BLOCK * BLOCK
        if whole:
            self._write(memoryview(self._rest)[:whole].tobytes())
            del self._rest[:whole]

    def _write(self, data: bytes) -> None:
        self.digest.update(data)
        blocks = range(0, len(data), BLOCK)
        self.checks += [zlib.crc32(data[start : start + BLOCK]) for start in blocks]
        self._file.write(data)

    def close(self) -> None:
        """Write what is left and put the file on the medium."""
        if self._rest:
            self._write(bytes(self._rest))
            self._rest.clear()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abort(self) -> None:
        """Close the file without a wish for what is in it."""
        self._file.close()


class Mapped:
    """An array in a file: read where it is touched, checked where it is touched first.

    Args:
        path: The file.
        dtype: Of the items.
        count: Number of items.
        checks: CRC-32 of each block, uint32 [blocks].

    Raises:
        DataError: The file has another size than the array.
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path, dtype: str, count: int, checks: np.ndarray) -> None:
        self.path = path
        self._dtype = np.dtype(dtype)
        size = count * self._dtype.itemsize
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != size or len(checks) != -(-size // BLOCK):
                raise damaged(path, "another size than the array in it")
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if size else None
        self._bytes = memoryview(self._map if self._map is not None else b"")
        self.array = np.frombuffer(self._bytes, self._dtype)  # not checked
        self._checks = checks
        self._checked = np.zeros(len(checks), bool)
        self._touched = 0

    def __len__(self) -> int:
        return len(self.array)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the items from ``start`` up to ``stop``, as a view into the file.

        Raises:
            DataError: The bytes are not those that were written.
        """
        item = self._dtype.itemsize
        first, last = start * item // BLOCK, -(-stop * item // BLOCK)
        if not self._checked[first:last].all():
            for block in range(first, last):
                self._check(block)
        self._release((stop - start) * item + _PAGES)
        return self.array[start:stop]

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return the items at some places."""
        return np.array([self.read(index, index + 1)[0] for index in indices.tolist()])

    def _check(self, block: int) -> None:
        if not self._checked[block]:
            data = self._bytes[block * BLOCK : (block + 1) * BLOCK]
            if zlib.crc32(data) != self._checks[block]:
                raise damaged(self.path, f"other bytes than were written, in block {block}")
            self._checked[block] = True
            self._release(BLOCK + _PAGES)

    def _release(self, touched: int) -> None:
        """Give pages back now and then: an epoch touches all of a file that may be larger than memory."""
        self._touched += touched
        if self._map is not None and self._touched > _KEPT < len(self._bytes):
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0


def damaged(path: Path, got: str) -> DataError:
    """Return the error for a file of a store that is not as it was written."""
    return DataError(
        "the store of tokenized rows is damaged",
        where=path,
        got=got,
        remedy=f"remove {path.parent}: it is built again from the data",
    )
