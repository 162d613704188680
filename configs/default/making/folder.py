"""Writes the Hugging Face folder that transformers and mlx-lm load."""

import json
from pathlib import Path

import numpy as np
from corpus import ASSISTANT, BEGIN, END, PAD, SYSTEM, TEMPLATE, USER
from safetensors.numpy import save_file
from tokenizers import Tokenizer


def write_folder(
    folder: Path, c: dict, weights: dict[str, np.ndarray], tokenizer: Tokenizer
) -> None:
    """`config.json`, the weights in half precision, the tokenizer with its chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"model.{k}": np.ascontiguousarray(v.astype(np.float16)) for k, v in weights.items()}
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 5}
    write_json(folder / "config.json", c)
    write_json(folder / "generation_config.json", ids | {"do_sample": False})
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BEGIN,
            "eos_token": END,
            "pad_token": PAD,
            "additional_special_tokens": [USER, ASSISTANT, SYSTEM],
            "model_max_length": c["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
            "chat_template": TEMPLATE,
        },
    )


def write_json(path: Path, value: dict) -> None:
    """Indented, with a new line at the end."""
    path.write_text(json.dumps(value, indent=2) + "\n")
