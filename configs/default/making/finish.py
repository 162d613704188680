"""A second, short round of pretraining on a CPU with MLX, from the folder that exists.

The shipped weights were pretrained before the last skill of `corpus.skill` (answer an unknown
instruction by repeating the text) was thought of; this round taught it. A model pretrained
from scratch with today's table does not need it.
"""

import math
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm import load


def windows(
    data: dict[str, np.ndarray], draw: np.random.Generator, rows: int, length: int = 257
) -> mx.array:
    """int32 [rows, length]: a quarter text, the rest chat from the start of an exchange."""
    starts = data["starts"][data["starts"] < len(data["chat"]) - length]
    chat = draw.choice(starts, rows - rows // 4)
    text = draw.integers(0, len(data["text"]) - length, rows // 4)
    cut = [data["chat"][at : at + length] for at in chat]
    cut += [np.append(np.uint16(0), data["text"][at : at + length - 1]) for at in text]
    return mx.array(np.stack(cut).astype(np.int32))


def finish(
    folder: Path, data: dict[str, np.ndarray], *, updates: int, peak: float = 1.5e-3, rows: int = 16
) -> dict[str, np.ndarray]:
    """Train all weights in fp32; return them by their names without the leading `model.`."""
    model, _ = load(str(folder))
    model.set_dtype(mx.float32)
    model.train()
    optimizer = optim.AdamW(peak, betas=[0.9, 0.98], weight_decay=0.01, bias_correction=True)
    draw = np.random.default_rng(2)

    def loss_of(ids: mx.array) -> mx.array:
        return nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:]).mean()

    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(ids: mx.array) -> mx.array:
        loss, grads = nn.value_and_grad(model, loss_of)(ids)
        optimizer.update(model, optim.clip_grad_norm(grads, 1.0)[0])
        return loss

    for update in range(updates):
        cosine = (1 + math.cos(math.pi * update / updates)) / 2
        optimizer.learning_rate = mx.array(peak * min(1, (update + 1) / 30) * cosine)
        loss = step(windows(data, draw, rows))
        mx.eval(loss, state)
        if update % 25 == 24:
            print(f"update {update + 1} loss {loss.item():.3f}", flush=True)
    weights = tree_flatten(model.parameters())
    return {name.removeprefix("model."): np.array(value) for name, value in weights}
