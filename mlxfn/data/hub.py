"""Parquet files, saved data sets and data sets of the hub, through the ``hub`` extra."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from mlxfn.data.record import Record, unreadable
from mlxfn.errors import ConfigError, DataError
from mlxfn.files import expand

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")
_SPLITS = {"train": ("train",), "valid": ("valid", "validation"), "test": ("test",)}
_ROWS = 512  # read from a file together


@attrs.frozen(eq=False)
class HubSplit:
    """One split of a data set that is no text file."""

    name: str
    data: Any  # a datasets.Dataset, or an IterableDataset
    fingerprint: str
    count: int | None  # rows; None: not known before they are read

    def records(self) -> Iterator[Record]:
        """Yield the rows; the line of a row is its number, from 1."""
        for number, row in enumerate(self.data, start=1):
            yield Record(without_nulls(row), self.name, number)


def is_dataset(source: object) -> bool:
    """Whether a source is the folder of a saved data set, or may be the name of one on the hub.

    Example:
        >>> is_dataset("rows.jsonl"), is_dataset("HuggingFaceH4/no_robots")
        (False, True)
    """
    if not isinstance(source, str | Path):
        return False
    try:
        path = expand(source)
        if path.is_dir():
            return any((path / name).exists() for name in _SAVED)
        there = path.exists()
    except OSError:  # reading it as a file will say what is wrong
        return False
    return not there and isinstance(source, str) and bool(_NAME.fullmatch(source))


def load_splits(source: str | Path, *, streaming: bool = False) -> dict[str, HubSplit]:
    """Load the splits of a saved data set or of one on the hub; nothing is held in memory.

    Args:
        source: A folder that ``save_to_disk`` has written, or ``owner/name``.
        streaming: Read rows from the hub as they are needed; otherwise the files of the data set
            are copied to the cache of ``datasets`` first.

    Raises:
        ConfigError: The ``hub`` extra is not installed.
        DataError: The data set is not there, or has no split that is known.
    """
    found, revision = _loaded(source, streaming=streaming)
    parts = dict(found) if isinstance(found, dict) else {"train": found}
    splits = {
        split: _split(f"{source}/{name}", parts[name], revision)
        for split, names in _SPLITS.items()
        for name in names
        if name in parts
    }
    if not splits:
        raise DataError(
            "the data set has no split that can be read",
            where=source,
            got=", ".join(parts),
            expected="train, and optionally valid or validation, and test",
        )
    return splits


def _split(name: str, data: Any, revision: str | None) -> HubSplit:
    """Return a split; what is streamed has no fingerprint but the revision it is read from."""
    if revision is None:
        return HubSplit(name, data, str(data._fingerprint), len(data))  # noqa: SLF001 - its identity
    return HubSplit(name, data, f"{name}@{revision}", None)


def _loaded(source: str | Path, *, streaming: bool) -> tuple[Any, str | None]:
    """Return the data set, and the revision of the hub that it is streamed from."""
    datasets = _datasets(source)
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return datasets.load_from_disk(str(path)), None
        if not streaming:
            return datasets.load_dataset(source), None
        # The revision first, and then its rows: otherwise another one might be read under its name.
        revision = revision_of(str(source))
        return datasets.load_dataset(source, revision=revision, streaming=True), revision
    except Exception as error:  # the hub's client raises many kinds
        raise DataError(
            "the data set cannot be loaded",
            where=source,
            got=f"{type(error).__name__}: {error}".splitlines()[0],
            expected="a file, a folder with train.jsonl, a saved data set, or a name on the hub",
            remedy="check the spelling, and that the hub can be reached",
        ) from error


def revision_of(name: str) -> str:
    """Ask the hub for the commit that a data set is at."""
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(name).sha)


def _datasets(source: object) -> Any:
    try:
        import datasets  # pyright: ignore[reportMissingImports]  # late: an extra, and slow
    except ImportError as error:
        raise ConfigError(
            "data sets and parquet files need the hub extra",
            where=source,
            remedy="pip install 'mlxfn[hub]', or check the spelling of the path",
        ) from error
    return datasets


def read_parquet(path: Path) -> Iterator[Record]:
    """Yield the rows of a parquet file; the line of a row is its number, from 1.

    Raises:
        ConfigError: The ``hub`` extra is not installed.
        DataError: The file cannot be read.
    """
    _datasets(path)
    # Comes with datasets.
    from pyarrow import ArrowException, parquet  # pyright: ignore[reportMissingImports]

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(without_nulls(row), str(path), number)
    except (ArrowException, OSError) as error:
        raise unreadable(path, "row", number, error, expected="a parquet file") from error


def without_nulls(value: Any) -> Any:
    """Return a row without the keys that tables fill in where another row has them.

    Example:
        >>> without_nulls({"messages": [{"role": "user", "content": "a", "tool_calls": None}]})
        {'messages': [{'role': 'user', 'content': 'a'}]}
    """
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value
