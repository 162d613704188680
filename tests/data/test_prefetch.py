"""The thread: the same stream, its errors at their place, and a clean end."""

import gc
import threading
import weakref
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn.data.prefetch import Prefetch


def alive():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@given(items=st.lists(st.none() | st.integers()), depth=st.integers(0, 4))
def test_the_items_arrive_in_order_and_complete(items, depth):
    """Whatever an item is: None is no end."""
    with Prefetch(iter(items), depth=depth) as stream:
        assert list(stream) == items
        assert list(stream) == []


def test_an_error_is_raised_at_its_place_in_the_stream():
    """What was ready before it is delivered first; then the error, not a hanging queue."""

    def broken():
        yield 1
        yield 2
        raise ValueError("row 3")

    stream = Prefetch(broken())
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(ValueError, match="row 3"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)
    stream.close()
    assert not alive()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_ends_the_thread_in_the_middle_of_an_endless_stream(taken):
    """A thread that lives on would hold the data set and keep the process from ending."""
    stream = Prefetch(count(), depth=2)
    assert [next(stream) for _ in range(taken)] == list(range(taken))
    stream.close()
    assert not alive()
    with pytest.raises(StopIteration):
        next(stream)
    stream.close()


def test_dropping_the_stream_ends_the_thread():
    """Also where nobody closes it, as after an error in the loop."""
    stream = Prefetch(count(), depth=1)
    next(stream)
    gone = weakref.ref(stream)
    del stream
    gc.collect()
    assert gone() is None
    assert not alive()


def test_no_more_is_prepared_than_was_asked_for():
    """Batches prepared ahead are memory."""
    made, asked = [], threading.Event()

    def items():
        for item in count():
            made.append(item)
            if item == 3:
                asked.set()
            yield item

    with Prefetch(items(), depth=2) as stream:
        next(stream)
        assert asked.wait(10)  # one taken, two ready, one in hand
        assert len(made) <= 4
