"""Batches: padding that nothing learns from, ids that the model has."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn.data.collate import check_ids, collate
from mlxfn.errors import DataError
from tests.data.helpers import VOCAB, lengths, rows_of


@given(sizes=lengths, extra_rows=st.integers(0, 3), extra=st.integers(0, 9))
def test_padding_is_never_a_target(sizes, extra_rows, extra):
    """One padded target per row is what a loss that counts up to the length gets wrong."""
    rows = rows_of(sizes)
    documents = [[rows.row(i)] for i in range(len(rows))]
    batch = collate(documents, len(rows) + extra_rows, max(sizes) + extra)
    real = batch.segments > 0
    assert real.sum() == sum(sizes)
    assert (batch.labels[~real] == -100).all()
    assert (batch.labels != -100).sum() == (rows.labels != -100).sum()
    assert (batch.tokens[~real] == 0).all()


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_packed_documents_are_numbered_and_contiguous(sizes):
    """Attention is masked by these numbers: a gap or a swap would let documents see each other."""
    rows = rows_of(sizes)
    batch = collate([[rows.row(i) for i in range(len(sizes))]], 2, sum(sizes) + 3)
    expected = np.repeat(np.arange(1, len(sizes) + 1), sizes)
    assert batch.segments[0].tolist() == [*expected.tolist(), 0, 0, 0]
    assert batch.tokens[0, : sum(sizes)].tolist() == rows.tokens.tolist()
    assert batch.labels[0, : sum(sizes)].tolist() == rows.labels.tolist()
    assert not batch.segments[1].any()


def test_batches_are_int32_of_one_shape():
    """Another dtype or shape would compile another step."""
    for part in collate([[rows_of([3]).row(0)]], 4, 8):
        assert (part.dtype, part.shape) == (np.int32, (4, 8))


@pytest.mark.parametrize(("rows", "length"), [(3, 8), (2, 4)])
def test_what_does_not_fit_is_refused(rows, length):
    """It would be cut silently, or overwrite a neighbour."""
    data = rows_of([5] * rows)
    with pytest.raises(ValueError, match=r"does not fit|do not fit"):
        collate([[data.row(i)] for i in range(rows)], 2, length)


@pytest.mark.parametrize(
    ("part", "value", "name"),
    [
        ("tokens", -1, "token"),
        ("tokens", VOCAB, "token"),
        ("tokens", -100, "token"),
        ("labels", -1, "label"),
        ("labels", VOCAB, "label"),
    ],
)
def test_ids_the_model_does_not_have_never_reach_it(part, value, name):
    """MLX does not check: such an id reads or writes outside the array."""
    batch = collate([[rows_of([5]).row(0)]], 1, 8)
    check_ids(batch, VOCAB)
    getattr(batch, part)[0, 4] = value
    with pytest.raises(DataError, match=f"a {name} id is outside") as caught:
        check_ids(batch, VOCAB, where="batch 3")
    assert (caught.value.where, caught.value.got) == ("batch 3, at [0, 4]", value)
