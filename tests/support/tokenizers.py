"""Small tokenizers made on the spot, each with the trait of a real family that matters."""

# ruff: noqa: S106 - these are tokens of text, not of access

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = (
    "The quick brown fox jumps over the lazy dog. ",
    "What is two plus two? The answer is 4, and nothing else.\n\n",
    "Hello there! How are you today?\nI am fine, thank you.",
    "user assistant system tool answer question",
)

CHATML = """\
{%- if tools %}{{- '<|im_start|>system\\nTools: ' + tools|tojson + '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- if message.tool_calls %}{{- '<tool_call>' + message.tool_calls|tojson + '</tool_call>' }}{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

LLAMA = """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content|trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

# Reasoning is rendered in the last turn only, as Qwen3 does it.
THINKING = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' and '</think>' in message.content and not loop.last %}
{{- message.content.split('</think>')[-1].lstrip('\\n') }}
{%- elif message.role == 'assistant' and loop.last and '</think>' not in message.content %}
{{- '<think>\\n\\n</think>\\n\\n' + message.content }}
{%- else %}
{{- message.content }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

# The generation prompt opens a block of reasoning that the rendering of an answer does not have.
FORCED_THINKING = CHATML.replace(
    "{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n' }}"
)

# The template says itself what is generated, and leaves the end of the turn out.
GENERATION = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}{% generation %}{{- message.content }}{% endgeneration %}
{%- else %}{{- message.content }}{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


def _byte_level(special: list[str], **names: str | None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=312,  # with added tokens still below the 320 rows of the small models
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def chatml(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level BPE without a BOS, ChatML turns: the Qwen family."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = _byte_level(special, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = template
    return tokenizer


def llama() -> PreTrainedTokenizerFast:
    """Byte-level BPE that adds a BOS of its own, and a template that renders one: Llama 3."""
    special = ["<s>", "</s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = _byte_level(special, bos_token="<s>", eos_token="<|eot_id|>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.convert_tokens_to_ids("<s>"))]
    )
    tokenizer.chat_template = LLAMA
    return tokenizer


def sentencepiece() -> PreTrainedTokenizerFast:
    """A space is put before every piece of text, and BOS before the first: Llama 2, Mistral."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    letters = sorted({letter for text in CORPUS for letter in text} - {" "})
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=["▁", *letters],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def thinking() -> PreTrainedTokenizerFast:
    """ChatML that renders reasoning in the last turn only, with tokens for it: Qwen3."""
    tokenizer = chatml(THINKING)
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    return tokenizer


MAKERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "chatml": chatml,
    "llama": llama,
    "thinking": thinking,
    "generation": lambda: chatml(GENERATION),
    "plain": lambda: chatml(None),
    "sentencepiece": sentencepiece,
    "forced_thinking": lambda: chatml(FORCED_THINKING),
}


@cache
def shared(style: str = "chatml") -> PreTrainedTokenizerFast:
    """Return a tokenizer of a style, made once; do not change it."""
    return MAKERS[style]()


@cache
def wrapped(style: str = "chatml") -> TokenizerWrapper:
    """Return the same inside mlx-lm's wrapper, as models are loaded with."""
    return TokenizerWrapper(shared(style))


def write_tokenizer(folder: Path | str, style: str = "chatml") -> None:
    """Save a tokenizer into a model folder, where mlx-lm and transformers find it."""
    shared(style).save_pretrained(str(folder))
