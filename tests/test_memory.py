"""Facts about the memory table and the device's readings."""

from __future__ import annotations

import itertools

import attrs
import mlx.core as mx
import pytest

from mlxfn.memory import GB, Shape, Workload, estimate, readings, shape_of

LLAMA_7B = Shape(4096, 32, 14336, 32, 8, 128, 32768)
ALL = frozenset({"attention", "output", "mlp", "down"})
WORK = Workload(
    base_bytes=14_500_000_000,
    trainable=8_000_000,
    batch_size=2,
    length=2048,
    dtype_bytes=2,
    chunk=1024,
    fused_attention=True,
)


def needs(shape=LLAMA_7B, remat="none", lean="none", **changes):
    return estimate(shape, attrs.evolve(WORK, **changes), remat=remat, lean=lean)


def test_the_fixed_parts_are_counted_exactly():
    """fp32 masters, their gradients and two moments each: 32 MB, 32 MB and 64 MB of the source."""
    table = needs(data_tokens=1_000_000)
    assert table.base == 14_500_000_000
    assert table.adapter == table.gradients == 32_000_000
    assert table.optimizer == 64_000_000
    assert table.data == 8_000_000
    assert table.total == sum(attrs.astuple(table))


@pytest.mark.parametrize(
    ("change", "larger"),
    [
        ({"batch_size": 4}, "activations"),
        ({"length": 4096}, "working"),
        ({"dtype_bytes": 4}, "activations"),
        ({"accumulation": 4}, "gradients"),
        ({"moments": 3}, "optimizer"),
        ({"trainable": 10**9}, "adapter"),
        ({"chunk": 0}, "logits"),
        ({"fused_attention": False}, "activations"),
        ({"inputs": frozenset({"attention", "mlp", "output", "down"})}, "activations"),
        ({"unpacked": True}, "working"),
        ({"run_ahead": 10**9}, "run_ahead"),
    ],
)
def test_more_work_needs_more_memory(change, larger):
    """The plan compares settings, so each has to move its own line in the right direction."""
    before, after = needs(), needs(**change)
    assert getattr(after, larger) > getattr(before, larger)
    assert after.total > before.total


def test_each_recomputed_layer_saves_memory_but_one_layer_stays():
    """With every layer recomputed, the inputs of all and the inside of one are left."""
    tables = [needs(remat=n) for n in range(34)]
    assert all(a.activations > b.activations for a, b in itertools.pairwise(tables[:33]))
    assert tables[32] == tables[33] == needs(remat="all")
    assert tables[32].activations == 32 * 4096 * WORK.tokens * 2
    assert tables[32].working > tables[0].working


def test_every_saving_saves():
    """Lean blocks, recomputed MLPs and recomputed layers keep less and less."""
    ways = [("none", "none"), ("none", "mlp"), ("none", "all"), ("mlp", "all"), ("all", "all")]
    totals = [needs(remat=remat, lean=lean).total for remat, lean in ways]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == len(totals)


def test_experts_are_not_made_lean():
    """Their blocks stay as they are, so their activations have to be counted."""
    sparse = attrs.evolve(LLAMA_7B, experts=2)
    assert needs(sparse, lean="mlp") == needs(sparse)
    assert needs(lean="mlp") != needs()


@pytest.mark.parametrize(
    ("measured_gb", "table"),
    [
        (30.35, lambda: needs(lean="mlp", run_ahead=2_970_000_000)),
        (
            32.05,
            lambda: needs(lean="mlp", run_ahead=2_970_000_000, inputs=ALL, trainable=42_000_000),
        ),
        (
            20.86,
            lambda: needs(
                lean="mlp", run_ahead=2_970_000_000, base_bytes=4_077_000_000, unpacked=True
            ),
        ),
        (
            19.77,
            lambda: needs(
                lean="all", run_ahead=2_970_000_000, base_bytes=4_077_000_000, unpacked=True
            ),
        ),
        (
            13.47,
            lambda: needs(
                remat="mlp",
                lean="all",
                run_ahead=2_970_000_000,
                base_bytes=4_077_000_000,
                unpacked=True,
            ),
        ),
    ],
)
def test_seven_billion_parameters_take_what_was_measured(measured_gb, table):
    """On an H200, 2 x 2048 tokens: the table is within a tenth of the measured peak."""
    assert table().total == pytest.approx(measured_gb * GB, rel=0.1)


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
