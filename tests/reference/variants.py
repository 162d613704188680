"""Trainers that are wrong in one thing each; every one of them has been seen in the field."""

from __future__ import annotations

from functools import partial
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim

import mlxfn as mf
from mlxfn import tree
from mlxfn.data.collate import HostBatch
from mlxfn.models.dora import DoRALinear, adapted_norms
from mlxfn.models.quantized import times_weight
from mlxfn.state import ApplyFn, LossFn
from mlxfn.transforms import Accumulated
from tests.reference import setting
from tests.reference.ours import Trainer, adapt, load, rate, smoothed, transform


def without_correction(model: str, kind: str) -> mf.Transform:
    """Take mlx's AdamW as it is by default."""

    def make() -> optim.Optimizer:
        return optim.AdamW(0.0, list(setting.BETAS), setting.EPS, setting.DECAY)

    clip = mf.clip_by_global_norm(setting.LIMIT[model, kind])
    return mf.chain(clip, mf.lift(make, rate(kind)))


def always_rescaled(model: str, kind: str) -> mf.Transform:
    """Bring every gradient to the limit, one below it too."""

    def update(grads: Any, state: Any, _: Any) -> tuple[Any, Any]:
        factor = setting.LIMIT[model, kind] / (tree.global_norm(grads) + 1e-6)
        return tree.scale(grads, factor), state

    return transform(model, kind, clip=mf.Transform(lambda _: {}, update))


def one_update_late(model: str, kind: str) -> mf.Transform:
    """Count the updates from 0, so that the first has the rate 0."""
    return transform(model, kind, schedule=lambda number: rate(kind)(number - 1))


def unclipped(model: str, kind: str) -> mf.Transform:
    """Leave the gradient of the update as it is."""
    return transform(model, kind, clip=mf.identity())


def clipped_alone(limit: float, so_far: Accumulated, alone: Accumulated) -> Accumulated:
    """Clip the mean gradient of every micro-batch."""
    clip = mf.clip_by_global_norm(limit)
    clipped, _ = clip.update(alone.mean()[0], {}, {})
    return plus(so_far, Accumulated(tree.scale(clipped, alone.loss.weight), alone.loss))


def rounded(so_far: Accumulated, alone: Accumulated) -> Accumulated:
    """Keep the sum of gradients in bfloat16."""
    total = plus(so_far, alone)
    return total._replace(grads=tree.cast(tree.cast(total.grads, mx.bfloat16), mx.float32))


def plus(a: Accumulated, b: Accumulated) -> Accumulated:
    """Return the sums of both."""
    loss = mf.Weighted(a.loss.total + b.loss.total, a.loss.weight + b.loss.weight)
    return Accumulated(tree.add(a.grads, b.grads), loss)


def mean_of_means(apply: ApplyFn) -> LossFn:
    """Give every micro-batch one weight, however many targets it has."""
    right = smoothed(apply)
    return lambda *arguments: mf.Weighted(right(*arguments).mean(), mx.array(1.0))


def smoothed_over_the_others(apply: ApplyFn) -> LossFn:
    """Spread the smoothing over the V - 1 tokens that are not the target."""
    share, size = setting.SMOOTHING, setting.VOCAB

    def loss_fn(params: Any, batch: mf.Batch, key: Any) -> mf.Weighted:
        logits = apply(params, batch, key)
        target, weight = mf.cross_entropy(logits, batch.labels)
        half, _ = mf.cross_entropy(logits, batch.labels, label_smoothing=0.5)
        others = (size * (2 * half - target) - target) / (size - 1)
        return mf.Weighted((1 - share) * target + share * others, weight)

    return loss_fn


def pad_as_target(batch: HostBatch) -> HostBatch:
    """Let every row with padding predict one pad token after its last token."""
    tokens, labels = batch.tokens.copy(), batch.labels.copy()
    for row, length in enumerate((batch.segments > 0).sum(axis=1)):
        if 0 < length < labels.shape[1]:
            tokens[row, length] = labels[row, length - 1]
            labels[row, length] = 0
    return batch._replace(tokens=tokens, labels=labels)


class _Open(DoRALinear):
    """Lets gradients flow through the norm of the adapted rows."""

    def row_norms(self) -> mx.array:
        product = times_weight(self.linear, self.lora_a.T)
        return adapted_norms(self._norms, product, self.lora_a, self.lora_b, self.scale)


def through_the_norm(model: mf.Model, kind: str) -> mf.Adapter:
    """Differentiate what DoRA takes for a constant."""
    adapter = adapt(model, kind)
    for layer in adapter.module.modules():
        if isinstance(layer, DoRALinear):
            layer.__class__ = _Open
    return adapter


LIMIT = setting.LIMIT["llama", "lora"]
WRONG: dict[str, tuple[str, str, Trainer]] = {
    "no bias correction": ("llama", "lora", Trainer(transform=without_correction)),
    "clipping per micro-batch": (
        "llama",
        "lora",
        Trainer(gradients=partial(clipped_alone, LIMIT), transform=unclipped),
    ),
    "no clipping": ("llama", "lora", Trainer(transform=unclipped)),
    "always rescaled to the limit": ("llama", "lora", Trainer(transform=always_rescaled)),
    "mean of micro-batch means": ("llama", "lora", Trainer(loss=mean_of_means)),
    "one pad token per row as a target": ("llama", "lora", Trainer(batch=pad_as_target)),
    "weight decay 0": ("llama", "lora", Trainer(transform=partial(transform, weight_decay=0.0))),
    "weight decay 0.1": ("llama", "lora", Trainer(transform=partial(transform, weight_decay=0.1))),
    "eps 1e-6": ("llama", "lora", Trainer(transform=partial(transform, eps=1e-6))),
    "beta2 0.95": ("llama", "lora", Trainer(transform=partial(transform, betas=(0.9, 0.95)))),
    "rate one update late": ("llama", "lora", Trainer(transform=one_update_late)),
    "scale = alpha": (
        "llama",
        "lora",
        Trainer(adapt=partial(adapt, alpha=setting.ALPHA * setting.RANK)),
    ),
    "smoothing over the other V - 1": ("llama", "lora", Trainer(loss=smoothed_over_the_others)),
    "gradients accumulated in bf16": ("llama", "lora", Trainer(gradients=rounded)),
    "gradient through DoRA's norm": ("llama", "dora", Trainer(adapt=through_the_norm)),
    "no sliding window": ("gemma2", "lora", Trainer(load=partial(load, sliding_window=None))),
    "no soft cap in attention": (
        "gemma2",
        "lora",
        Trainer(load=partial(load, attn_logit_softcapping=1e4)),
    ),
}
"""By name: the model and kind it is shown on, and the trainer."""
