"""Adapter folders between mlxfn and PEFT, read by the other one's own code."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from transformers import AutoModelForCausalLM

import mlxfn as mf
from tests.reference import ours, setting, theirs
from tests.support.models import shaken

torch = theirs.torch
KINDS = pytest.mark.parametrize("kind", ["lora", "dora"])
IDS = np.arange(40, dtype=np.int32).reshape(2, 20)


def our_logits(adapter, params):
    tokens = mx.array(IDS)
    with mx.stream(mx.cpu):
        return np.array(adapter.apply(params, mf.Batch(tokens, tokens, mx.ones_like(tokens)), None))


def their_logits(module):
    with torch.no_grad():
        return module.eval()(input_ids=torch.from_numpy(IDS).long()).logits.numpy()


@pytest.mark.parametrize("model", setting.MODELS)
@KINDS
def test_peft_computes_what_was_exported(tmp_path, model, kind):
    """A folder in PEFT's layout is for PEFT, so PEFT has to read it."""
    adapter = ours.adapt(ours.load(model), kind)
    params = shaken(adapter.params)
    mf.export_peft(adapter, params, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(ours.model_folder(model), dtype=torch.float32)
    plain = their_logits(base)
    with theirs.old_names():
        loaded = their_logits(theirs.peft.PeftModel.from_pretrained(base, tmp_path / "adapter"))
    np.testing.assert_allclose(loaded, our_logits(adapter, params), atol=2e-5)
    assert np.abs(loaded - plain).max() > 1e-2


@KINDS
def test_an_adapter_of_peft_goes_on_here(tmp_path, kind):
    """``init_from`` takes a folder that PEFT wrote."""
    module = theirs.adapted(ours.model_folder("llama"), "llama", kind, "float32")
    for n, parameter in enumerate(theirs.trainable(module).values()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(n))
        parameter.data += 0.05 * noise
    module.save_pretrained(tmp_path)
    adapter = ours.adapt(ours.load("llama"), kind, init_from=tmp_path)
    np.testing.assert_allclose(our_logits(adapter, adapter.params), their_logits(module), atol=2e-5)
