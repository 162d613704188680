"""From the texts to everything training needs: tokenizer, pretraining ids, fine-tuning rows.

The split of the texts is the point. *Pride and Prejudice* is the fine-tuning data and is kept
out of pretraining, tokenizer included; the other five novels and the Bible are pretraining
text. A fine-tuning sentence that also occurs in them is dropped.
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from texts import sentences
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BEGIN, END, USER, ASSISTANT, SYSTEM, PAD = SPECIAL = (
    "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>",
)  # fmt: skip
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TASK = "Punctuate: "


# --- fine-tuning rows -----------------------------------------------------------------------


def plain(sentence: str) -> str:
    """Lower case without punctuation, the way a speech recogniser writes it."""
    return re.sub(r"\s+", " ", re.sub(r"[.,;:!?\"]", " ", sentence)).strip().lower()


def tidy(sentence: str) -> str:
    """Drop quotation marks that only say that somebody speaks.

    Those are the pair around a whole sentence, and the lone one that speech over several
    sentences leaves at an edge.
    """
    whole = sentence[0] == sentence[-1] == '"' and sentence.count('"') == 2
    return sentence.strip('"') if whole or sentence.count('"') == 1 else sentence


def usable(sentence: str) -> bool:
    """Return whether a sentence can be a row.

    It has 4 to 16 words, balanced quotation marks, and nothing that the words alone cannot
    tell: no dash, no bracket, no exclamation mark.
    """
    return (
        4 <= len(sentence.split()) <= 16
        and re.fullmatch(r"[A-Za-z' .,;:?\"-]+", sentence) is not None
        and re.match(r"\"?[A-Z]", sentence) is not None
        and "--" not in sentence
        and " '" not in sentence
        and sentence[-1] in '.?"'
        and sentence.count('"') % 2 == 0
    )


def rows(novel: list[str], seen: set[str]) -> dict[str, list[dict]]:
    """Chapters 1-5 are the test split, 6-10 valid, the rest train; no sentence occurs twice."""
    splits: dict[str, list[dict]] = {"test": [], "valid": [], "train": []}
    chapter, taken = 0, set(seen)
    for paragraph in novel:
        chapter += paragraph == "CHAPTER"
        for sentence in sentences(paragraph):
            text = tidy(sentence)
            if not usable(text) or plain(text) in taken:
                continue
            taken.add(plain(text))
            split = "test" if chapter <= 5 else "valid" if chapter <= 10 else "train"
            messages = [
                {"role": "user", "content": TASK + plain(text)},
                {"role": "assistant", "content": text},
            ]
            splits[split].append({"messages": messages})
    return splits


def write_rows(splits: dict[str, list[dict]], folder: Path) -> None:
    """One JSONL file per split."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in split]
        (folder / f"{name}.jsonl").write_text("".join(lines))


# --- pretraining ----------------------------------------------------------------------------


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE over the texts and their lower-case copy; `<|begin|>` opens every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts + [t.lower() for t in texts], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    return tokenizer


def chats(texts: list[str], count: int, seed: int) -> Iterator[str]:
    """Rendered exchanges that show the base's simple skills. Punctuating is not among them."""
    draw = random.Random(seed)
    groups = [g for g in ([s for s in sentences(t) if len(s) > 3] for t in texts) if g]
    while count:
        group = draw.choice(groups)
        at = draw.randrange(len(group))
        words = group[at].split()
        if len(words) > 22:  # a span of a long sentence
            start = draw.randrange(len(words) - 12)
            words = words[start : start + draw.randint(4, 20)]
        if draw.random() < 0.2:  # copying has to work where the language model is no help
            draw.shuffle(words)
        follows = group[at + 1] if at + 1 < len(group) else ""
        question, answer = skill(" ".join(words), follows, draw)
        if answer and len(question) + len(answer) < 320:
            count -= 1
            yield f"{BEGIN}{USER}{question}{ASSISTANT}{answer}{END}"


def skill(text: str, follows: str, draw: random.Random) -> tuple[str, str]:
    """One question about a text and its answer, drawn from the table of skills."""
    bare = plain(text)
    word = draw.choice(bare.split() or [""])
    title = " ".join(w[:1].upper() + w[1:] for w in bare.split())
    table = (
        (4, "Repeat: " + text, text),
        (4, "Repeat: " + bare, bare),
        (3, "Lower case: " + text, text.lower()),
        (4, "Title case: " + bare, title),
        (6, word.capitalize() + ": " + bare, bare),  # an unknown instruction: say it again
        (5, "Continue: " + text, follows if len(follows) < 100 else ""),
        (1, "Capital: " + word, word[:1].upper() + word[1:]),
        (1, "Spell: " + word, "-".join(word)),
        (1, "First word: " + text, text.split(maxsplit=1)[0]),
        (1, "Last word: " + text, text.rsplit(maxsplit=1)[-1]),
    )
    _, question, answer = draw.choices(table, [weight for weight, _, _ in table])[0]
    return question, answer


def encode(tokenizer: Tokenizer, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """All texts in a row: ids uint16 [n], and where each text starts int64 [texts]."""
    ids = [
        np.array(e.ids, np.uint16)
        for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    ]
    lengths = np.array([len(i) for i in ids])
    return np.concatenate(ids), np.cumsum(lengths) - lengths
