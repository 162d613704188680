"""The laws of monitors, for every row of the table."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn.testing import laws
from tests.laws.families import MONITORS, STREAMS, many

each = pytest.mark.parametrize("name", MONITORS)


@each
@many
@given(data=st.data(), cut=st.integers(0, 30))
def test_monitors_are_folds(name, data, cut):
    """A resumed run must stop where the run that was never stopped does."""
    laws.monitor_is_a_fold(MONITORS[name].monitor, data.draw(STREAMS[name]), cut)


@each
@many
@given(data=st.data())
def test_monitors_are_pure(name, data):
    """A state that changes behind a checkpoint's back is saved too late or twice."""
    watch = MONITORS[name]
    laws.monitor_is_pure(watch.monitor, data.draw(STREAMS[name]), data.draw(watch.values))


@each
@many
@given(data=st.data())
def test_no_nan_is_swallowed(name, data):
    """NaN compares as false with everything: a careless comparison lets it pass for ever."""
    watch = MONITORS[name]
    values = data.draw(STREAMS[name])
    laws.monitor_never_swallows_nan(watch.monitor, values, within=watch.within, bad=watch.bad)
