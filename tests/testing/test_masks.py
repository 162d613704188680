"""The check of loss masks: silent for every template when they are right, loud when they are not."""

from __future__ import annotations

import numpy as np
import pytest

from mlxfn.data.encode import EncodedRow, encode
from mlxfn.data.formats import parse_rows
from mlxfn.data.record import Record
from mlxfn.state import IGNORED
from mlxfn.testing import LawError
from mlxfn.testing.masks import mask_is_right
from tests.support.tokenizers import MAKERS, shared, wrapped

CHAT = [
    {"role": "user", "content": "How much is two plus two?"},
    {"role": "assistant", "content": "It is 4, naïvely – 四."},
    {"role": "user", "content": "And three?"},
    {"role": "assistant", "content": "That would be 6."},
]
ROWS = {
    "completion": {"prompt": "What is two plus two?", "completion": " The answer is 4."},
    "messages": {"messages": CHAT},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, *CHAT]},
    "turns": {"prompt": CHAT[:1], "completion": CHAT[1:]},
    "text": {"text": "The quick brown fox jumps over the lazy dog."},
    "ids": {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]},
}


CHATTY = ("chatml", "llama", "thinking", "generation")
"""Styles with a template that renders every conversation here with its borders in place."""


def cases(rows=ROWS):
    """Return (style, row) for all that can be encoded: without a template, only what needs none."""
    free = {"text", "ids"}
    plain = free | {"completion"}
    kinds = {"plain": plain, "sentencepiece": plain, "forced_thinking": free}
    kinds |= {style: set(ROWS) for style in CHATTY}
    return [(style, row) for style in MAKERS for row in rows if row in kinds[style]]


def example_of(row):
    return next(iter(parse_rows([Record(ROWS[row], "rows.jsonl", 3)])))


def encoded(row, style, loss_on="completion", limit=2048):
    """Return example, encoded row and tokenizer."""
    tokenizer, example = wrapped(style), example_of(row)
    made = encode(example, tokenizer, loss_on=loss_on, max_seq_length=limit)
    return example, made, tokenizer


def shifted_mask(row, by):
    """Return a row whose mask begins and ends one token early (-1) or late (1)."""
    ids = [*row.tokens.tolist(), int(row.labels[-1])]
    learned = np.roll(row.labels != IGNORED, by)
    learned[0 if by > 0 else -1] = False
    labels = [ids[t + 1] if on else IGNORED for t, on in enumerate(learned)]
    return EncodedRow(row.tokens, np.array(labels, np.int32))


@pytest.mark.parametrize("loss_on", ["completion", "assistant", "all"])
@pytest.mark.parametrize(("style", "row"), cases())
def test_masks_of_the_library_pass_under_every_template(style, row, loss_on):
    """A check that cries wolf is switched off by the second day."""
    example, made, tokenizer = encoded(row, style, loss_on)
    found = mask_is_right(example, made, tokenizer, loss_on=loss_on)
    assert found.target_tokens == int((made.labels != IGNORED).sum())
    assert found.prompt_tokens + found.target_tokens in {len(made.tokens), len(made.tokens) + 1}
    assert found.where == "rows.jsonl:3"


@pytest.mark.parametrize("limit", [48, 51, 54, 57, 60])
@pytest.mark.parametrize(("style", "row"), cases(["completion", "messages", "text"]))
def test_rows_that_were_cut_pass(style, row, limit):
    """Truncation takes the end of an answer away, in the middle of a character at times."""
    example, made, tokenizer = encoded(row, style, "assistant", limit)
    mask_is_right(example, made, tokenizer, loss_on="assistant", max_seq_length=limit)


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("loss_on", ["completion", "assistant"])
@pytest.mark.parametrize(("style", "row"), cases(["completion", "messages", "system", "turns"]))
def test_a_mask_shifted_by_one_is_found(style, row, loss_on, by):
    """The planted error: one token of the prompt is learned, or the first of the answer is not."""
    example, made, tokenizer = encoded(row, style, loss_on)
    with pytest.raises(LawError):
        mask_is_right(example, shifted_mask(made, by), tokenizer, loss_on=loss_on)


@pytest.mark.parametrize("style", ["chatml", "llama"])
def test_labels_that_are_not_shifted_at_all_are_found(style):
    """A collator that forgets the shift teaches a model to repeat what it reads."""
    example, made, tokenizer = encoded("messages", style)
    still = EncodedRow(made.tokens, np.where(made.labels != IGNORED, made.tokens, IGNORED))
    with pytest.raises(LawError, match="not the token that follows"):
        mask_is_right(example, still, tokenizer)


@pytest.mark.parametrize("style", ["chatml", "llama", "generation"])
def test_an_end_of_turn_that_is_not_learned_is_found(style):
    """A model that never saw an end does not stop."""
    example, made, tokenizer = encoded("messages", style)
    ends = {shared(style).eos_token_id}
    last = max(np.flatnonzero([label in ends for label in made.labels]))
    labels = made.labels.copy()
    labels[last:] = IGNORED
    with pytest.raises(LawError, match="end"):
        mask_is_right(example, EncodedRow(made.tokens, labels), tokenizer)


def test_a_turn_left_out_is_found():
    """Every assistant turn was asked for, and one of them is silent."""
    example, made, tokenizer = encoded("messages", "chatml", "assistant")
    runs = np.flatnonzero(np.diff((made.labels != IGNORED).astype(int)) == 1)
    labels = made.labels.copy()
    labels[: runs[-1]] = IGNORED
    with pytest.raises(LawError, match="another number of parts"):
        mask_is_right(example, EncodedRow(made.tokens, labels), tokenizer, loss_on="assistant")


@pytest.mark.parametrize(
    ("labels", "said"), [([6, 7, 8, -100], "too early"), ([-100, 5, 6, 7], "too late")]
)
def test_labels_of_a_tokenized_row_that_stand_one_off_are_found(labels, said):
    """Rows that come tokenized are trusted by everybody else."""
    row = {"input_ids": [5, 6, 7, 8], "labels": labels}
    example = next(iter(parse_rows([Record(row, "rows.jsonl", 1)])))
    made = encode(example, wrapped("chatml"))
    with pytest.raises(LawError, match=said):
        mask_is_right(example, made, wrapped("chatml"))


def test_a_prompt_that_is_learned_is_found():
    """Training on the question is a choice, and it was not made."""
    example, made, tokenizer = encoded("completion", "plain")
    labels = np.append(made.tokens[1:], made.labels[-1])
    with pytest.raises(LawError):
        mask_is_right(example, EncodedRow(made.tokens, labels), tokenizer)
