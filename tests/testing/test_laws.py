"""Every law catches what it is for: a broken piece for each, and none without one."""

from __future__ import annotations

import subprocess
import sys

import mlx.core as mx
import pytest

from mlxfn.testing import LawError, fact, laws
from mlxfn.testing.toys import table
from tests.testing.broken import BASE, BATCH, BROKEN, mean_loss

CASES = [(law, number) for law, pieces in BROKEN.items() for number in range(len(pieces))]


@pytest.mark.parametrize(("law", "number"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_a_broken_piece_breaks_its_law(law, number):
    """A law that nothing can break proves nothing."""
    with pytest.raises(LawError):
        BROKEN[law][number](law)


def test_every_law_has_a_broken_piece():
    """Whoever adds a law shows what it catches."""
    tools = {"Fact", "LawError", "close", "distance", "fact", "require", "same"}
    assert {law.__name__ for law in BROKEN} == set(laws.__all__) - tools


def test_a_broken_law_says_what_and_by_how_much():
    """The message is what a person has at three in the morning."""
    with pytest.raises(
        LawError, match=r"3 micro-batches changes the .*difference 0\.\d+"
    ) as caught:
        laws.accumulation_is_independent_of_the_split(mean_loss, table(7), BATCH, [1, 2])
    assert caught.value.figures["difference"] > caught.value.figures["allowed"]
    assert isinstance(caught.value, AssertionError)


def test_nan_is_never_close_to_anything():
    """NaN compares as false: a careless law would hold for everything that is broken enough."""
    nan, one = {"x": mx.array([1.0, float("nan")])}, {"x": mx.array([1.0, 1.0])}
    assert laws.distance(nan, one) == laws.distance(one, nan) == float("inf")
    with pytest.raises(LawError):
        laws.close("they differ", nan, nan, 1e-3)
    assert fact("name", laws.close, "they differ", nan, one, 1.0).holds is False


@pytest.mark.parametrize("other", [{"y": mx.zeros(1)}, {"x": mx.zeros(2)}, {}])
def test_trees_of_another_structure_are_infinitely_far_apart(other):
    """A missing leaf is no small difference."""
    assert laws.distance({"x": mx.zeros(1)}, other) == float("inf")


def test_a_fact_is_a_law_without_the_exception():
    """A table of facts shows every broken law, not only the first."""
    good = fact("they agree", laws.same, "they differ", BASE, BASE, detail="2 arrays")
    assert (good.holds, good.figure, good.detail) == (True, 0.0, "2 arrays")
    bad = fact("they agree", laws.same, "they differ", BASE, {"w": mx.zeros((2, 2))})
    assert not bad.holds
    assert "they differ" in bad.detail


def test_laws_need_no_hypothesis():
    """Users who check their own pieces should not have to install a test library."""
    code = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import mlxfn.testing.laws, mlxfn.testing.toys, mlxfn.testing.verify\n"
        "try:\n    import mlxfn.testing.strategies\n"
        "except ImportError:\n    print('only the strategies do')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "only the strategies do"
