"""A data set with every kind of problem that the doctor knows, each once or twice."""

from __future__ import annotations

from pathlib import Path

from tests.data.helpers import write_jsonl
from tests.support.tokenizers import shared

BOS, END = "<s>", "<|eot_id|>"
GOOD = [{"prompt": f"{i} plus {i}?", "completion": f"{2 * i}"} for i in range(12)]


def planted(folder: Path) -> Path:
    """Write a data set with a dozen problems, each once or twice, among good rows."""
    rows = [
        *GOOD,
        GOOD[3],  # a duplicate
        {"prompt": "two plus two?", "completion": "four " * 90},  # truncated
        {"prompt": "two " * 120, "completion": "4"},  # the prompt fills everything
        {"prompt": f"{BOS}hello", "completion": "there"},  # a second BOS
        {"prompt": f"hello{END}", "completion": "there"},  # a control token in the text
        {"prompt": "hello again", "completion": ""},  # an empty answer
        {"prompt": "caf\ufffd?", "completion": "yes"},  # decoded wrongly before
        {"text": "of another format"},
        {"prompt": "NaN?", "completion": "x", "score": 0},
    ]
    path = write_jsonl(folder / "train.jsonl", rows)
    text = path.read_bytes().replace(b'"score": 0', b'"score": NaN')
    path.write_bytes(text + b'{"prompt": "\xff"}\n{"prompt": "no end\n')
    tokens = shared("llama")
    end = tokens.convert_tokens_to_ids(END)
    bos = tokens.bos_token_id
    write_jsonl(
        folder / "train-ids.jsonl",
        [
            {"input_ids": [bos, 40, 41, end]},
            {"input_ids": [bos, 40, 41, 42, 43]},  # no end of turn
            {"input_ids": [bos, bos, 40, end]},  # a second BOS
            {"input_ids": [bos, 9999, end]},  # not in the vocabulary
        ],
    )
    write_jsonl(
        folder / "train-chat.jsonl",
        [
            {"messages": [{"role": "user", "content": "hi"}]},  # nothing to learn
            {"messages": [{"role": "narrator", "content": "hi"}]},
        ],
    )
    write_jsonl(folder / "valid.jsonl", [GOOD[1], {"prompt": "a?", "completion": "b"}])
    return folder


EXPECTED = {
    ("unreadable", "not valid UTF-8", 1),
    ("unreadable", "not valid JSON", 2),
    ("wrong_row", "a row has no 'prompt' and no 'completion'", 1),
    ("wrong_row", "the column 'messages[0]' of a row has the wrong form", 1),
    ("vocabulary", "", 1),
    ("overlap", "train", 1),
    ("duplicates", "", 1),
    ("truncated", "", 1),
    ("prompt_too_long", "", 1),
    ("no_target", "", 1),
    ("empty_answer", "", 1),
    ("double_bos", "", 2),
    ("no_end", "", 1),
    ("control_tokens", END, 1),
    ("replacement", "", 1),
}
