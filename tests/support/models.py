"""Small random models as real Hugging Face folders, on which every model test runs."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

import mlxfn.models.load
from mlxfn.models.model import Model
from mlxfn.models.safetensors import write_safetensors
from mlxfn.state import Batch
from mlxfn.tree import flatten, unflatten
from tests.support.tokenizers import chatml

HIDDEN, LAYERS, VOCAB = 32, 3, 400

_COMMON: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
    "rope_theta": 10000.0,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "qwen3": {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "tie_word_embeddings": True,
    },
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "gemma2": {
        "model_type": "gemma2",
        "architectures": ["Gemma2ForCausalLM"],
        "query_pre_attn_scalar": 8,
    },
    "mixtral": {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
    "mamba": {
        "model_type": "mamba",
        "architectures": ["MambaForCausalLM"],
        "state_size": 4,
        "conv_kernel": 4,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_rank": 2,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    },
    "gpt2": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_ctx": 128,
        "n_embd": HIDDEN,
        "n_head": 4,
        "n_layer": LAYERS,
        "n_positions": 128,
        "layer_norm_epsilon": 1e-5,
    },
}


def write_model(folder: Path, kind: str = "llama", **changes: Any) -> Path:
    """Write a random model of one architecture into a folder and return the folder.

    Args:
        folder: Where to; made if it is not there.
        kind: A key of ``CONFIGS``.
        changes: Settings of ``config.json`` to change, such as ``hidden_size=128``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {**_COMMON, **CONFIGS[kind], **changes}
    chatml().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    write_safetensors(folder / "model.safetensors", random_weights(config))
    return folder


def random_weights(config: dict[str, Any]) -> dict[str, mx.array]:
    """Return weights for a configuration, drawn from each parameter's name alone."""
    model_class, args_class = _get_classes(config)
    template = tree_flatten(model_class(args_class.from_dict(config)).parameters())
    return {name: _draw(name, leaf) for name, leaf in template}


def _draw(name: str, leaf: mx.array) -> mx.array:
    noise = mx.random.normal(leaf.shape, key=mx.random.key(zlib.crc32(name.encode())))
    # Around 1 for the scale of a norm, so that no test passes because everything is alike.
    return 1 + 0.1 * noise if "norm" in name and leaf.ndim == 1 else 0.2 * noise


def load(folder: Path, **options: Any) -> Model:
    """Load a model folder in float32."""
    return mlxfn.models.load.load_model(folder, **options)


def random_batch(rows: int = 2, length: int = 9, seed: int = 0, vocab: int = VOCAB) -> Batch:
    """Return rows of random ids, one document each, with the next id as the label."""
    ids = mx.random.randint(0, vocab, (rows, length + 1), key=mx.random.key(seed))
    return Batch(ids[:, :-1], ids[:, 1:], mx.ones((rows, length), mx.int32))


def shaken(params: Any, size: float = 0.05, seed: int = 0) -> Any:
    """Return parameters moved by noise, so that an adapter does something."""
    flat = flatten(params)
    keys = mx.random.split(mx.random.key(seed), len(flat))
    return unflatten(
        {
            name: leaf + size * mx.random.normal(leaf.shape, key=key)
            for key, (name, leaf) in zip(keys, flat.items(), strict=True)
        }
    )
