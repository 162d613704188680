"""Loss masks checked from the other side: the learned ids, decoded, against the rendered text.

The library marks characters and turns them into tokens. Here the tokens that are learned are
turned back into text, and compared with what the template writes behind the prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import attrs
import numpy as np

from mlxfn.data.chat import has_template
from mlxfn.data.encode import EncodedRow
from mlxfn.data.formats import Chat, Completion, Example, Ids, Text
from mlxfn.state import IGNORED
from mlxfn.testing.law import LawError, require

_SHOWN = 24  # characters of a text that a message shows


@attrs.frozen
class Target:
    """A text that is learned, as the file and the template say."""

    text: str  # from the first learned character on
    exact: bool  # whether it ends where the target ends; else more of the row may follow
    answer: str = ""  # what has to be in it


@attrs.frozen
class RowMask:
    """How much of a row is read and how much is learned."""

    where: str
    prompt_tokens: int
    target_tokens: int


def mask_is_right(
    example: Example,
    row: EncodedRow,
    tokenizer: Any,
    *,
    loss_on: str = "completion",
    max_seq_length: int = 2**30,
) -> RowMask:
    """Every learned token is the one that follows, and together they say what the file says.

    Args:
        example: The row as it stands in the file.
        row: The same, encoded.
        tokenizer: A Hugging Face tokenizer, or mlx-lm's wrapper of one.
        loss_on: completion, assistant or all.
        max_seq_length: Ids at which rows are cut.

    Returns:
        The numbers of tokens.

    Raises:
        LawError: A label is not the next token, or the mask begins or ends elsewhere.
    """
    where = example.where
    if isinstance(example, Ids):
        _check_labels(example)
    ids, learned = _full_row(row, where)
    counts = RowMask(where, int((~learned).sum()), int(learned.sum()))
    require(bool(learned.any()), "a row has no target", at=where)
    if isinstance(example, Ids):
        require(_is_as_given(example, learned), "other ids are learned", at=where)
        return counts
    codec = _Decoder(tokenizer)
    cut = len(row.tokens) + 1 >= max_seq_length
    if loss_on == "all" or isinstance(example, Text):
        require(bool(learned[1:].all()), "not every token is learned", at=where)
        _check_text(codec.text(ids), _everything(example, codec), codec, where, cut=cut)
        return counts
    found = [codec.text(ids[run]) for run in _runs(learned)]
    targets = _targets(example, codec, loss_on)
    fits = len(found) == len(targets) or (cut and len(found) < len(targets))
    what = "the mask has another number of parts than there are answers"
    require(fits, what, at=where, parts=len(found), answers=len(targets))
    for number, (text, target) in enumerate(zip(found, targets, strict=False)):
        _check_text(text, target, codec, where, cut=cut and number == len(found) - 1)
    return counts


def _full_row(row: EncodedRow, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of the row, one more than its positions, and which of them are learned."""
    tokens, labels = np.asarray(row.tokens), np.asarray(row.labels)
    learned = labels != IGNORED
    wrong = np.flatnonzero(learned[:-1] & (labels[:-1] != tokens[1:]))
    for at in wrong[:1]:
        raise LawError(
            "a label is not the token that follows",
            at=f"{where}, position {at}",
            label=int(labels[at]),
            next_token=int(tokens[at + 1]),
        )
    # The last id is known only where it is learned; a mask of it tells nothing else.
    last = labels[-1:][learned[-1:]]
    mask = np.concatenate([[False], learned[: len(tokens) - 1 + len(last)]])
    return np.concatenate([tokens, last]), mask


def _runs(learned: np.ndarray) -> Iterator[slice]:
    start = 0
    for is_target, group in groupby(learned.tolist()):
        end = start + sum(1 for _ in group)
        if is_target:
            yield slice(start, end)
        start = end


def _check_labels(example: Ids) -> None:
    """Check the labels of a row that came tokenized: they stand at their own ids."""
    wrong = np.flatnonzero((example.labels != IGNORED) & (example.labels != example.ids))
    if not len(wrong):
        return
    shifts = {"one position too early": 1, "one position too late": -1}
    names = [name for name, shift in shifts.items() if _agrees_shifted(example, shift)]
    raise LawError(
        "a label is not the id it stands at",
        at=f"{example.where}, index {wrong[0]}",
        labels=names[0] if names else "other ids",
    )


def _is_as_given(example: Ids, learned: np.ndarray) -> bool:
    """Return whether the ids that are learned are the labelled ones, as far as the row goes."""
    given = example.labels != IGNORED
    given[:1] = False  # nothing comes before the first id, so nothing predicts it
    whole = len(learned) >= int(given.nonzero()[0].max(initial=-1)) + 1
    cut = len(learned) < len(given)
    return bool(np.array_equal(given[: len(learned)], learned)) and (whole or cut)


def _agrees_shifted(example: Ids, shift: int) -> bool:
    moved = np.roll(example.ids, -shift)
    inside = slice(0, -1) if shift > 0 else slice(1, None)
    labels, moved = example.labels[inside], moved[inside]
    return bool(((labels == IGNORED) | (labels == moved)).all())


