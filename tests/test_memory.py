"""Facts about the memory table and the device's readings."""

from __future__ import annotations

import itertools

import mlx.core as mx
import pytest

from mlxfn.memory import Shape, activation_values, estimate, readings, shape_of

LLAMA_7B = Shape(4096, 32, 14336, 32, 8, 128, 32768)
COMMON = {
    "base_bytes": 14_500_000_000,
    "trainable": 8_000_000,
    "batch_size": 2,
    "length": 2048,
    "dtype_bytes": 2,
}


def test_the_fixed_parts_are_counted_exactly():
    """fp32 masters, their gradients and two moments each: 32 MB, 32 MB and 64 MB of the source."""
    table = estimate(LLAMA_7B, **COMMON, data_tokens=1_000_000)
    assert table.base == 14_500_000_000
    assert table.adapter == table.gradients == 32_000_000
    assert table.optimizer == 64_000_000
    assert table.logits == 4096 * 32768 * 10
    assert table.data == 8_000_000
    assert table.total == sum(
        getattr(table, name)
        for name in (
            "base",
            "adapter",
            "optimizer",
            "gradients",
            "activations",
            "logits",
            "data",
            "overhead",
        )
    )


@pytest.mark.parametrize(
    ("change", "larger"),
    [
        ({"batch_size": 4}, "activations"),
        ({"length": 4096}, "logits"),
        ({"dtype_bytes": 4}, "activations"),
        ({"accumulation": 4}, "gradients"),
        ({"moments": 3}, "optimizer"),
        ({"trainable": 10**9}, "adapter"),
    ],
)
def test_more_work_needs_more_memory(change, larger):
    """The plan compares settings, so each has to move its own line in the right direction."""
    before, after = estimate(LLAMA_7B, **COMMON), estimate(LLAMA_7B, **{**COMMON, **change})
    assert getattr(after, larger) > getattr(before, larger)
    assert after.total > before.total


def test_each_recomputed_layer_saves_memory_but_one_layer_stays():
    """With every layer recomputed, the inputs of all and the inside of one are left."""
    values = [activation_values(LLAMA_7B, n) for n in range(34)]
    assert all(a > b for a, b in itertools.pairwise(values[1:33]))
    assert values[32] == values[33]
    inside = values[0] // 32
    assert values[32] == 32 * 4096 + inside


def test_the_source_documents_seven_billion_model_fits_as_measured():
    """47.0 GB was measured for mlx-lm and 43.6 for the prototype; within a quarter of those."""
    total = estimate(LLAMA_7B, **COMMON).total
    assert 0.75 * 43.6e9 < total < 1.25 * 47.0e9


def test_sizes_are_read_from_a_config():
    """Also from the text part of a multimodal one, and with GPT-2's names."""
    nested = {"text_config": {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}}
    assert shape_of(nested, 10) == Shape(8, 3, 32, 2, 2, 4, 10)
    old = {"n_embd": 8, "n_layer": 3, "n_head": 2}
    assert shape_of(old, 10) == Shape(8, 3, 32, 2, 2, 4, 10)
    experts = {"hidden_size": 8, "moe_intermediate_size": 16, "num_experts_per_tok": 4}
    assert shape_of(experts, 10).intermediate == 64


def test_readings_follow_the_device():
    """In units of 1e9 bytes, as they are printed."""
    before = readings()
    held = mx.zeros(25_000_000)
    mx.eval(held)
    after = readings()
    assert after.active_gb - before.active_gb == pytest.approx(0.1, abs=0.01)
    assert after.peak_gb >= after.active_gb
    del held
    mx.clear_cache()
    assert readings().cache_gb == 0
