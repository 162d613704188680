"""The reference: PyTorch, transformers and PEFT, which share no line of code with mlxfn."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reference import setting
from tests.reference.trajectory import Trajectory, displacement

REASON = "the live reference needs PyTorch and PEFT: pip install -e '.[reference]'"
torch: Any = pytest.importorskip("torch", reason=REASON)
peft: Any = pytest.importorskip("peft", reason=REASON)
from torch.overrides import TorchFunctionMode  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from transformers.utils import logging  # noqa: E402

logging.disable_progress_bar()


class _InFloat64(TorchFunctionMode):
    """Turn every request for float32 into one for float64.

    transformers computes norms, rotary embeddings and the softmax of attention in float32
    whatever the model's dtype is, which is no float64 run.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        wide = torch.Tensor.double if func is torch.Tensor.float else func
        out = wide(
            *(_widened(value) for value in args),
            **{name: _widened(value) for name, value in (kwargs or {}).items()},
        )
        if isinstance(out, torch.Tensor) and out.dtype is torch.float32:
            raise RuntimeError(f"{func} computed in float32")
        return out


def _widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextlib.contextmanager
def precision(dtype: str) -> Generator[None]:
    """Compute in one dtype, on one thread, inside the block."""
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(getattr(torch, dtype))
    torch.set_num_threads(1)
    try:
        with _InFloat64() if dtype == "float64" else contextlib.nullcontext():
            yield
    finally:
        torch.set_default_dtype(before)
        torch.set_num_threads(threads)


def train(folder: Path, model: str, kind: str, *, dtype: str = "float64") -> Trajectory:
    """Run one combination and return what it did.

    Args:
        folder: The model as a Hugging Face folder.
        model: A key of ``setting.MODELS``.
        kind: One of ``setting.KINDS``.
        dtype: ``"float64"`` for the truth, ``"float32"`` to see what rounding does to it.
    """
    with precision(dtype):
        return _train(adapted(folder, model, kind, dtype), model, kind)


def adapted(folder: Path, model: str, kind: str, dtype: str) -> Any:
    """Return the model with PEFT's adapter on it, at the values that every run starts from."""
    # eager is the one way to attend that has Gemma's soft cap
    base = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager"
    )
    if kind != "full":
        options = peft.LoraConfig(
            r=setting.RANK,
            lora_alpha=setting.ALPHA,
            target_modules="all-linear",
            use_dora=kind == "dora",
            task_type="CAUSAL_LM",
        )
        with old_names():
            base = peft.get_peft_model(base, options, autocast_adapter_dtype=False)
    given = setting.start(model, kind)
    with torch.no_grad():
        for name, parameter in trainable(base).items():
            value = given.pop(ours(name))
            parameter.copy_(torch.from_numpy(value.T if _is_turned(name) else value))
    if given:
        raise ValueError(f"the reference does not train {sorted(given)}")
    return base.train()


@contextlib.contextmanager
def old_names() -> Generator[None]:
    """Let PEFT ask transformers for things under names that are about to go."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def trainable(module: Any) -> dict[str, Any]:
    """Return the parameters that the reference trains, by its own names."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def ours(name: str) -> str:
    """Return mlx-lm's name of a parameter of PEFT or transformers.

    Example:
        >>> ours("base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight")
        'model.layers.0.mlp.up_proj.lora_a'
    """
    name = name.removeprefix("base_model.model.")
    for theirs, leaf in (
        (".lora_A.default.weight", ".lora_a"),
        (".lora_B.default.weight", ".lora_b"),
        (".lora_magnitude_vector.default.weight", ".m"),
    ):
        name = name.replace(theirs, leaf)
    return name


def _is_turned(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def _train(module: Any, model: str, kind: str) -> Trajectory:
    parameters = list(trainable(module).values())
    optimizer = torch.optim.AdamW(
        parameters, lr=1.0, betas=setting.BETAS, eps=setting.EPS, weight_decay=setting.DECAY
    )
    # The scheduler counts the updates that have been made, this rate those that will have been.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: rate(kind, done + 1))
    evaluation = [_evaluate(module)]
    losses, norms = [], []
    for _ in range(setting.EPOCHS):
        for update in setting.updates():
            batches = [_batch(rows) for rows in update]
            count = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
            loss = 0.0
            for batch in batches:
                part = _summed_loss(module, batch) / count
                part.backward()
                loss += part.item()
            norm = torch.nn.utils.clip_grad_norm_(parameters, setting.LIMIT[model, kind])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss)
            norms.append(norm.item())
    evaluation.append(_evaluate(module))
    moved = displacement(model, kind, _final(module))
    return Trajectory(np.array(losses), np.array(norms), np.array(evaluation), moved)


def rate(kind: str, update: int) -> float:
    """Return the learning rate of an update, the first being 1."""
    peak = setting.PEAK[kind]
    if update < setting.WARMUP:
        return peak * update / setting.WARMUP
    lowest = setting.MIN_RATIO * peak
    done = min((update - setting.WARMUP) / (setting.UPDATES - setting.WARMUP), 1.0)
    return lowest + (peak - lowest) * (1 + math.cos(math.pi * done)) / 2


def _batch(numbers: list[int]) -> dict[str, Any]:
    """Return rows padded to the longest, as a Hugging Face collator does it."""
    rows = [setting.rows()[i] for i in numbers]
    width = max(len(row["input_ids"]) for row in rows)

    def padded(values: list[list[int]], filler: int) -> Any:
        return torch.tensor([row + [filler] * (width - len(row)) for row in values])

    return {
        "input_ids": padded([row["input_ids"] for row in rows], 0),
        "labels": padded([row["labels"] for row in rows], -100),
        "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
    }


def _summed_loss(module: Any, batch: dict[str, Any]) -> Any:
    logits = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1),
        batch["labels"][:, 1:].flatten(),
        reduction="sum",
        ignore_index=-100,
        label_smoothing=setting.SMOOTHING,
    )


def _evaluate(module: Any) -> float:
    batch = _batch(list(range(setting.ROWS)))
    with torch.no_grad():
        total = _summed_loss(module, batch).item()
    return total / int((batch["labels"][:, 1:] != -100).sum())


def _final(module: Any) -> dict[str, np.ndarray]:
    return {
        ours(name): (p.T if _is_turned(name) else p).detach().double().contiguous().numpy().copy()
        for name, p in trainable(module).items()
    }
