"""The laws of schedules, for every row of the table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn.testing import laws
from mlxfn.testing.strategies import schedules
from mlxfn.transforms import SCHEDULES
from tests.laws.families import RATES, many

each = pytest.mark.parametrize("name", RATES)
drawn = {"data": st.data()}


def draw(data, name):
    return data.draw(schedules(name, table=RATES, longest=24))


def test_every_schedule_of_the_library_has_its_row():
    """Without a row a new schedule would escape every law."""
    assert SCHEDULES.keys() <= RATES.keys()


@each
@many
@given(**drawn)
def test_rates_are_bounded(name, data):
    """warmup 0, warmup = total, warmup > total and total = 1 are all defined."""
    run = draw(data, name)
    laws.schedule_is_bounded(run.schedule, peak=run.peak, total=run.total)


@each
@many
@given(**drawn)
def test_every_update_counts(name, data):
    """A first update at rate 0 is an update thrown away; only an end meant to be 0 is one."""
    run = draw(data, name)
    last = run.total if run.min_ratio else max(run.warmup, run.total - 1)
    laws.schedule_counts(run.schedule, total=last)


@each
@many
@given(**drawn)
def test_rates_are_continuous(name, data):
    """A jump where warmup and decay join trains one update at a rate nobody asked for."""
    run = draw(data, name)
    laws.schedule_is_continuous(run.schedule, peak=run.peak, warmup=run.warmup, total=run.total)


@each
@many
@given(**drawn)
def test_rates_stay_at_the_end(name, data):
    """A cosine that is not held rises again after the last update."""
    run = draw(data, name)
    laws.schedule_ends(run.schedule, warmup=run.warmup, total=run.total)


@each
@many
@given(**drawn)
def test_the_warmup_is_linear_and_ends_at_the_peak(name, data):
    """The peak is neither missed nor repeated where the parts join."""
    run = draw(data, name)
    laws.schedule_warms_up(run.schedule, peak=run.peak, warmup=run.warmup)


@each
@many
@given(number=st.integers(1, 2**31 - 1), **drawn)
def test_rates_are_fp32_scalars(name, data, number):
    """A Python float would retrace the compiled step at every update."""
    laws.schedule_is_traceable(draw(data, name).schedule, number=number)
