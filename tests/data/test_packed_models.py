"""Packed rows as the data path makes them, through every kind of attention: the same as apart."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pytest

from mlxfn.data.cursor import Loader, to_device
from mlxfn.data.rows import EncodedRows
from mlxfn.errors import ConfigError
from mlxfn.losses import causal_lm_loss
from mlxfn.models.lora import lora
from tests.support.models import VOCAB, load, shaken, write_model

_GEMMA = {"query_pre_attn_scalar": 8, "sliding_window": 5, "tie_word_embeddings": True}
# The settings that make one architecture out of the common small model.
KINDS: dict[str, dict] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {},
    "gemma2": {"sliding_window": 5},
    "gemma3_text": {**_GEMMA, "model_type": "gemma3_text", "sliding_window_pattern": 2},
    "phi3": {"model_type": "phi3"},
    "olmo2": {"model_type": "olmo2", "head_dim": None},
    "mixtral": {},
    "granite": {
        "model_type": "granite",
        "logits_scaling": 1.0,
        "attention_multiplier": 0.35,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 0.5,
        "attention_bias": False,
        "mlp_bias": False,
    },
}
LENGTHS = (11, 1, 7, 13, 3, 9, 2, 8)


@cache
def model_of(kind):
    base = kind if kind not in {"gemma3_text", "phi3", "olmo2", "granite"} else "llama"
    folder = Path(mkdtemp(prefix="mlxfn-packed-"))
    return load(write_model(folder, base, **KINDS.get(kind, {})))


def rows():
    random = np.random.default_rng([7])
    ids = [random.integers(0, VOCAB, size + 1) for size in LENGTHS]
    return EncodedRows.of((part[:-1], part[1:]) for part in ids)


def batches_of(*, packing):
    loader = Loader(rows(), 2, vocab_size=VOCAB, max_seq_length=24, packing=packing, shuffle=False)
    positions = range(loader.batches_per_epoch)
    return [(to_device(loader.batch(0, at)), loader.row_indices(0, at)) for at in positions]


def logits_of_rows(adapter, params, *, packing):
    """Return the logits of each row, [n, V], wherever in a batch it stands."""
    found = {}
    for batch, indices in batches_of(packing=packing):
        logits = np.array(adapter.apply(params, batch, None))
        segments = np.array(batch.segments)
        places = [
            (line, number)
            for line in range(len(segments))
            for number in range(1, segments[line].max() + 1)
        ]
        for index, (line, number) in zip(indices, places, strict=True):
            found[index] = logits[line][segments[line] == number]
    return [found[index] for index in range(len(LENGTHS))]


def loss_of(adapter, params, *, packing):
    loss = causal_lm_loss(adapter.apply)
    parts = [loss(params, batch, None) for batch, _ in batches_of(packing=packing)]
    total, weight = (sum(float(part[i]) for part in parts) for i in (0, 1))
    assert weight == sum(LENGTHS)
    return total / weight


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_get_the_logits_and_the_loss_they_get_apart(kind):
    """Otherwise a packed run trains another model: 2e-5 in every logit, 1e-5 in the loss."""
    adapter = lora(model_of(kind), target_modules="all-linear", packed=True)
    params = shaken(adapter.params)
    packed, apart = (logits_of_rows(adapter, params, packing=p) for p in (True, False))
    assert max(abs(a - b).max() for a, b in zip(packed, apart, strict=True)) < 2e-5
    difference = loss_of(adapter, params, packing=True) - loss_of(adapter, params, packing=False)
    assert abs(difference) < 1e-5
    assert max(len(indices) for _, indices in batches_of(packing=True)) > 2, "nothing was packed"


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_in_lines_has_the_loss_of_its_rows_one_by_one(kind, shuffle):
    """Packs of four, two and one line in one epoch: each target once, to 1e-5."""
    adapter = lora(model_of(kind), target_modules="all-linear", packed=True)
    loss, params = causal_lm_loss(adapter.apply), shaken(adapter.params)
    random = np.random.default_rng([8])
    sizes = random.lognormal(np.log(30), 0.7, 60).astype(int).clip(2, 256)
    ids = [random.integers(0, VOCAB, size + 1) for size in sizes]
    data = EncodedRows.of((part[:-1], part[1:]) for part in ids)

    def epoch(rows_of_a_batch, *, packing):
        made = {"vocab_size": VOCAB, "max_seq_length": 256, "packing": packing}
        loader = Loader(data, rows_of_a_batch, shuffle=shuffle, **made)
        batches = [to_device(batch) for batch in loader.epoch(1)]
        parts = [loss(params, batch, None) for batch in batches]
        total, weight = (sum(float(part[i]) for part in parts) for i in (0, 1))
        return total / weight, weight, {batch.tokens.shape for batch in batches}

    apart, packed = epoch(1, packing=False), epoch(2, packing=True)
    assert packed[1] == apart[1] == sizes.sum()
    assert abs(packed[0] - apart[0]) < 1e-5
    assert len(packed[2]) >= (3 if shuffle else 2), "one line length only"


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_the_comparison_notices_attention_across_documents(kind):
    """With a mask that is only causal the same rows differ."""
    adapter = lora(model_of(kind))
    params = shaken(adapter.params)
    packed, apart = (logits_of_rows(adapter, params, packing=p) for p in (True, False))
    assert max(abs(a - b).max() for a, b in zip(packed, apart, strict=True)) > 1e-2


def test_a_sliding_window_is_what_separate_rows_have_too():
    """The window of 5 must matter for rows of 13, or the test above shows nothing about it."""
    narrow, wide = (
        model_of("gemma3_text"),
        load(
            write_model(
                Path(mkdtemp(prefix="mlxfn-packed-")),
                "llama",
                **{**KINDS["gemma3_text"], "sliding_window": 64},
            )
        ),
    )
    logits = [
        logits_of_rows(adapter, shaken(adapter.params), packing=True)
        for adapter in (lora(model, packed=True) for model in (narrow, wide))
    ]
    assert max(abs(a - b).max() for a, b in zip(*logits, strict=True)) > 1e-2


def test_a_state_space_model_is_refused_with_the_reason():
    """Its state runs on from one document into the next; no mask stops it."""
    with pytest.raises(ConfigError, match="packing is not exact") as caught:
        lora(model_of("mamba"), target_modules="all-linear", packed=True)
    assert "mamba" in str(caught.value)
    assert caught.value.where == "data.packing"
