"""What both sides of the comparison are given: models, rows and settings, in numpy alone."""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

VOCAB, HIDDEN, INNER, LAYERS = 61, 32, 36, 2
HEADS, KEY_HEADS, HEAD_DIM = 4, 2, 8

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "head_dim": HEAD_DIM,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": False,
    },
    "qwen3": {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "tie_word_embeddings": True,
    },
    # Caps low enough and a window short enough to shape every row.
    "gemma2": {
        "model_type": "gemma2",
        "architectures": ["Gemma2ForCausalLM"],
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 6.0,
        "sliding_window": 5,
    },
}
KINDS = ("lora", "dora", "full")
COMBINATIONS = [(model, kind) for model in MODELS for kind in KINDS]

RANK, ALPHA = 4, 8.0
PEAK = {"lora": 1e-2, "dora": 1e-2, "full": 5e-3}  # learning rates
WARMUP, MIN_RATIO = 6, 0.1
BETAS, EPS, DECAY = (0.9, 0.999), 1e-8, 0.01
SMOOTHING = 0.1
# About the median of the norms: some updates are clipped, and some are not.
LIMIT = {
    ("llama", "lora"): 1.0,
    ("llama", "dora"): 1.0,
    ("llama", "full"): 2.0,
    ("qwen3", "lora"): 1.0,
    ("qwen3", "dora"): 1.0,
    ("qwen3", "full"): 2.0,
    ("gemma2", "lora"): 0.7,
    ("gemma2", "dora"): 0.7,
    ("gemma2", "full"): 1.5,
}

BATCH, ACCUMULATE, EPOCHS = 2, 4, 3
ROWS, LONGEST = 93, 25
# 93 rows are 47 batches, the last of a single row, and 12 updates, the last of 3 batches.
UPDATES = 36


@cache
def rows() -> list[dict[str, list[int]]]:
    """Return rows of ids with Hugging Face's labels: not shifted, -100 for the prompt."""
    rng = np.random.default_rng(3)
    successors = rng.integers(0, VOCAB, (VOCAB, 3))
    return [_row(rng, successors) for _ in range(ROWS)]


def _row(rng: np.random.Generator, successors: np.ndarray) -> dict[str, list[int]]:
    length = int(rng.integers(6, LONGEST + 1))
    prompt = int(rng.integers(1, 5))
    ids = [int(rng.integers(VOCAB))]
    while len(ids) < length:
        ids.append(int(successors[ids[-1], rng.integers(3)]))
    return {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}


def updates() -> list[list[list[int]]]:
    """Return the row numbers of every micro-batch of every update of one epoch, in file order."""
    batches = [list(range(i, min(i + BATCH, ROWS))) for i in range(0, ROWS, BATCH)]
    return [batches[i : i + ACCUMULATE] for i in range(0, len(batches), ACCUMULATE)]


def shapes(model: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight by Hugging Face's names, matrices as [out, in]."""
    inner: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
        "self_attn.k_proj": (KEY_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.v_proj": (KEY_HEADS * HEAD_DIM, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    if model == "qwen3":
        inner |= {"self_attn.q_norm": (HEAD_DIM,), "self_attn.k_norm": (HEAD_DIM,)}
    if model == "gemma2":
        inner |= {"pre_feedforward_layernorm": (HIDDEN,), "post_feedforward_layernorm": (HIDDEN,)}
    found = {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in inner.items()}
    if not MODELS[model]["tie_word_embeddings"]:
        found["lm_head.weight"] = (VOCAB, HIDDEN)
    return found


def weights(model: str) -> dict[str, np.ndarray]:
    """Return the weights, float32, each drawn from its name alone.

    They are multiples of 1/1024, so that no machine rounds them differently.
    """
    return {name: _draw(model, name, shape) for name, shape in shapes(model).items()}


def _draw(model: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 2:
        return _rounded(0.2 * noise)
    # The scale of a norm, which Gemma keeps as what is added to 1.
    return _rounded(0.1 * noise + (0 if model == "gemma2" else 1))


def _rounded(values: np.ndarray) -> np.ndarray:
    return (np.round(values * 1024) / 1024).astype(np.float32)


def start(model: str, kind: str) -> dict[str, np.ndarray]:
    """Return the trainable values before the first update, float32, by mlx-lm's names.

    For a low-rank adapter ``lora_a`` [in, r] is drawn and ``lora_b`` [r, out] is zero; DoRA's
    magnitude is the norm of each row of the weight.
    """
    base = weights(model)
    if kind == "full":
        return base
    found: dict[str, np.ndarray] = {}
    for name, weight in base.items():
        if weight.ndim == 2 and ".layers." in name:
            path = name.removesuffix(".weight")
            rng = np.random.default_rng(zlib.crc32(path.encode()))
            bound = 1 / np.sqrt(weight.shape[1])
            found[f"{path}.lora_a"] = _rounded(rng.uniform(-bound, bound, (weight.shape[1], RANK)))
            found[f"{path}.lora_b"] = np.zeros((RANK, weight.shape[0]), np.float32)
            if kind == "dora":
                norms = np.linalg.norm(weight.astype(np.float64), axis=1)
                found[f"{path}.m"] = norms.astype(np.float32)
    return found


def write_config(folder: Path, model: str, **changes: Any) -> None:
    """Write ``config.json`` of a model, with some settings changed."""
    (folder / "config.json").write_text(json.dumps({**_COMMON, **MODELS[model], **changes}))
