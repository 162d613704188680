"""Rows to test with, and Hypothesis strategies that make them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from mlxfn.data.encode import EncodedRow
from mlxfn.data.rows import EncodedRows

VOCAB = 50


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def rows_of(lengths: list[int]) -> EncodedRows:
    """Make rows that can be told apart: row i begins with the id i, and learns its last half."""
    pairs = []
    for number, length in enumerate(lengths):
        tokens = (number + np.arange(length)) % VOCAB
        labels = np.where(np.arange(length) < length // 2, -100, (tokens + 1) % VOCAB)
        pairs.append((tokens, labels))
    return EncodedRows.of(pairs, [f"train.jsonl:{n + 1}" for n in range(len(lengths))])


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=50)
seeds = st.integers(0, 2**63 - 1)


def learned(row: EncodedRow, tokenizer: Any) -> list[str]:
    """Return the texts of the parts of a row that are learned."""
    parts: list[list[int]] = [[]]
    for label in row.labels.tolist():
        if label == -100:
            parts.append([])
        else:
            parts[-1].append(label)
    return [tokenizer.decode(part) for part in parts if part]


def whole_ids(row: EncodedRow) -> list[int]:
    """Return all ids of a row whose last label is one."""
    return [*row.tokens.tolist(), int(row.labels[-1])]
