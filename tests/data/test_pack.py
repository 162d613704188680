"""Packing: every row once, no line over its length, first fit, and lines joined to packs."""

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn.data.buckets import pack_buckets
from mlxfn.data.collate import in_lines
from mlxfn.data.encode import EncodedRow
from mlxfn.data.pack import capacity_for, line_lengths, pack
from mlxfn.errors import DataError
from tests.data.helpers import lengths

capacities = st.integers(40, 120)


@st.composite
def rows_and_lines(draw):
    """Draw rows, and one to four lengths of lines, the longest of which is the capacity."""
    shortest, count = draw(st.integers(3, 30)), draw(st.integers(1, 4))
    lines = [shortest * 2**number for number in range(count)]
    short = st.integers(1, shortest)  # most rows, so that packs of every length occur
    row = st.one_of(short, short, st.integers(1, lines[-1]))
    return draw(st.lists(row, min_size=1, max_size=80)), lines


def laid_out(rows, members, length):
    """Return the lengths of the rows in each line of a pack, as batches have them."""
    documents = [EncodedRow(*[np.zeros(rows[row], np.int32)] * 2) for row in members]
    return [[len(document.tokens) for document in line] for line in in_lines(documents, length)]


@given(drawn=rows_and_lines())
def test_every_row_is_in_exactly_one_pack_whose_lines_hold_it(drawn):
    """Lost rows are lost data; a line too many would not fit its batch."""
    rows, lines = drawn
    packs = pack(rows, lines[-1], lines=lines)
    assert sorted(row for members in packs for row in members) == list(range(len(rows)))
    for members, size in zip(packs, packs.sizes.tolist(), strict=True):
        assert size in lines[:-1] or lines[-1] // 2 < size <= lines[-1]
        found = laid_out(rows, members, size)
        assert len(found) <= lines[-1] // size
        assert all(sum(line) <= size for line in found)


@given(drawn=rows_and_lines(), count=st.integers(1, 8))
def test_a_pack_fits_every_shape_of_longer_lines(drawn, count):
    """Packs of several lengths share a batch, which has lines for the longest."""
    rows, lines = drawn
    packs = pack(rows, lines[-1], lines=lines)
    buckets = pack_buckets(packs.sizes, packs.capacity, count).tolist()
    assert len(buckets) <= count
    assert packs.sizes.max() <= buckets[-1] <= lines[-1]
    for members, size in zip(packs, packs.sizes.tolist(), strict=True):
        for length in (length for length in lines + buckets if length >= size):
            assert len(laid_out(rows, members, length)) <= lines[-1] // length


@given(drawn=rows_and_lines())
def test_it_is_first_fit_by_falling_length_and_lines_are_joined_from_the_shortest(drawn):
    """Against the obvious program, which looks at every line and holds lists."""
    rows, lines = drawn
    opened: list[tuple[int, list[int]]] = []
    for row in sorted(range(len(rows)), key=lambda row: (-rows[row], row)):
        fits = (m for top, m in opened if sum(rows[r] for r in m) + rows[row] <= top)
        members = next(fits, None)
        if members is None:
            members = []
            opened.append((next(length for length in lines if length >= rows[row]), members))
        members.append(row)
    packs, carried = [], []
    for length in lines:
        entries = sorted(carried + [sorted(m) for top, m in opened if top == length])
        in_pack = lines[-1] // length
        while len(entries) >= in_pack:
            packs.append(tuple(chain(*entries[:in_pack])))
            entries = entries[in_pack:]
        carried = [sorted(chain(*entries[at : at + 2])) for at in range(0, len(entries), 2)]
    assert list(pack(rows, lines[-1], lines=lines)) == sorted(packs)


@given(rows=lengths, capacity=capacities)
def test_with_lines_of_one_length_it_is_plain_first_fit(rows, capacity):
    """A pack is a row then, and nothing is joined."""
    packs: list[list[int]] = []
    for row in sorted(range(len(rows)), key=lambda row: (-rows[row], row)):
        fits = (p for p in packs if sum(rows[r] for r in p) + rows[row] <= capacity)
        members = next(fits, None)
        if members is None:
            packs.append(members := [])
        members.append(row)
    made = pack(np.array(rows), capacity, lines=[capacity])
    assert list(made) == sorted(tuple(sorted(p)) for p in packs)


def test_packs_are_in_file_order():
    """Without shuffling, the file is read roughly from top to bottom."""
    assert list(pack([5, 6, 5, 2, 2], 8)) == [(0, 4), (1, 3), (2,)]
    assert list(pack([4, 8, 3, 1, 4], 8, lines=[4, 8])) == [(0, 2, 3), (1,), (4,)]


