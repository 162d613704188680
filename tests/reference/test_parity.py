"""mlxfn in float32 against PyTorch, transformers and PEFT in float64, as stored in truth.npz."""

from __future__ import annotations

import numpy as np
import pytest

from mlxfn.tree import flatten
from tests.reference import ours, setting
from tests.reference.trajectory import deviation, truth
from tests.reference.variants import WRONG

combinations = pytest.mark.parametrize(("model", "kind"), setting.COMBINATIONS)


@combinations
def test_every_loss_every_norm_and_the_final_values_are_those_of_float64(model, kind):
    """36 updates of accumulation, clipping, AdamW and schedule: nothing differs but rounding."""
    assert (apart := deviation(ours.RIGHT.run(model, kind), truth(model, kind))).inside(), apart


@pytest.mark.parametrize("name", WRONG)
def test_a_trainer_that_is_wrong_in_one_thing_falls_outside(name):
    """A comparison that everything passes says nothing about the one that did."""
    model, kind, trainer = WRONG[name]
    assert not (apart := deviation(trainer.run(model, kind), truth(model, kind))).inside(), apart


@combinations
def test_clipping_bites_in_some_updates_and_spares_others(model, kind):
    """With all or none clipped, a trainer that always rescales, or never does, would pass."""
    clipped = truth(model, kind).norms > setting.LIMIT[model, kind]
    assert 4 <= clipped.sum() <= setting.UPDATES - 4


@combinations
def test_the_reference_learned_something(model, kind):
    """Two runs that stand still agree as well."""
    before, after = truth(model, kind).evaluation
    assert len(truth(model, kind).losses) == setting.UPDATES
    assert after < 0.9 * before


def test_the_rows_are_ragged_and_the_last_update_of_an_epoch_is_short():
    """Equal lengths make the mean of means right; a full window hides one that is carried over."""
    counts = [sum(label != -100 for label in row["labels"]) for row in setting.rows()]
    assert min(counts) < max(counts) / 4
    windows = [len(update) for update in setting.updates()]
    assert (set(windows[:-1]), windows[-1]) == ({4}, 3)
    assert len(windows) * setting.EPOCHS == setting.UPDATES


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_start_where_those_of_peft_do(kind):
    """With an update of zero, and for DoRA with the norms of the weight's rows."""
    start = setting.start("llama", kind)
    for name, leaf in flatten(ours.adapt(ours.load("llama"), kind).params).items():
        if name.endswith("lora_a"):
            bound = 1 / np.sqrt(leaf.shape[0])
            assert 0.8 * bound < np.abs(np.array(leaf)).max() <= bound
        else:
            np.testing.assert_allclose(np.array(leaf), start[name], rtol=1e-6)
