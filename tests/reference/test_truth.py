"""The reference itself: the stored truth is what it computes, and it computes in float64."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from tests.reference import ours, setting, theirs
from tests.reference.trajectory import truth

torch = theirs.torch


@pytest.mark.parametrize(("model", "kind"), setting.COMBINATIONS)
def test_the_stored_truth_is_what_the_reference_computes(model, kind):
    """What is compared with everywhere is made here, and can be made by everyone."""
    live = theirs.train(ours.model_folder(model), model, kind)
    stored = truth(model, kind)
    for field in ("losses", "norms", "evaluation"):
        np.testing.assert_allclose(getattr(live, field), getattr(stored, field), rtol=1e-9)
    for name, moved in live.moved.items():
        np.testing.assert_allclose(moved, stored.moved[name], rtol=1e-6, atol=1e-9)


def logits(model):
    """Return the reference's logits of a few ids, in what transformers calls float64."""
    base = AutoModelForCausalLM.from_pretrained(
        ours.model_folder(model), dtype=torch.float64, attn_implementation="eager"
    )
    with torch.no_grad():
        return base(input_ids=torch.arange(20)[None]).logits


@pytest.mark.parametrize("model", setting.MODELS)
def test_the_truth_is_not_rounded_to_float32_on_the_way(model):
    """transformers computes norms, rotary angles and softmax in float32 in a float64 model."""
    with theirs.precision("float64"):
        exact = logits(model)
    assert exact.dtype == torch.float64
    difference = (logits(model) - exact).abs().max().item()
    assert 1e-9 < difference < 1e-5


def test_a_float32_result_inside_the_truth_is_an_error():
    """A cast that is missed would make the truth as wrong as what is compared with it."""
    single = torch.ones(2, dtype=torch.float32)
    with theirs.precision("float64"):
        assert torch.ones(2).to(torch.float32).float().dtype == torch.float64
        with pytest.raises(RuntimeError, match="computed in float32"):
            torch.add(single, 1)


def test_the_reference_leaves_pytorch_as_it_was():
    """Other tests run in the same process."""
    before = torch.get_default_dtype(), torch.get_num_threads()
    with theirs.precision("float64"):
        pass
    assert (torch.get_default_dtype(), torch.get_num_threads()) == before
