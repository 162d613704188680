"""Conversations as data sets write them: checked, and in the one form that templates read."""

from __future__ import annotations

import difflib
import json
from typing import Any

from mlxfn.data.record import Record, wrong_column

Message = dict[str, Any]
"""One turn: ``role``, ``content``, and whatever else the template reads."""

ROLES = (
    "system", "developer", "user", "assistant", "tool", "function", "ipython", "observation",
    "environment", "documents", "context",
)  # fmt: skip
"""Roles that chat templates know; a template is free to refuse some of them."""

SHAREGPT = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
"""Names of speakers in ``conversations``, and their roles; those of ``ROLES`` are taken too."""

_CALLS = ("function_call", "tool_call")
_EXPECTED = 'a list of messages such as {"role": "user", "content": "..."}'
_EXPECTED_SHAREGPT = 'a list of turns such as {"from": "human", "value": "..."}'


def check_messages(record: Record, column: str, value: Any) -> tuple[Message, ...]:
    """Check a list of messages and bring the arguments of tool calls into one form.

    Args:
        record: The row, for a message.
        column: Its column, for a message.
        value: What stands in the column.

    Raises:
        DataError: It is no list of messages, or a role is unknown.

    Example:
        >>> check_messages(Record({}, "a", 1), "messages", [{"role": "user", "content": "hi"}])
        ({'role': 'user', 'content': 'hi'},)
    """
    if not isinstance(value, list) or not value:
        wrong_column(record, column, f"{_EXPECTED}, at least one", value)
    for number, message in enumerate(value):
        if problem := _problem(message):
            wrong_column(record, f"{column}[{number}]", f"{_EXPECTED}: {problem}", message)
    return tuple(
        _with_calls(record, f"{column}[{number}]", message) if "tool_calls" in message else message
        for number, message in enumerate(value)
    )


def _problem(message: Any) -> str:
    if not isinstance(message, dict):
        return "a message is an object"
    role = message.get("role")
    if not isinstance(role, str):
        return "role is a string"
    if role not in ROLES:
        near = difflib.get_close_matches(role.lower(), ROLES, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        return f"role is one of {', '.join(ROLES)}{meant}"
    content = message.get("content")
    if content is None and set(message) - {"role", "content"}:
        return ""  # tool calls, or whatever else this template reads
    return "" if isinstance(content, str | list) else "content is a string or a list of parts"


def _with_calls(record: Record, where: str, message: Message) -> Message:
    """Return a message whose calls have arguments as an object, where they came as JSON text.

    Templates write the arguments as JSON: text would be quoted twice, and the model would learn
    to call with a string.
    """
    calls = message["tool_calls"]
    if calls is None:
        return message
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        wrong_column(record, f"{where}.tool_calls", "a list of calls", calls)
    return {**message, "tool_calls": [_call(record, where, call) for call in calls]}


def _call(record: Record, where: str, call: dict[str, Any]) -> dict[str, Any]:
    if isinstance(inner := call.get("function"), dict):
        return {**call, "function": _call(record, where, inner)}
    if not isinstance(text := call.get("arguments"), str):
        return call
    expected = "an object of arguments, or the same as JSON text"
    try:
        arguments = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        wrong_column(record, f"{where}.tool_calls", expected, text)
    if not isinstance(arguments, dict):
        wrong_column(record, f"{where}.tool_calls", expected, text)
    return {**call, "arguments": arguments}


def from_sharegpt(record: Record, column: str, value: Any) -> tuple[Message, ...]:
    """Return the messages of ``conversations``: turns with ``from`` and ``value``.

    Args:
        record: The row, for a message.
        column: Its column, for a message.
        value: What stands in the column; turns with ``role`` and ``content`` are taken too.

    Raises:
        DataError: It is no list of turns, or a speaker is unknown.

    Example:
        >>> from_sharegpt(Record({}, "a", 1), "conversations", [{"from": "human", "value": "hi"}])
        ({'role': 'user', 'content': 'hi'},)
    """
    if not isinstance(value, list) or not value:
        wrong_column(record, column, f"{_EXPECTED_SHAREGPT}, at least one", value)
    turns: list[Any] = []
    for number, turn in enumerate(value):
        where = f"{column}[{number}]"
        if not isinstance(turn, dict):
            wrong_column(record, where, _EXPECTED_SHAREGPT, turn)
        turns.append(turn if "role" in turn else _turn(record, where, turn))
    return check_messages(record, column, turns)


def _turn(record: Record, where: str, turn: dict[str, Any]) -> Message:
    speaker, said = turn.get("from"), turn.get("value")
    role = SHAREGPT.get(speaker, speaker) if isinstance(speaker, str) else None
    if role not in ROLES:
        known = ", ".join(dict.fromkeys((*SHAREGPT, *ROLES)))
        wrong_column(record, where, f"{_EXPECTED_SHAREGPT}: from is one of {known}", turn)
    if not isinstance(said, str):
        wrong_column(record, where, f"{_EXPECTED_SHAREGPT}: value is a string", turn)
    if speaker not in _CALLS:
        return {"role": role, "content": said}
    try:
        calls = json.loads(said)
    except (ValueError, RecursionError):
        wrong_column(record, where, 'a call as JSON text, {"name": ..., "arguments": ...}', said)
    named = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in named):
        wrong_column(record, where, 'a call as JSON text, {"name": ..., "arguments": ...}', said)
    wrapped = [{"type": "function", "function": call} for call in named]
    return {"role": role, "content": "", "tool_calls": wrapped}
