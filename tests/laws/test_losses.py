"""The laws of losses, for every row of the table, on a model that is a table of logits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn import losses
from mlxfn.losses import causal_lm_loss, chunked_causal_lm_loss
from mlxfn.testing import laws
from mlxfn.testing.steps import cut
from mlxfn.testing.strategies import batches, seeds
from mlxfn.testing.toys import bigrams, context, context_params, table
from tests.laws.families import LOSSES, many

V = 7
each = pytest.mark.parametrize("name", LOSSES)
tables = seeds.map(lambda seed: table(V, seed=seed, extreme=1))


def loss_of(name):
    return LOSSES[name].make(bigrams)


def test_every_loss_of_the_library_has_its_row():
    """Without a row a new loss would escape every law."""
    makers = {name for name in losses.__all__ if name.endswith("_loss")}
    assert makers <= {name.split(",")[0] for name in LOSSES}


@each
@many
@given(params=tables, batch=batches(vocab=V))
def test_the_value_is_the_definition_in_float64(name, params, batch):
    """Smoothing spreads over all V classes; over the other V - 1 it is another loss."""
    laws.loss_is_cross_entropy(
        loss_of(name), bigrams, params, batch, label_smoothing=LOSSES[name].label_smoothing
    )


@each
@many
@given(params=tables, batch=batches(vocab=V), columns=st.integers(0, 3), rows=st.integers(0, 2))
def test_padding_changes_nothing(name, params, batch, columns, rows):
    """One padding target per row has been shipped by a trainer that many use."""
    laws.loss_is_invariant_to_padding(
        loss_of(name), params, batch, columns=columns, rows=rows, token=V
    )


@each
@many
@given(params=tables, batch=batches(vocab=V), data=st.data())
def test_the_order_of_rows_changes_nothing(name, params, batch, data):
    """Shuffling within a batch must not be a hyperparameter."""
    order = data.draw(st.permutations(range(batch.tokens.shape[0])))
    laws.loss_is_invariant_to_row_order(loss_of(name), params, batch, order)


@each
@many
@given(params=tables, batch=batches(vocab=V), edges=st.lists(st.integers(1, 3), max_size=3))
def test_the_parts_of_a_batch_add_up(name, params, batch, edges):
    """Sums and weights add; means of parts do not."""
    laws.loss_adds_up(loss_of(name), params, cut(batch, edges))


@each
@many
@given(params=tables, batch=batches(vocab=V))
def test_positions_without_a_label_may_hold_anything(name, params, batch):
    """A gather at -100 reads the wrong class, or memory that is not its own."""
    laws.loss_ignores_unlabelled_positions(loss_of(name), params, batch, V)


@each
@many
@given(params=tables, batch=batches(vocab=V))
def test_nothing_labelled_is_zero(name, params, batch):
    """0 / 0 is NaN, and one such batch would poison a whole validation."""
    laws.loss_of_nothing_is_zero(loss_of(name), params, batch)


@each
@many
@given(params=tables, batch=batches(vocab=V))
def test_the_weight_counts_label_tokens(name, params, batch):
    """Perplexity is per label token, whatever else a batch holds."""
    laws.loss_counts_label_tokens(loss_of(name), params, batch)


@pytest.mark.parametrize("chunked", [False, True])
@many
@given(params=tables, batch=batches(vocab=V))
def test_smoothing_zero_is_cross_entropy(chunked, params, batch):
    """Turning a feature off must turn it off."""

    def make(smoothing):
        if chunked:
            return chunked_causal_lm_loss(
                bigrams, lambda _, rows: rows, chunk_size=4, label_smoothing=smoothing
            )
        return causal_lm_loss(bigrams, label_smoothing=smoothing)

    tolerance = 1e-5 if chunked else 0
    laws.smoothing_zero_is_cross_entropy(make, bigrams, params, batch, tolerance=tolerance)


@many
@given(
    seed=seeds,
    batch=batches(vocab=V, packed=True),
    chunk=st.integers(1, 30),
    smoothing=st.sampled_from([0.0, 0.1]),
)
def test_chunked_equals_full_in_value_and_gradient(seed, batch, chunk, smoothing):
    """Chunks that lose the targets at their borders are the bug of other trainers."""
    params = context_params(V, seed=seed)
    head = table(V, seed=seed + 1)["table"]
    chunked = chunked_causal_lm_loss(
        context(), lambda _, rows: rows @ head, chunk_size=chunk, label_smoothing=smoothing
    )
    full = causal_lm_loss(lambda p, b, key: context()(p, b, key) @ head, label_smoothing=smoothing)
    laws.chunked_equals_full(chunked, full, params, batch)


@each
@many
@given(params=seeds.map(lambda seed: table(V, seed=seed)), batch=batches(vocab=V, labelled=True))
def test_the_gradient_is_the_slope(name, params, batch):
    """The chunked loss takes its gradient in the forward pass: nothing else would notice."""
    laws.gradient_is_right(loss_of(name), params, batch)
