"""Losses: functions of logits and labels that return a sum and a weight."""

from mlxfn.losses.causal_lm import causal_lm_loss, chunked_causal_lm_loss
from mlxfn.losses.chunked import chunked_cross_entropy
from mlxfn.losses.cross_entropy import cross_entropy

__all__ = [
    "causal_lm_loss",
    "chunked_causal_lm_loss",
    "chunked_cross_entropy",
    "cross_entropy",
]
