"""The row formats: detected per file, every row checked against it."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
import numpy as np

from mlxfn.data.conversation import Message, check_messages, from_sharegpt
from mlxfn.data.record import Record, shorten, wrong_column
from mlxfn.errors import ConfigError, DataError
from mlxfn.state import IGNORED

REQUIRED = {
    "tokens": ("input_ids",),
    "completions": ("prompt", "completion"),
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
"""The columns that make a format, in the order in which formats are tried."""
COLUMNS = (
    "messages", "conversations", "system", "tools", "prompt", "completion", "instruction", "input",
    "output", "text", "input_ids", "labels",
)  # fmt: skip

_LARGEST_ID = 2**31 - 1


@attrs.frozen
class Chat:
    """A conversation; only assistant turns from ``first_target`` on belong to the completion."""

    where: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] | None = None
    first_target: int | None = None  # index of a message; None: only the last assistant turn


@attrs.frozen
class Completion:
    """A prompt and its completion, both plain text."""

    where: str
    prompt: str
    completion: str
    tools: tuple[dict[str, Any], ...] | None = None


@attrs.frozen
class Text:
    """A document, all of which is trained on."""

    where: str
    text: str


@attrs.frozen(eq=False)
class Ids:
    """A row that is tokenized already; labels are not shifted, -100 is ignored."""

    where: str
    ids: np.ndarray  # int32 [n]
    labels: np.ndarray  # int32 [n]


Example = Chat | Completion | Text | Ids


def parse_rows(
    records: Iterable[Record], *, fmt: str = "auto", columns: Mapping[str, str] | None = None
) -> Iterator[Example]:
    """Check every record and turn it into an example.

    With ``auto`` the first row of each file decides the format of that file.

    Args:
        records: The rows.
        fmt: auto, or a key of ``REQUIRED``.
        columns: Names of the columns where they differ, e.g. ``{"prompt": "question"}``.

    Yields:
        One example per record.

    Raises:
        DataError: A row is not of the format of its file.
        ConfigError: ``columns`` names a column that no format has.

    Example:
        >>> rows = [Record({"question": "2+2?", "completion": "4"}, "train.jsonl", 1)]
        >>> [row.prompt for row in parse_rows(rows, columns={"prompt": "question"})]
        ['2+2?']
    """
    names = column_names(columns or {})
    current: tuple[str, int] | None = None
    detected = fmt
    for record in records:
        if fmt == "auto" and (current is None or record.path != current[0]):
            detected, current = detect(record, names), (record.path, record.line)
        basis = f"{current[0]}:{current[1]}" if current else "the configuration"
        yield parse(record, detected, names, basis=basis)


def column_names(columns: Mapping[str, str]) -> dict[str, str]:
    """Return the name of every column, the given ones in place of the usual ones."""
    for column in columns:
        if column not in COLUMNS:
            near = difflib.get_close_matches(column, COLUMNS, n=1)
            raise ConfigError(
                f"no row format has a column {column!r}",
                where="data.columns",
                expected=", ".join(COLUMNS),
                remedy=f"did you mean {near[0]!r}?" if near else None,
            )
    renamed = {column: name for column, name in columns.items() if column != name}
    # Renamed columns first: they say which format is meant where a row could be of two.
    return renamed | {column: column for column in COLUMNS if column not in renamed}


def detect(record: Record, names: Mapping[str, str]) -> str:
    """Return the format of a row by the columns it has; a null column counts as absent.

    Raises:
        DataError: The row has the columns of no format.
    """
    present = {column for column, name in names.items() if record.value.get(name) is not None}
    fits = [fmt for fmt, needed in REQUIRED.items() if present.issuperset(needed)]
    renamed = {column for column, name in names.items() if column != name}
    fits.sort(key=lambda fmt: renamed.isdisjoint(REQUIRED[fmt]))
    if fits:
        return fits[0]
    raise DataError(
        "a row has none of the known formats",
        where=record.where,
        got=f"columns {', '.join(map(repr, record.value)) or '(none)'}: {shorten(record.value)}",
        expected="; ".join(" and ".join(names[c] for c in needed) for needed in REQUIRED.values()),
        remedy="name your columns in data.columns, for example {prompt = 'question', completion = 'answer'}",
    )


def parse(record: Record, fmt: str, names: Mapping[str, str], *, basis: str = "") -> Example:
    """Turn one record into an example of the given format.

    Args:
        record: The row.
        fmt: A key of ``REQUIRED``.
        names: Name of every column, from ``column_names``.
        basis: What decided the format, for the message.

    Raises:
        DataError: The row does not have that format.
    """
    missing = [names[c] for c in REQUIRED[fmt] if record.value.get(names[c]) is None]
    if missing:
        raise DataError(
            f"a row has no {' and no '.join(map(repr, missing))}",
            where=record.where,
            got=shorten(record.value),
            expected=f"a row in the {fmt} format, as decided by {basis}",
            remedy="every row of a file has one format: correct the row, or move it to its own file",
        )
    return _PARSERS[fmt](record, names)


def _text(record: Record, names: Mapping[str, str]) -> Text:
    value = record.value[names["text"]]
    if not isinstance(value, str):
        wrong_column(record, names["text"], "a string", value)
    return Text(record.where, value)


def _completion(record: Record, names: Mapping[str, str]) -> Example:
    prompt, completion = record.value[names["prompt"]], record.value[names["completion"]]
    tools = _tools(record, names["tools"])
    if isinstance(prompt, str) and isinstance(completion, str):
        return Completion(record.where, prompt, completion, tools)
    before = _turns(record, names["prompt"], prompt, "user")
    after = _turns(record, names["completion"], completion, "assistant")
    return Chat(record.where, before + after, tools, first_target=len(before))


def _turns(record: Record, column: str, value: Any, role: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        return ({"role": role, "content": value},)
    return check_messages(record, column, value)


def _chat(record: Record, names: Mapping[str, str]) -> Chat:
    column = names["messages"]
    messages = check_messages(record, column, record.value[column])
    return Chat(record.where, messages, _tools(record, names["tools"]))


def _sharegpt(record: Record, names: Mapping[str, str]) -> Chat:
    column, system = names["conversations"], record.value.get(names["system"])
    messages = from_sharegpt(record, column, record.value[column])
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        messages = ({"role": "system", "content": system}, *messages)
    return Chat(record.where, messages, _tools(record, names["tools"]))


def _alpaca(record: Record, names: Mapping[str, str]) -> Example:
    """Return the instruction, with its input below it, as the prompt of the output."""
    parts = {name: record.value.get(names[name]) for name in ("instruction", "input", "output")}
    for name, part in parts.items():
        if not isinstance(part, str) and (name != "input" or part is not None):
            wrong_column(record, names[name], "a string", part)
    given = (parts["instruction"], parts["input"])
    prompt = "\n\n".join(part for part in given if isinstance(part, str) and part.strip())
    return Completion(record.where, prompt, str(parts["output"]), _tools(record, names["tools"]))


def _tools(record: Record, column: str) -> tuple[dict[str, Any], ...] | None:
    value = record.value.get(column)
    if isinstance(value, str):  # data sets store nested schemas as JSON text
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError:
            wrong_column(record, column, "a list of tool schemas, or the same as JSON text", value)
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        wrong_column(record, column, "a list of tool schemas", value)
    return tuple(value)


def _ids(record: Record, names: Mapping[str, str]) -> Ids:
    ids = _numbers(record, names["input_ids"], lowest=0)
    if record.value.get(names["labels"]) is None:
        return Ids(record.where, ids, ids)
    labels = _numbers(record, names["labels"], lowest=IGNORED)
    if len(labels) != len(ids):
        wrong_column(
            record, names["labels"], f"one label per id: {len(ids)}", f"{len(labels)} labels"
        )
    return Ids(record.where, ids, labels)


def _numbers(record: Record, column: str, *, lowest: int) -> np.ndarray:
    value = record.value[column]
    expected = "a list of token ids" + ("" if lowest == 0 else ", -100 where ignored")
    try:
        numbers = np.array(value if value != [] else np.zeros(0, np.int64))
    except (ValueError, OverflowError):
        wrong_column(record, column, expected, value)
    if not isinstance(value, list) or numbers.dtype.kind != "i" or numbers.ndim != 1:
        wrong_column(record, column, expected, value)
    bad = ((numbers < 0) & (numbers != lowest)) | (numbers > _LARGEST_ID)
    if bad.any():
        wrong_column(record, column, expected, f"{numbers[bad][0]} at index {bad.argmax()}")
    return numbers.astype(np.int32)


_PARSERS = {
    "messages": _chat,
    "completions": _completion,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "text": _text,
    "tokens": _ids,
}
