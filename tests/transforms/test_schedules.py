"""Learning-rate schedules: the rate of every update, at every corner."""

import math

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn.transforms import SCHEDULES, warmup_cosine

runs = st.tuples(st.integers(0, 50), st.integers(1, 200), st.sampled_from([0.0, 0.1, 1.0]))


def rate(schedule, number):
    return schedule(mx.array(number, mx.int32)).item()


@pytest.mark.parametrize("name", SCHEDULES)
@given(run=runs, number=st.integers(1, 400))
def test_rates_are_finite_and_between_zero_and_the_peak(name, run, number):
    """warmup 0, warmup = total, warmup > total and total = 1 are all defined."""
    warmup, total, floor = run
    value = rate(SCHEDULES[name](2.0, warmup=warmup, total=total, min_ratio=floor), number)
    assert math.isfinite(value)
    assert 0.0 <= value <= 2.0 * (1 + 1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
@given(run=runs)
def test_the_first_update_has_a_rate(name, run):
    """A first update at rate 0 is an update thrown away (mlx-lm's schedule starts so)."""
    warmup, total, _ = run
    assert rate(SCHEDULES[name](1.0, warmup=warmup, total=total, min_ratio=0.1), 1) > 0


@pytest.mark.parametrize("name", SCHEDULES)
@given(run=runs, late=st.integers(1, 1000))
def test_the_rate_is_constant_after_the_last_update(name, run, late):
    """A cosine that is not clamped rises again after the end."""
    warmup, total, floor = run
    total = max(total, warmup)
    schedule = SCHEDULES[name](1.0, warmup=warmup, total=total, min_ratio=floor)
    assert rate(schedule, total + late) == rate(schedule, total + 1)


@given(st.integers(1, 50), st.integers(51, 300))
def test_cosine_follows_the_formula_and_touches_the_peak_once(warmup, total):
    """The peak is not repeated where warmup and decay join."""
    schedule = warmup_cosine(1.0, warmup=warmup, total=total)
    rates = [rate(schedule, i) for i in range(1, total + 1)]
    for i, value in enumerate(rates, 1):
        share = (i - warmup) / (total - warmup)
        exact = i / warmup if i < warmup else 0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2
        assert value == pytest.approx(exact, abs=2e-6)
    assert rates.index(max(rates)) == warmup - 1
    assert sum(value >= 1.0 - 1e-9 for value in rates) == 1


@pytest.mark.parametrize(("warmup", "total"), [(-1, 10), (0, 0)])
def test_a_run_of_no_length_is_refused(warmup, total):
    with pytest.raises(ValueError, match="warmup >= 0 and total >= 1"):
        warmup_cosine(1.0, warmup=warmup, total=total)


@pytest.mark.parametrize(("name", "last"), [("cosine", 0.2), ("linear", 0.2), ("constant", 2.0)])
def test_the_last_update_has_the_least_rate(name, last):
    """The floor is a share of the peak, not a rate."""
    schedule = SCHEDULES[name](2.0, warmup=2, total=10, min_ratio=0.1)
    assert rate(schedule, 10) == pytest.approx(last, rel=1e-5)
