"""Retention: the newest and the protected stay, everything else goes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn.checkpoint.retention import to_remove

steps = st.sets(st.integers(0, 60))
keeps = st.integers(1, 70)


@given(steps, keeps, steps)
def test_the_newest_and_the_protected_are_never_removed(present, keep, protected):
    """The best checkpoint deleted by the clean-up is a bug that real trainers have shipped."""
    removed = to_remove(present, keep, protected)
    assert not set(removed) & set(sorted(present)[-keep:])
    assert not set(removed) & protected


@given(steps, keeps, steps)
def test_everything_else_is_removed_oldest_first(present, keep, protected):
    """A disk that fills up although only n checkpoints were asked for is a lost run too."""
    removed = to_remove(present, keep, protected)
    assert set(removed) == present - set(sorted(present)[-keep:]) - protected
    assert removed == sorted(removed)


@given(steps, keeps, steps)
def test_removing_twice_removes_nothing_more(present, keep, protected):
    """A kill between two removals is finished by the next save, and nothing else happens."""
    left = present - set(to_remove(present, keep, protected))
    assert to_remove(left, keep, protected) == []


@pytest.mark.parametrize("keep", [0, -1])
def test_keeping_none_is_refused(keep):
    """`steps[:-0]` is everything or nothing, depending on who reads it: ask for at least one."""
    with pytest.raises(ValueError, match="at least 1"):
        to_remove([1], keep)