@attrs.define(eq=False, slots=False)
class _Decoder:
    tokenizer: Any

    @property
    def inner(self) -> Any:
        """The callable Hugging Face tokenizer."""
        wrapped = not callable(self.tokenizer)
        return self.tokenizer._tokenizer if wrapped else self.tokenizer  # noqa: SLF001

    def text(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return ids as text, special tokens included."""
        return self.inner.decode([int(i) for i in ids], clean_up_tokenization_spaces=False)

    def round_trip(self, text: str) -> str:
        """Return a text as the tokenizer reads it: some of them normalize."""
        return self.text(self.inner.encode(text, add_special_tokens=False))

    @cached_property
    def control(self) -> tuple[str, ...]:
        """The tokens that are no text: special ones, added ones, and whatever ends a turn."""
        ends = [self.text([i]) for i in getattr(self.tokenizer, "eos_token_ids", ())]
        added = [str(token) for token in self.inner.added_tokens_decoder.values()]
        return tuple(t for t in {*self.inner.all_special_tokens, *added, *ends} if t)

    def without_end(self, text: str) -> str:
        """Take control tokens and white space off the end."""
        before = None
        while text != before:
            before, text = text, text.rstrip()
            for token in self.control:
                text = text.removesuffix(token)
        return text

    def without_start(self, text: str) -> str:
        """Take the beginning-of-text token, and the space some decoders lose, off the start."""
        bos = self.inner.bos_token
        text = text.removeprefix(bos) if bos else text
        return text if self.keeps_space else text.lstrip(" ")

    @cached_property
    def keeps_space(self) -> bool:
        """Whether a space at the beginning is text; SentencePiece adds or takes one."""
        first = self.inner.convert_ids_to_tokens(self.inner.encode("a", add_special_tokens=False))
        return not first[0].startswith("▁") and self.round_trip(" a") == " a"

    def render(self, example: Chat, messages: Sequence[Any], *, prompt: bool) -> str:
        """Return the template's text."""
        tools = list(example.tools) if example.tools else None
        template = str(getattr(self.tokenizer, "chat_template", ""))
        # Rows are encoded with the date that templates name where there is no clock.
        date = {"date_string": "26 Jul 2024"} if "strftime_now" in template else {}
        return self.tokenizer.apply_chat_template(
            list(messages), tools=tools, add_generation_prompt=prompt, tokenize=False, **date
        )


def _targets(example: Chat | Completion, codec: _Decoder, loss_on: str) -> list[Target]:
    """Return the texts that are learned, in order."""
    if isinstance(example, Completion):
        if not has_template(codec.tokenizer):
            return [Target(example.completion, exact=True)]
        example = _as_turns(example)
    return [_turn(example, turn, codec) for turn in _turns(example, loss_on)]


def _turns(example: Chat, loss_on: str) -> list[int]:
    """Return the numbers of the messages that are learned."""
    roles = [message["role"] for message in example.messages]
    turns = [i for i, role in enumerate(roles) if role == "assistant"]
    if loss_on == "assistant":
        return turns
    if example.first_target is None:
        return turns[-1:]
    return [i for i in turns if i >= example.first_target]


def _turn(example: Chat, turn: int, codec: _Decoder) -> Target:
    """Return what the template writes for one turn behind the prompt that asks for it."""
    whole = codec.render(example, example.messages, prompt=False)
    before = codec.render(example, example.messages[:turn], prompt=True)
    content = example.messages[turn].get("content")
    answer = content.rpartition("</think>")[2].strip() if isinstance(content, str) else ""
    if not whole.startswith(before):
        # A template with its own marks may render a prompt that is no prefix.
        return Target(answer, exact=False, answer=answer)
    upto = codec.render(example, example.messages[: turn + 1], prompt=False)
    is_last = turn == len(example.messages) - 1
    exact = is_last or whole.startswith(upto)
    end = len(whole) if is_last or not exact else len(upto)
    return Target(whole[len(before) : end], exact, answer)


def _as_turns(example: Completion) -> Chat:
    turns = (("user", example.prompt), ("assistant", example.completion))
    messages = tuple({"role": role, "content": text} for role, text in turns)
    return Chat(example.where, messages, example.tools)


def _everything(example: Chat | Completion | Text, codec: _Decoder) -> Target:
    if isinstance(example, Chat):
        return Target(codec.render(example, example.messages, prompt=False), exact=True)
    if isinstance(example, Completion):
        if has_template(codec.tokenizer):
            return _everything(_as_turns(example), codec)
        return Target(example.prompt + example.completion, exact=True)
    return Target(example.text, exact=True)


def _check_text(text: str, target: Target, codec: _Decoder, where: str, *, cut: bool) -> None:
    """Compare the text of a learned part with what it should say."""
    ours = codec.without_start(text)
    wanted = [codec.without_start(t) for t in (target.text, codec.round_trip(target.text))]
    body = codec.without_end(ours).rstrip("\ufffd")  # a cut row may end within a character
    begins = any(w.startswith(body) for w in wanted)
    require(
        begins,
        "the mask does not begin, or go on, where the answer does",
        at=where,
        learned=repr(ours[:_SHOWN]),
        expected=repr(wanted[0][:_SHOWN]),
    )
    if cut:
        return
    if target.exact:
        ends = any(body == codec.without_end(w) for w in wanted)
        require(ends, "the mask ends elsewhere", at=where, learned=repr(ours[-_SHOWN:]))
    has_answer = any(a in ours for a in (target.answer, codec.round_trip(target.answer).strip()))
    require(has_answer, "the mask leaves out a part of the answer", at=where)
    closed = codec.without_end(ours).rstrip() != ours.rstrip()
    require(
        closed or not codec.control,
        "the end of the turn is not learned",
        at=where,
        learned=repr(ours[-_SHOWN:]),
    )