def test_a_row_over_the_capacity_is_refused():
    """It must be cut on purpose, before."""
    with pytest.raises(DataError, match="longer than a packed row"):
        pack([3, 9], 8)


def test_nothing_packs_into_nothing():
    """The border cases of the tree of maxima."""
    assert list(pack([], 8)) == []
    assert list(pack([8], 8)) == [(0,)]
    assert list(pack([], 512)) == []


@given(drawn=rows_and_lines(), window=st.integers(1, 20))
def test_what_comes_later_does_not_change_what_was_packed(drawn, window):
    """A window is packed alone, so that ten million rows are packed as they stream by."""
    rows, lines = drawn
    whole = list(pack(rows, lines[-1], window=window, lines=lines))
    parts = [
        tuple(start + row for row in members)
        for start in range(0, len(rows), window)
        for members in pack(rows[start : start + window], lines[-1], lines=lines)
    ]
    assert whole == parts


@pytest.mark.parametrize("first", [60, 390])
def test_the_lengths_of_lines_are_those_for_the_first_window(first):
    """Later rows are not looked at before the first ones are packed."""
    rows = np.array([first] * 40 + [450 - first] * 40)
    whole = pack(rows, 512, window=40)
    assert list(whole) == list(pack(rows, 512, window=40, lines=line_lengths(rows[:40], 512)))
    assert whole.sizes[0] == {60: 64, 390: 390}[first]


@given(
    rows=st.lists(st.integers(1, 240), min_size=1, max_size=60),
    capacity=st.sampled_from([240, 250, 256, 320]),
)
def test_lines_are_of_the_lengths_that_cost_least(rows, capacity):
    """Against every choice there is; a position costs more in a longer line."""
    lines = line_lengths(np.array(rows), capacity, shortest=16).tolist()
    assert lines[-1] == capacity
    assert lines[0] >= 16
    assert all(b == 2 * a for a, b in pairwise(lines))
    costs = {}
    for count in range(6):
        if (capacity >> count) << count == capacity and capacity >> count >= 16:
            sizes = pack(rows, capacity, lines=[capacity >> n for n in range(count, -1, -1)]).sizes
            costs[count + 1] = sum(
                (capacity if size <= capacity // 2 else size) * (1 + size / 2048)
                for size in sizes.tolist()
            )
    assert costs[len(lines)] == pytest.approx(min(costs.values()))


def test_rows_alike_need_the_lines_that_hold_them():
    """Short rows take short lines; long ones none that nothing would fill."""
    assert line_lengths(np.array([60] * 640), 512).tolist() == [64, 128, 256, 512]
    assert line_lengths(np.array([500] * 640), 512).tolist() == [512]
    assert line_lengths(np.array([60] * 640), 510).tolist() == [255, 510]


def test_packs_know_what_they_use():
    """Their sizes decide which shape of batches they need."""
    packs = pack([5, 6, 5, 2, 2], 8)
    assert (packs.sizes.tolist(), packs.capacity) == ([7, 8, 5], 8)
    with pytest.raises(IndexError):
        packs[3]
    assert pack([4, 4, 8, 2], 8, lines=[4, 8]).sizes.tolist() == [4, 8, 5]


@given(tokens=st.integers(1, 10**6), most=st.integers(1, 4096))
def test_a_small_data_set_has_a_capacity_of_its_own(tokens, most):
    """A pack of 2,048 positions for 300 would be padding; the lines of a smaller one are halves."""
    capacity = capacity_for(tokens, most)
    assert min(tokens, most) <= capacity <= most
    assert capacity - tokens <= max(7, tokens / 64)
    if capacity < most and capacity >= 128:
        assert 64 <= line_lengths(np.array([1] * capacity), capacity)[0] < 128


def test_lognormal_rows_leave_little_empty_in_lines_of_half_the_length():
    """Median 60, at most 512: the rows that padding costs most."""
    rows = np.random.default_rng(0).lognormal(np.log(60), 0.8, 5000).astype(int).clip(2, 512)
    packs = pack(rows, 512)
    sizes = packs.sizes.astype(int)
    positions = 512 // sizes * sizes
    assert 1 - rows.sum() / positions.sum() < 0.01
    assert (positions * sizes).sum() / positions.sum() < 260
    assert len(packs) < 1.01 * len(pack(rows, 512, lines=[512]))
