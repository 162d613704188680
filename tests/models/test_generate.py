"""Facts about generated text."""

from __future__ import annotations

import copy

import attrs
import mlx.core as mx
import mlx_lm
import pytest

from mlxfn.errors import ConfigError
from mlxfn.models.export import export_mlx_lm
from mlxfn.models.generate import generate
from mlxfn.models.lora import full, lora
from mlxfn.models.model import Model
from mlxfn.tree import same_bits
from tests.support.models import random_batch, shaken

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize("build", [lora, full])
def test_the_text_is_the_one_mlx_lm_generates_with_the_export(llama, tmp_path, build):
    """Samples shown during training are what the user will get afterwards."""
    adapter = build(llama)
    params = shaken(adapter.params, 0.2)
    theirs, tokenizer = mlx_lm.load(
        str(llama.folder), adapter_path=str(export_mlx_lm(adapter, params, tmp_path / "a"))
    )
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)
    expected = mlx_lm.generate(theirs, tokenizer, ids, max_tokens=24)
    assert generate(llama, adapter, params, MESSAGES, max_tokens=24) == expected
    assert generate(llama, adapter, params, "Hello", max_tokens=24) == expected
    assert generate(llama, None, None, MESSAGES, max_tokens=24) != expected


def test_a_plain_text_is_continued_without_the_template(llama):
    """For models trained on text."""
    raw = mlx_lm.generate(llama.module, llama.tokenizer, "Hello", max_tokens=12)
    assert generate(llama, None, None, "Hello", max_tokens=12, chat=False) == raw
    assert generate(llama, None, None, "Hello", max_tokens=12) != raw


def test_an_adapter_without_values_answers_with_its_initial_ones(llama):
    """Which are those of the base model."""
    answers = {
        generate(llama, adapter, params, "Hello", max_tokens=8)
        for adapter, params in [
            (None, None),
            (lora(llama), None),
            (lora(llama), lora(llama).params),
        ]
    }
    assert len(answers) == 1


def test_generation_stops_at_the_end_of_the_turn(llama):
    """An answer that runs on into the next turn is not what was taught."""
    ids = llama.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)
    found = [
        piece.token
        for piece in mlx_lm.stream_generate(llama.module, llama.tokenizer, ids, max_tokens=9)
    ]
    stopping = copy.copy(llama.tokenizer)
    stopping.eos_token_ids = {found[3]}
    shorter = attrs.evolve(llama, tokenizer=stopping)
    expected = llama.tokenizer.decode(found[: found.index(found[3])])
    assert generate(shorter, None, None, MESSAGES, max_tokens=9) == expected


def test_a_seed_draws_the_same_text_and_another_seed_another(llama):
    """Samples of a run have to repeat when it is run again."""
    texts = [
        generate(llama, None, None, "Hi", max_tokens=16, temperature=1.0, seed=s) for s in (0, 0, 1)
    ]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_trace_is_left(llama, temperature):
    """Training must be bit-identical with and without samples in between."""
    adapter = lora(llama, dropout=0.5)
    params, batch, key = shaken(adapter.params), random_batch(), mx.random.key(1)
    before = adapter.apply(params, batch, key), adapter.apply(adapter.params, batch, None)
    mx.random.seed(1)
    expected = mx.random.uniform(shape=(3,))
    mx.random.seed(1)
    generate(llama, adapter, params, "Hello", max_tokens=5, temperature=temperature)
    assert same_bits(mx.random.uniform(shape=(3,)), expected)
    after = adapter.apply(params, batch, key), adapter.apply(adapter.params, batch, None)
    assert same_bits(before, after)


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("", {}),
        ("x", {"max_tokens": 0}),
        ("x", {"temperature": -1.0}),
        ("x", {"temperature": float("nan")}),
    ],
)
def test_nothing_to_say_or_no_way_to_say_it_is_an_error(llama, prompt, options):
    """Instead of an assertion deep inside."""
    with pytest.raises(ConfigError):
        generate(llama, None, None, prompt, **options)


def test_a_model_without_a_tokenizer_cannot_speak(llama):
    """A module made by hand has none."""
    with pytest.raises(ConfigError, match="no tokenizer"):
        generate(Model(llama.module, vocab_size=400), None, None, "Hello")
