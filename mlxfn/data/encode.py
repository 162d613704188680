"""From an example to aligned token ids and labels, with exact loss masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import attrs
import numpy as np

from mlxfn.data.chat import Marked, has_template, mark_chat, token_name
from mlxfn.data.formats import Chat, Completion, Example, Ids, Text
from mlxfn.errors import DataError
from mlxfn.state import IGNORED

LossOn = Literal["completion", "assistant", "all"]
Overlong = Literal["truncate", "drop", "error"]
Fate = Literal["kept", "truncated", "overlong", "no_target"]
"""What became of a row: kept whole, kept in part, or dropped, and why."""


class EncodedRow(NamedTuple):
    """One row of n positions; ``labels[t]`` is the id that follows ``tokens[t]``, or -100."""

    tokens: np.ndarray  # int32 [n], ids in [0, V)
    labels: np.ndarray  # int32 [n], ids in [0, V) or -100


class Outcome(NamedTuple):
    """A row, or None if it is dropped, and what became of it."""

    row: EncodedRow | None
    fate: Fate
    where: str


@attrs.frozen(kw_only=True)
class EncodeOptions:
    """How rows become tokens; plain values, so that they can be part of a fingerprint."""

    fmt: str = "auto"  # auto, messages, completions, text, tokens
    columns: dict[str, str] = attrs.field(factory=dict)  # {column of a format: its name here}
    loss_on: LossOn = "completion"
    max_seq_length: int = 2048  # ids in a row, so at most one position less
    overlong: Overlong = "truncate"
    vocab_size: int | None = None  # ids are checked against it; None: not here


@attrs.frozen(eq=False)
class Codec:
    """A tokenizer with what has to be known about it once."""

    tokenizer: Any  # as given: it renders conversations
    inner: Any  # the callable Hugging Face tokenizer: it takes many texts at once
    front: tuple[int, ...]  # special tokens it puts before every text
    bos: int | None
    eos: int | None
    ends: frozenset[int]  # ids that end a turn or a text
    special: frozenset[int]  # control tokens, the ends among them

    @classmethod
    def of(cls, tokenizer: Any) -> Codec:
        """Look at a Hugging Face tokenizer or at mlx-lm's wrapper of one."""
        wrapped = not callable(tokenizer)
        inner: Any = tokenizer._tokenizer if wrapped else tokenizer  # noqa: SLF001 - no other way in
        eos = inner.eos_token_id
        ends = ({eos} | (set(tokenizer.eos_token_ids) if wrapped else set())) - {None}
        added = getattr(inner, "added_tokens_decoder", {}).items()
        return cls(
            tokenizer=tokenizer,
            inner=inner,
            front=_front(inner),
            bos=inner.bos_token_id,
            eos=eos,
            ends=frozenset(ends),
            special=frozenset(i for i, token in added if token.special) | ends,
        )

    def tokenize(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text, int32 [n], without any special token added."""
        if not texts:
            return []
        # verbose: a row longer than the model's context is our caller's business, not a warning
        encoded = self.inner(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]


def _front(inner: Any) -> tuple[int, ...]:
    """Find the special tokens before a text by encoding one with and without them."""
    plain = inner.encode("a", add_special_tokens=False)
    whole = inner.encode("a", add_special_tokens=True)
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start])
    return ()


def encode(
    example: Example,
    tokenizer: Any,
    *,
    loss_on: LossOn = "completion",
    max_seq_length: int = 2048,
    overlong: Overlong = "truncate",
) -> EncodedRow | None:
    """Encode one example.

    Args:
        example: A row from ``parse_rows``.
        tokenizer: A Hugging Face tokenizer, or mlx-lm's wrapper of one.
        loss_on: Targets of a conversation or of a prompt with its completion: the completion
            (for a conversation its last assistant turn), every assistant turn, or everything.
        max_seq_length: Most ids of a row.
        overlong: What happens to a longer row: truncate it at the end, drop it, or raise.

    Returns:
        The row, aligned; None if it is dropped for its length or has no target left.

    Raises:
        DataError: The loss mask of the row cannot be told exactly, or it is too long and
            ``overlong`` is error.
    """
    options = EncodeOptions(loss_on=loss_on, max_seq_length=max_seq_length, overlong=overlong)
    return next(encode_many([example], Codec.of(tokenizer), options)).row


def encode_many(
    examples: Iterable[Example], codec: Codec, options: EncodeOptions
) -> Iterator[Outcome]:
    """Encode examples, tokenizing all their texts in one call.

    Args:
        examples: A chunk of rows; a few hundred use the tokenizer's threads well.
        codec: The tokenizer.
        options: How to encode.

    Yields:
        One outcome per example, in order.

    Raises:
        DataError: As ``encode``; and an id outside the vocabulary.
    """
    prepared = [_mark(example, codec, options.loss_on) for example in examples]
    texts: list[str] = []
    for row in prepared:
        if isinstance(row, Marked):
            texts += [row.text, *(row.text[:cut] for cut in _cuts(row))]
    tokenized = iter(codec.tokenize(texts))
    for row in prepared:
        if isinstance(row, Marked):
            ids, is_target = _token_mask(row, codec, tokenized)
            labels = np.where(is_target, ids, IGNORED)
        else:
            ids, labels = row.ids, row.labels
        yield _align(ids, labels, row.where, options)


def _mark(example: Example, codec: Codec, loss_on: LossOn) -> Marked | Ids:
    if isinstance(example, Ids):
        return example
    if isinstance(example, Text):
        spans = ((0, len(example.text)),) if example.text else ()
        return Marked(example.where, example.text, spans, framed=False)
    if isinstance(example, Chat):
        return mark_chat(example, codec.tokenizer, loss_on)
    if has_template(codec.tokenizer):
        return mark_chat(as_chat(example), codec.tokenizer, loss_on)
    text = example.prompt + example.completion
    start = 0 if loss_on == "all" else len(example.prompt)
    return Marked(example.where, text, ((start, len(text)),), framed=False)


def as_chat(example: Completion) -> Chat:
    """Return a prompt and its completion as the two turns mlx-lm trains and generates with."""
    turns = (
        {"role": "user", "content": example.prompt},
        {"role": "assistant", "content": example.completion},
    )
    return Chat(example.where, turns, example.tools)


def _cuts(row: Marked) -> list[int]:
    """Return the characters at which a part that is learned begins or ends inside the text."""
    edges = {edge for span in row.spans for edge in span}
    return sorted(edges - {0, len(row.text)})


def _token_mask(
    row: Marked, codec: Codec, tokenized: Iterator[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Turn marked characters into marked tokens; both arrays [n], the mask boolean."""
    ids = next(tokenized)
    cuts = _cuts(row)
    prefixes = [next(tokenized) for _ in cuts]
    if not all(np.array_equal(prefix, ids[: len(prefix)]) for prefix in prefixes):
        ids, lengths = _tokenize_apart(row, cuts, ids, prefixes, codec)
    else:
        lengths = [len(prefix) for prefix in prefixes]
    position = {0: 0, **dict(zip(cuts, lengths, strict=True)), len(row.text): len(ids)}
    is_target = np.zeros(len(ids), dtype=bool)
    for start, end in row.spans:
        is_target[position[start] : position[end]] = True
    if row.framed:
        return _one_bos(*_include_ends(ids, is_target, codec), codec)
    # An empty completion is one that ends at once; an empty document teaches nothing.
    return _frame(ids, is_target, codec, learn_end=bool(row.spans))


def _tokenize_apart(
    row: Marked, cuts: list[int], ids: np.ndarray, prefixes: list[np.ndarray], codec: Codec
) -> tuple[np.ndarray, list[int]]:
    """Tokenize the parts one by one: a token would otherwise straddle prompt and completion.

    This is also what the model meets when it generates: its prompt ends at that border. Tokenizers
    that cannot tokenize a part alone without changing the text are noticed by decoding.
    """
    edges = [0, *cuts, len(row.text)]
    parts = codec.tokenize([row.text[a:b] for a, b in pairwise(edges)])
    joined = np.concatenate(parts)
    if codec.inner.decode(joined.tolist()) == codec.inner.decode(ids.tolist()):
        return joined, np.cumsum([len(part) for part in parts])[:-1].tolist()
    prefix = next(p for p in prefixes if not np.array_equal(p, ids[: len(p)]))
    shared = min(len(prefix), len(ids))
    index = int(np.append(prefix[:shared] != ids[:shared], True).argmax())
    raise DataError(
        "a token straddles the border between prompt and completion",
        where=row.where,
        got=f"token {index} is {token_name(codec.inner, ids.tolist(), index)} in the whole row",
        expected=f"{token_name(codec.inner, prefix.tolist(), index)}, as in the prompt alone",
        remedy="move white space from the end of the prompt to the completion, or the other way",
    )


def _include_ends(
    ids: np.ndarray, is_target: np.ndarray, codec: Codec
) -> tuple[np.ndarray, np.ndarray]:
    """Learn the end of a turn also where a template does not mark or does not write it.

    A generation block may leave it out, and some templates write nothing after the last turn (the
    next one's header ends it): a model trained on that would not learn to stop.
    """
    for index in np.flatnonzero(is_target[:-1] & ~is_target[1:]) + 1:
        is_target[index] = int(ids[index]) in codec.ends
    if (
        is_target[-1:].any()
        and codec.eos is not None
        and codec.special.isdisjoint(ids[-2:].tolist())
    ):
        ids, is_target = np.append(ids, np.int32(codec.eos)), np.append(is_target, True)
    return ids, is_target


def _one_bos(ids: np.ndarray, is_target: np.ndarray, codec: Codec) -> tuple[np.ndarray, np.ndarray]:
    extra = 0
    while codec.bos is not None and extra + 1 < len(ids) and ids[extra + 1] == ids[0] == codec.bos:
        extra += 1
    return ids[extra:], is_target[extra:]


def _frame(
    ids: np.ndarray, is_target: np.ndarray, codec: Codec, *, learn_end: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Put the tokenizer's own special tokens around a plain text, each exactly once."""
    front = np.array(codec.front, dtype=np.int32)
    end: list[int] = []
    if codec.eos is not None and (not len(ids) or ids[-1] != codec.eos):
        end = [codec.eos]
    whole = np.concatenate([front, ids, np.array(end, dtype=np.int32)])
    mask = np.concatenate([np.zeros(len(front), bool), is_target, np.full(len(end), learn_end)])
    return _one_bos(whole, mask, codec)


def _align(ids: np.ndarray, labels: np.ndarray, where: str, options: EncodeOptions) -> Outcome:
    """Apply the length limit, shift the labels, and decide what becomes of the row."""
    fate: Fate = "kept"
    limit = options.max_seq_length
    if len(ids) > limit:
        if options.overlong == "error":
            raise DataError(
                "a row is longer than max_seq_length",
                where=where,
                got=f"{len(ids)} tokens",
                expected=f"at most {limit}",
                remedy="raise data.max_seq_length, or set data.overlong to truncate or drop",
            )
        if options.overlong == "drop":
            return Outcome(None, "overlong", where)
        ids, labels, fate = ids[:limit], labels[:limit], "truncated"
    _check_vocabulary(ids, labels, where, options.vocab_size)
    row = EncodedRow(ids[:-1], labels[1:])
    if not (row.labels != IGNORED).any():
        return Outcome(None, "no_target", where)
    return Outcome(row, fate, where)


def _check_vocabulary(
    ids: np.ndarray, labels: np.ndarray, where: str, vocab_size: int | None
) -> None:
    top = max(ids.max(initial=0), labels.max(initial=0))
    if vocab_size is not None and top >= vocab_size:
        raise DataError(
            "a row has a token id outside the model's vocabulary",
            where=where,
            got=f"id {top}",
            expected=f"0 to {vocab_size - 1}",
            remedy="use the tokenizer that belongs to the model",
        )
