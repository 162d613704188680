"""Text from a model, with or without an adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from mlxfn.errors import ConfigError
from mlxfn.models.adapter import Adapter
from mlxfn.models.model import Model
from mlxfn.random import key as key_of
from mlxfn.tree import Params

Message = dict[str, Any]


def generate(
    model: Model,
    adapter: Adapter | None,
    params: Params | None,
    prompt: str | Sequence[Message],
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool = True,
) -> str:
    """Return the model's answer to a prompt, up to its end-of-turn token.

    Nothing is drawn from the global random state, and the adapter's module is left as it was.

    Args:
        model: The base model, with its tokenizer.
        adapter: The adapter to answer with, or None for the base alone.
        params: The adapter's trained values; None for its initial ones.
        prompt: A text, or messages ``{"role": ..., "content": ...}``.
        max_tokens: Longest answer.
        temperature: 0 takes the likeliest token each time; else tokens are drawn from the
            probabilities at this temperature.
        seed: Seed of the draws.
        chat: Put a text into the chat template as the user's turn, where there is a template;
            False continues the text itself.

    Returns:
        The text, without special tokens.

    Raises:
        ConfigError: The prompt is empty, or a value is out of range.
    """
    from mlx_lm.generate import stream_generate  # imported here: it takes seconds

    _check(max_tokens, temperature)
    ids = _prompt_ids(model, prompt, chat)
    values = adapter.params if adapter is not None and params is None else params
    holding = adapter.inserted(values) if adapter and values else contextlib.nullcontext()
    with holding:
        pieces = stream_generate(
            adapter.module if adapter else model.module,
            model.tokenizer,
            ids,
            max_tokens=max_tokens,
            sampler=_sampler(temperature, seed),
        )
        return "".join(piece.text for piece in pieces)


def _check(max_tokens: int, temperature: float) -> None:
    if max_tokens < 1:
        raise ConfigError("no tokens to generate", where="max_tokens", got=max_tokens)
    if not temperature >= 0:
        raise ConfigError(
            "no such temperature", where="temperature", got=temperature, expected="a number >= 0"
        )


def _prompt_ids(model: Model, prompt: str | Sequence[Message], chat: bool) -> list[int]:
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ConfigError("the model has no tokenizer", where="generate")
    if isinstance(prompt, str) and chat and tokenizer.has_chat_template and prompt:
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(prompt, str):
        # A text that starts with the BOS token must not get a second one.
        bos = tokenizer.bos_token
        special = bos is None or not prompt.startswith(bos)
        ids = list(tokenizer.encode(prompt, add_special_tokens=special))
    else:
        ids = list(tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True))
    if not ids:
        raise ConfigError("the prompt is empty", where="prompt")
    return ids


def _sampler(temperature: float, seed: int) -> Callable[[mx.array], mx.array]:
    """Return a function from log-probabilities [1, V] to a token [1], with a key of its own."""
    if temperature == 0:
        return lambda logprobs: mx.argmax(logprobs, axis=-1)
    key = key_of(seed)

    def draw(logprobs: mx.array) -> mx.array:
        nonlocal key
        key, now = mx.random.split(key, 2)
        return mx.random.categorical(logprobs / temperature, key=now)

    return draw
