"""One row as it stands in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import attrs

from mlxfn.errors import DataError

SHOWN = 120  # characters of an offending line that a message shows


@attrs.frozen
class Record:
    """One JSON object and where it stands."""

    value: dict[str, Any]
    path: str
    line: int  # 1-based

    @property
    def where(self) -> str:
        """The place as ``file:line``."""
        return f"{self.path}:{self.line}"


def shorten(value: object) -> str:
    """Return a value as one line of at most 120 characters, for a message.

    Example:
        >>> shorten({"text": "x" * 200})[-15:]
        'xxxxxxxxxxxx...'
    """
    if isinstance(value, bytes):
        text = value.decode("utf-8", errors="backslashreplace")
    elif isinstance(value, str):
        text = value
    else:
        text = json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def wrong_column(record: Record, column: str, expected: str, got: object) -> NoReturn:
    """Raise the error for a column whose value cannot be used."""
    raise DataError(
        f"the column {column!r} of a row has the wrong form",
        where=record.where,
        got=shorten(got),
        expected=expected,
    )


def unreadable(path: Path, unit: str, last: int, error: Exception, *, expected: str) -> DataError:
    """Return the error for a data file that cannot be read, or not to its end.

    Args:
        path: The file.
        unit: What is counted in it: ``"line"`` or ``"row"``.
        last: The last one that was read; 0 for none.
        error: What stopped the reading.
        expected: What the file should be.
    """
    return DataError(
        "the data file cannot be read",
        where=f"{path}, after {unit} {last}" if last else path,
        got=f"{type(error).__name__}: {error}",
        expected=expected,
    )
