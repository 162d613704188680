"""Conversations through the tokenizer's own chat template, with the turns to learn marked.

The marks come from the rendering itself: a turn begins where the rendering of everything before
it, with the generation prompt, ends. That is only true if this rendering is a prefix of the whole
one, so this is checked, never assumed. Where the generation prompt opens a thinking tag that the
turn is not rendered with, the turn begins before the tag. Templates with ``{% generation %}`` say it themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from mlxfn.data.formats import Chat, Message
from mlxfn.data.record import shorten
from mlxfn.errors import DataError

Span = tuple[int, int]
"""First character and the one after the last."""
Render = Callable[[Sequence[Message], bool], str]
"""``(messages, with the generation prompt) -> text``."""

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_THINKING_ENDS = "</think>"
# What a generation prompt opens, or opens and closes, after the header of the turn.
_OPENED = re.compile(r"<think(?:ing)?>\s*(?:</think(?:ing)?>\s*)?\Z")
# A template that asks the clock for a date would give other tokens tomorrow; Llama's templates
# name this date as what they use where there is no clock.
_FIXED_DATE = {"date_string": "26 Jul 2024"}


@attrs.frozen
class Marked:
    """A text and the parts of it that are learned."""

    where: str
    text: str
    spans: tuple[Span, ...]  # ascending, disjoint
    framed: bool  # whether the text holds its own special tokens (a rendered template does)


def has_template(tokenizer: Any) -> bool:
    """Whether the tokenizer can render a conversation."""
    return bool(
        getattr(tokenizer, "has_chat_template", False) or getattr(tokenizer, "chat_template", None)
    )


def opens_thinking(tokenizer: Any) -> bool:
    """Whether the template opens a thinking tag, and leaves it open, when the model is to answer."""
    if not has_template(tokenizer):
        return False
    ask = Chat("", ({"role": "user", "content": "a"},))
    try:
        prompt = _renderer(ask, tokenizer)(ask.messages, True)
    except DataError:
        return False
    found = _OPENED.search(prompt)
    return found is not None and "</" not in found[0]


def mark_chat(chat: Chat, tokenizer: Any, loss_on: str) -> Marked:
    """Render a conversation and mark what is learned.

    Args:
        chat: The conversation.
        tokenizer: A Hugging Face tokenizer, or mlx-lm's wrapper of one, with a chat template.
        loss_on: completion (the last assistant turn, or those of the row's completion),
            assistant (every assistant turn), or all.

    Returns:
        The text and its marked spans; no span where there is no assistant turn.

    Raises:
        DataError: The template refuses the conversation, or renders its beginning differently
            when more follows, so that the borders of a turn cannot be told.
    """
    render = _renderer(chat, tokenizer)
    if loss_on == "all":
        text = render(chat.messages, False)
        return Marked(chat.where, text, ((0, len(text)),), framed=True)
    turns = _turns_to_learn(chat, loss_on)
    if marked := _marked_by_template(chat, tokenizer):
        text, blocks = marked
        return Marked(chat.where, text, _blocks_to_learn(chat, blocks, turns, render), framed=True)
    text = render(chat.messages, False)
    spans = tuple(_span_of_turn(chat, turn, text, render, tokenizer) for turn in turns)
    return Marked(chat.where, text, spans, framed=True)


def _turns_to_learn(chat: Chat, loss_on: str) -> list[int]:
    turns = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
    if loss_on == "assistant":
        return turns
    if chat.first_target is None:
        return turns[-1:]
    return [turn for turn in turns if turn >= chat.first_target]


def _renderer(chat: Chat, tokenizer: Any) -> Render:
    if not has_template(tokenizer):
        raise DataError(
            "the tokenizer has no chat template, so conversations cannot be rendered",
            where=chat.where,
            remedy="use an instruction-tuned model, or rows with text or with prompt and completion",
        )
    options = _options(_template_of(tokenizer, chat.tools))
    tools = list(chat.tools) if chat.tools else None

    def render(messages: Sequence[Message], generation_prompt: bool) -> str:
        try:
            return tokenizer.apply_chat_template(
                list(messages),
                tools=tools,
                add_generation_prompt=generation_prompt,
                tokenize=False,
                **options,
            )
        except Exception as error:  # templates are programs: they raise whatever they like
            raise _refused(chat, messages, error) from error

    return render


def _options(template: str) -> dict[str, Any]:
    return dict(_FIXED_DATE) if "strftime_now" in template else {}


def _template_of(tokenizer: Any, tools: Any) -> str:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, dict):
        template = template.get("tool_use" if tools else "default") or template.get("default")
    return template if isinstance(template, str) else ""


def _refused(chat: Chat, messages: Sequence[Message], error: Exception) -> DataError:
    part = "" if len(messages) == len(chat.messages) else f" up to message {len(messages)}"
    roles = " ".join(str(message["role"]) for message in messages)
    return DataError(
        f"the chat template refuses the conversation{part}",
        where=chat.where,
        got=shorten(f"{roles}: {type(error).__name__}: {error}"),
        expected="a conversation in the order of roles that this template allows",
    )


def _span_of_turn(chat: Chat, turn: int, text: str, render: Render, tokenizer: Any) -> Span:
    if turn == 0:
        raise DataError(
            "a conversation begins with an assistant turn, so nothing shows where its text begins",
            where=chat.where,
            remedy="put a system or user message first, or use loss_on = 'completion'",
        )
    before = _header(render(chat.messages[:turn], True), text)
    if not text.startswith(before):
        raise _not_a_prefix(chat, turn, before, text, tokenizer)
    if turn == len(chat.messages) - 1:
        return len(before), len(text)
    upto = render(chat.messages[: turn + 1], False)
    shorter = _without_final_eos(chat.messages[turn], upto, tokenizer.eos_token)
    for part in (upto, shorter):
        if part and text.startswith(part):
            return len(before), len(part)
    if end := _end_without_thinking(chat.messages[turn], text, len(before), upto):
        return len(before), end
    raise _not_a_prefix(chat, turn, upto, text, tokenizer)


def _header(before: str, text: str) -> str:
    """Return the rendering up to a turn, without a thinking tag that the turn does not have.

    Such a prompt asks for reasoning; the row has an answer without it, or its template leaves the
    reasoning out. What is learned is all that the template writes after the header.
    """
    if text.startswith(before):
        return before
    return _OPENED.sub("", before)


def _without_final_eos(message: Message, upto: str, eos: str | None) -> str | None:
    """Take off the EOS of templates that end the whole text with it, after each turn's own end."""
    if not eos or not upto.endswith(eos) or not isinstance(message.get("content"), str):
        return None
    shorter = upto.removesuffix(eos)
    own_end = shorter.rpartition(message["content"].strip())[2]
    return shorter if own_end.strip() else None


def _end_without_thinking(message: Message, text: str, start: int, upto: str) -> int | None:
    """Find the end of a turn whose reasoning is rendered only while the turn is the last one.

    As the last one it is ``reasoning + answer + end of turn``, as an earlier one ``answer + end of
    turn``: the end is that of the longest ending of the first with which the second begins.
    """
    if upto[:start] != text[:start] or not isinstance(message.get("content"), str):
        return None
    turn = upto[start:]
    answer = message["content"].rpartition(_THINKING_ENDS)[2].strip()
    for cut in range(1, min(turn.rfind(answer) + 1, len(turn))):
        if text.startswith(turn[cut:], start):
            return start + len(turn) - cut
    return None


def _not_a_prefix(chat: Chat, turn: int, part: str, whole: str, tokenizer: Any) -> DataError:
    ours, theirs = (tokenizer.encode(text, add_special_tokens=False) for text in (part, whole))
    pairs = zip(ours, theirs, strict=False)
    index = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
    return DataError(
        "the chat template renders the beginning of a conversation differently when more follows",
        where=f"{chat.where}, message {turn}",
        got=f"token {index} is {token_name(tokenizer, theirs, index)} in the whole conversation",
        expected=f"{token_name(tokenizer, ours, index)}, as in the rendering that ends there",
        remedy="loss_on = 'all', or 'completion' if it is not the last turn, or a chat template"
        " with {% generation %} marks",
    )


def token_name(tokenizer: Any, ids: Sequence[int], index: int) -> str:
    """Return the id and the text of one token, for a message."""
    if index >= len(ids):
        return "the end"
    return f"{ids[index]} {tokenizer.decode([ids[index]])!r}"


def _marked_by_template(chat: Chat, tokenizer: Any) -> tuple[str, tuple[Span, ...]] | None:
    template = _template_of(tokenizer, chat.tools)
    if getattr(tokenizer, "_chat_template", None) is not None or not _GENERATION.search(template):
        return None
    # Imported late: transformers takes a second, and most templates never come here.
    from transformers.utils.chat_template_utils import render_jinja_template

    options = dict(tokenizer.special_tokens_map) | _options(template)
    if hasattr(tokenizer, "has_thinking"):  # what mlx-lm's wrapper adds to every rendering
        options["enable_thinking"] = tokenizer.has_thinking
    rendered: Any  # annotated as a string there, and a pair of lists in fact
    try:
        rendered = render_jinja_template(
            conversations=[list(chat.messages)],
            tools=list(chat.tools) if chat.tools else None,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **options,
        )
    except Exception as error:
        raise _refused(chat, chat.messages, error) from error
    (text,), (blocks,) = rendered
    return text, _joined(blocks)


def _joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Join spans that touch: one turn may be written in several blocks."""
    joined: list[Span] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        elif end > start:
            joined.append((start, end))
    return tuple(joined)


def _blocks_to_learn(
    chat: Chat, blocks: tuple[Span, ...], turns: Sequence[int], render: Render
) -> tuple[Span, ...]:
    """Choose the marked blocks of the last turn, of the completion, or all of them."""
    assistants = sum(message["role"] == "assistant" for message in chat.messages)
    if not turns or len(turns) == assistants:
        return blocks if turns else ()
    if len(blocks) == assistants:
        return blocks[-len(turns) :]
    start = len(_OPENED.sub("", render(chat.messages[: turns[0]], True)))
    return tuple(block for block in blocks if block[1] > start)
