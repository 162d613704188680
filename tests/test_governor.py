"""The governor: what it decides, what MLX then does, and that no bit depends on it."""

from __future__ import annotations

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlxfn as mf
from mlxfn import governor, memory
from mlxfn.governor import Governor, Limits, governed, judge_buffers, limits_for, should_clear
from mlxfn.memory import Readings
from tests.support.runs import Collect, small_config

MB = 10**6


def limits() -> tuple[int, int]:
    """Return MLX's limits of active memory and of the cache, which are told when they are set."""
    found = mx.set_memory_limit(MB), mx.set_cache_limit(MB)
    mx.set_memory_limit(found[0])
    mx.set_cache_limit(found[1])
    return found


# What it decides


@given(st.floats(0.0, 1e4), st.integers(0, 10**13), st.integers(0, 10**13), st.integers(0, 10**13))
def test_no_limit_is_over_the_budget_or_over_mlxs_own(budget, own, cache, recommended):
    """MLX's own limits keep the machine usable; a budget only lowers them."""
    found = limits_for(budget, before=Limits(own, cache, 0), recommended=recommended)
    assert found.memory <= min(own, budget * memory.GB)
    assert found.cache <= min(cache, budget * memory.GB)
    assert found.wired <= min(recommended, budget * memory.GB)


def test_the_cache_is_cleared_by_its_share_of_what_arrays_leave():
    """A cache that fits is what makes the next update's allocations cheap."""
    assert not should_clear(Readings(4.0, 8.0, 3.5), 8.0)
    assert should_clear(Readings(4.0, 8.0, 3.7), 8.0)
    assert not should_clear(Readings(4.0, 8.0, 3.7), 9.0)
    assert not should_clear(Readings(9.0, 9.0, 0.0), 8.0)  # nothing there to be cleared
    assert should_clear(Readings(9.0, 9.0, 0.1), 8.0)


def test_a_peak_is_told_when_it_is_near_and_when_it_is_over_each_once(monkeypatch):
    """Ten thousand warnings hide the one that counts."""
    peaks = iter([7.0, 7.3, 7.9, 8.1, 9.0])
    monkeypatch.setattr(memory, "readings", lambda: Readings(1.0, next(peaks), 0.0))
    watching = Governor(8.0)
    told = [[notice.kind for notice in watching.look()] for _ in range(5)]
    assert told == [[], ["memory_near"], [], ["memory_over"], []]


def test_the_remedy_is_in_the_message():
    """Which settings make it less is what is asked next."""
    notice = governor.judge_peak(Readings(1.0, 9.0, 0.0), 8.0)
    assert notice is not None
    for text in ("9.00 GB", "8.00 GB", "data.batch_size", "train.remat", "quantize_bits"):
        assert text in notice.message


def test_buffers_are_judged_only_where_the_device_has_a_limit(monkeypatch):
    """Metal ends the process when they run out; CUDA and the CPU have no such number."""
    assert judge_buffers(10**9, 0) is None
    assert judge_buffers(249_500, 499_000) is None
    watching = Governor(8.0)
    monkeypatch.setattr(governor, "_device", {"resource_limit": 7}.__getitem__)
    watching.expect({"a": mx.zeros(1), "b": [mx.zeros(1), mx.zeros(1)]})
    assert watching.look() == []
    watching.expect({"a": mx.zeros(1), "b": [mx.zeros(1)]}, {"c": (mx.zeros(1), mx.zeros(1))})
    assert [notice.kind for notice in watching.look()] == ["buffers_near"]
    assert watching.look() == []


# What MLX does


def test_the_limits_hold_in_the_block_and_are_put_back_after_it():
    """A library that changes the process for good is a surprise for whatever runs after it."""
    before = limits()
    with governed(0.25) as watching:
        assert watching.budget_gb == 0.25
        assert limits() == (240 * MB, min(before[1], 250 * MB))
    assert limits() == before
    with pytest.raises(KeyError), governed(0.25):
        raise KeyError
    assert limits() == before


def test_without_a_budget_nearly_all_that_is_there_may_be_used(monkeypatch):
    """Run-ahead is what keeps a device busy: nobody who has not asked for less gets less."""
    before = limits()
    with governed("auto") as watching:
        assert watching.budget_gb == governor.ROOM * memory.device_memory_gb()
        assert limits()[0] == min(
            before[0], int(governor.LIMIT * int(watching.budget_gb * memory.GB))
        )
    monkeypatch.setattr(memory, "device_memory_gb", lambda: 2.0)  # a small container
    with governed("auto"):
        assert limits()[0] == 1728 * MB
    assert limits() == before


def test_the_cache_of_freed_arrays_is_given_back():
    """Freed arrays count as used for everybody else on the machine."""
    with governed("auto") as roomy:
        held = [mx.full((n,), 1.0) for n in range(1000, 2000, 10)]
        mx.eval(held)
        del held
        kept = mx.get_cache_memory()
        assert kept > 100_000
        roomy.look()
        assert mx.get_cache_memory() == kept
        Governor(budget_gb=kept / memory.GB).look()
        assert mx.get_cache_memory() < kept / 10


def test_the_peak_is_that_of_the_run():
    """What the process did before is no reason to warn."""
    mx.eval(mx.zeros((4 * MB,)))
    with governed("auto"):
        assert memory.readings().peak_gb < 0.016
        mx.eval(mx.zeros((5 * MB,)))
        assert memory.readings().peak_gb >= 0.02


# What a run sees of it


def test_no_bit_of_a_run_depends_on_its_budget(tmp_path, monkeypatch):
    """The limits say when, never what: with a byte each, every operation waits for the last."""
    seen = Collect()
    whole = mf.train(small_config(tmp_path / "whole"))
    monkeypatch.setattr(governor, "limits_for", lambda *_, **__: Limits(1, 1, 0))
    monkeypatch.setattr(governor, "should_clear", lambda *_: True)
    before = limits()
    tight = mf.train(small_config(tmp_path / "tight"), sinks=[seen])
    assert limits() == before
    assert tight.history == whole.history
    for name in ("adapters/adapters.safetensors", "best/adapters.safetensors"):
        assert (tmp_path / "tight" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert seen.of("verdict") == []


def test_a_run_that_passes_its_budget_says_so_once_and_goes_on(tmp_path, monkeypatch):
    """An estimate may be wrong; the device is not."""
    monkeypatch.setattr("mlxfn.run.governed", lambda _: governed(1e-4))
    seen = Collect()
    result = mf.train(small_config(tmp_path), sinks=[seen])
    assert result.exit_code == 0
    (told,) = seen.of("verdict")
    assert (told["kind"], told["update"]) == ("memory_over", 1)


def test_tokens_are_counted_with_their_prompts_and_as_targets(tmp_path):
    """Tokens per second mean nothing as long as nobody says which tokens; padding is none."""
    seen = Collect()
    config = small_config(tmp_path, train__num_epochs=1)
    result = mf.train(config, sinks=[seen])
    steps = seen.of("step")
    (start,) = seen.of("start")
    data = start["run"]["data"]["train"]
    assert sum(step["real_tokens"] for step in steps) == data["tokens"]
    assert sum(step["tokens"] for step in steps) == data["label_tokens"] == result.tokens
    assert result.real_tokens_per_s > result.tokens_per_s > 0
    for step in steps:
        assert step["real_tokens_per_s"] == pytest.approx(step["real_tokens"] / step["step_time_s"])
