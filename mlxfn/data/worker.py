"""A process that tokenizes: it reads rows from its input and writes what becomes of them.

It is started by ``data.workers`` and ends when its input does, so it never outlives the process
that started it. A message is its length in eight bytes and then JSON; after the JSON of an answer
come the ids and labels as they lie in memory.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from mlxfn.data.encode import Codec, EncodedRow, EncodeOptions, Outcome, encode_many
from mlxfn.data.formats import column_names, parse
from mlxfn.data.keys import tokenizer_fingerprint
from mlxfn.data.record import Record
from mlxfn.errors import DataError

_LENGTH = 8  # bytes before a message that hold its length


def send(stream: BinaryIO, *parts: bytes) -> None:
    """Write a message made of parts, the length before each."""
    for part in parts:
        stream.write(len(part).to_bytes(_LENGTH, "little"))
        stream.write(part)
    stream.flush()


def receive(stream: BinaryIO) -> bytes:
    """Read one part of a message.

    Raises:
        EOFError: The other side has ended.
    """
    return _exactly(stream, int.from_bytes(_exactly(stream, _LENGTH), "little"))


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def pack_outcomes(outcomes: Sequence[Outcome]) -> tuple[bytes, bytes, bytes]:
    """Return outcomes as bytes: the rows' lines, fates and lengths, all ids, all labels."""
    rows = [outcome.row for outcome in outcomes if outcome.row is not None]
    about = [
        [int(o.where.rpartition(":")[2]), o.fate, len(o.row.tokens) if o.row else -1]
        for o in outcomes
    ]
    tokens = [np.asarray(row.tokens, "<i4").tobytes() for row in rows]
    labels = [np.asarray(row.labels, "<i4").tobytes() for row in rows]
    return json.dumps({"rows": about}).encode(), b"".join(tokens), b"".join(labels)


def unpack_outcomes(
    about: dict[str, Any], path: str, tokens: bytes, labels: bytes
) -> list[Outcome]:
    """Return the outcomes that ``pack_outcomes`` has made bytes of."""
    arrays = np.frombuffer(tokens, "<i4"), np.frombuffer(labels, "<i4")
    outcomes: list[Outcome] = []
    start = 0
    for line, fate, length in about["rows"]:
        row = None
        if length >= 0:
            row = EncodedRow(*(part[start : start + length] for part in arrays))
            start += length
        outcomes.append(Outcome(row, fate, f"{path}:{line}"))
    return outcomes


def main() -> None:
    """Tokenize until there is nothing more to read."""
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints must not get between the messages
    try:
        about = json.loads(receive(source))
        options = EncodeOptions(**about["options"])
        tokenizer = load(about)
        send(sink, json.dumps(tokenizer_fingerprint(tokenizer)).encode())
        codec, names = Codec.of(tokenizer), column_names(options.columns)
        while True:
            chunk = json.loads(receive(source))
            send(sink, *_answer(chunk, codec, names, options))
    except (EOFError, BrokenPipeError):
        return


def load(about: dict[str, Any]) -> Any:
    """Load the tokenizer from the folder it was saved in."""
    if not about["wrapped"]:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(about["folder"])
    from pathlib import Path

    from mlx_lm.utils import load_tokenizer

    return load_tokenizer(Path(about["folder"]), eos_token_ids=about["ends"])


def _answer(
    chunk: dict[str, Any], codec: Codec, names: dict[str, str], options: EncodeOptions
) -> tuple[bytes, bytes, bytes]:
    """Encode a chunk; an error is an answer too, and comes up in the other process."""
    try:
        examples = [
            parse(Record(value, chunk["path"], line), chunk["fmt"], names, basis=chunk["basis"])
            for line, value in chunk["rows"]
        ]
        return pack_outcomes(list(encode_many(examples, codec, options)))
    except DataError as error:
        fields = ("what", "where", "got", "expected", "remedy")
        said = {name: getattr(error, name) for name in fields}
        return json.dumps({"error": said}, default=str).encode(), b"", b""
    except Exception:  # noqa: BLE001 - whatever it is, the other process raises it
        return json.dumps({"crash": traceback.format_exc()}).encode(), b"", b""
