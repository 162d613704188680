"""The embedded default: a real model folder and real rows that never leak into each other."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from mlx.utils import tree_flatten
from transformers import AutoConfig, AutoTokenizer

import mlxfn_configs
from mlxfn import configfile
from mlxfn_cli.main import main

FOLDER = Path(mlxfn_configs.__file__).parent
MODEL, DATA = FOLDER / "default" / "model", FOLDER / "default" / "data"
LIMIT = 4_000_000  # bytes of everything in configs/


def rows(split: str) -> list[list[dict[str, str]]]:
    """Return the messages of each row of a split."""
    lines = (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]


def bare(text: str) -> str:
    """Return a sentence without capitals and punctuation."""
    return " ".join(re.sub(r"[^a-z' -]", " ", text.lower()).split())


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    """Return model and tokenizer as mlx-lm loads them."""
    return mlx_lm.load(str(MODEL))


def test_mlx_lm_loads_a_million_finite_weights(loaded: tuple[Any, Any]) -> None:
    """The folder is a plain Llama: whatever mlx-lm can do, it can do with it."""
    weights = dict(tree_flatten(loaded[0].parameters()))
    assert sum(w.size for w in weights.values()) == 1_058_176
    assert all(mx.isfinite(w).all().item() for w in weights.values())


def test_transformers_reads_the_same_folder() -> None:
    """The files are named and written as Hugging Face's libraries expect them."""
    config, tokenizer = AutoConfig.from_pretrained(MODEL), AutoTokenizer.from_pretrained(MODEL)
    assert config.model_type == "llama"
    assert config.tie_word_embeddings
    assert config.vocab_size == len(tokenizer)
    ids = tokenizer("Elizabeth's courage -- rises.\n").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Elizabeth's courage -- rises.\n"
    assert ids.count(tokenizer.bos_token_id) == 1


def test_transformers_computes_the_same_logits(loaded: tuple[Any, Any]) -> None:
    """An independent implementation reads the same meaning out of the weights."""
    torch = pytest.importorskip("torch", reason="transformers computes with torch only")
    from transformers import AutoModelForCausalLM

    ids = loaded[1].encode("It is a truth universally acknowledged")
    theirs = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    expected = theirs(torch.tensor([ids])).logits.detach().numpy()
    loaded[0].set_dtype(mx.float32)
    assert mx.allclose(loaded[0](mx.array([ids])), mx.array(expected), atol=1e-4).item()


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_the_rendering_of_a_question_begins_that_of_the_row(
    split: str, loaded: tuple[Any, Any]
) -> None:
    """Loss masks are exact only under a template that never rewrites what came before."""
    render = loaded[1].apply_chat_template
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for messages in rows(split):
        question = render(messages[:1], add_generation_prompt=True)
        whole = render(messages)
        assert whole[: len(question)] == question
        assert whole.count(tokenizer.bos_token_id) == 1
        assert whole[-1] == tokenizer.eos_token_id


def test_the_template_is_prefix_consistent_over_several_turns(loaded: tuple[Any, Any]) -> None:
    """The embedded model serves `loss_on = "assistant"` and system prompts too."""
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Repeat: one"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "Repeat: two"},
        {"role": "assistant", "content": "two"},
    ]
    render = loaded[1].apply_chat_template
    whole = render(talk)
    for end in range(1, len(talk) + 1):
        asked = talk[end - 1]["role"] == "user"
        part = render(talk[:end], add_generation_prompt=asked)
        assert whole[: len(part)] == part


def test_no_sentence_is_in_two_splits_or_twice_in_one() -> None:
    """A validation loss on sentences from training would show memory, not success."""
    seen: set[str] = set()
    for split in ("train", "valid", "test"):
        sentences = [bare(answer["content"]) for _, answer in rows(split)]
        assert len(set(sentences)) == len(sentences)
        assert seen.isdisjoint(sentences)
        seen.update(sentences)


def test_every_question_is_its_answer_without_capitals_and_punctuation() -> None:
    """The task can be solved from the question alone, in every row."""
    for split in ("train", "valid", "test"):
        for question, answer in rows(split):
            assert bare(question["content"]) == f"punctuate {bare(answer['content'])}"
            assert answer["content"][0].isupper() or answer["content"][0] == '"'


def test_the_sample_prompts_are_held_out() -> None:
    """What a person sees before and after is about sentences the model was never trained on."""
    prompts = configfile.load(FOLDER / "default.toml").config.eval.sample_prompts
    assert prompts
    assert set(prompts) <= {question["content"] for question, _ in rows("test")}


def test_configs_stay_small() -> None:
    """They travel with every installation of the package."""
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if "__pycache__" not in path.parts) < LIMIT


def test_a_few_updates_of_the_default_already_lower_the_validation_loss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first command of the README has to show success; sixty updates halve the loss."""
    words = ["train", "--json", "--output", str(tmp_path / "run")]
    words += ["--set", "train.max_steps=60", "--set", "eval.eval_steps=60"]
    words += ["--set", "eval.sample_prompts=[]"]
    assert main(words) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "eval"]
    assert losses[-1] < losses[0] / 2
