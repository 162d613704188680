"""Facts about starting from an adapter folder."""

from __future__ import annotations

import json
import shutil

import mlx.core as mx
import pytest

from mlxfn.errors import ConfigError
from mlxfn.models.adapter_folder import read_adapter
from mlxfn.models.export import export_mlx_lm, export_peft
from mlxfn.models.lora import dora, full, lora
from mlxfn.models.safetensors import write_safetensors
from mlxfn.tree import flatten, same_bits
from tests.support.models import load, random_batch, shaken

BATCH = random_batch()
EXPORTS = [export_mlx_lm, export_peft]


def refused(model, folder, build=lora, **options):
    with pytest.raises(ConfigError) as caught:
        build(model, init_from=folder, **options)
    return str(caught.value)


@pytest.fixture
def folder(llama, tmp_path):
    """An mlx-lm adapter folder to break."""
    adapter = lora(llama)
    return export_mlx_lm(adapter, shaken(adapter.params), tmp_path / "adapters")


@pytest.mark.parametrize("export", EXPORTS)
@pytest.mark.parametrize("build", [lora, dora])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "embed_tokens", "lm_head"]])
def test_an_export_comes_back_bit_for_bit(llama, tmp_path, export, build, targets):
    """In either layout; a second stage of training starts where the first ended."""
    adapter = build(llama, rank=4, target_modules=targets)
    params = shaken(adapter.params)
    again = build(
        llama, rank=4, target_modules=targets, init_from=export(adapter, params, tmp_path / "a")
    )
    assert same_bits(flatten(again.params), flatten(params))
    assert same_bits(again.apply(again.params, BATCH, None), adapter.apply(params, BATCH, None))


def test_a_full_export_comes_back(llama, tmp_path):
    """All parameters, as masters again."""
    adapter = full(llama)
    params = shaken(adapter.params)
    folder = export_mlx_lm(adapter, params, tmp_path / "a")
    assert same_bits(flatten(full(llama, init_from=folder).params), flatten(params))


@pytest.mark.parametrize("export", EXPORTS)
def test_another_scale_starts_from_the_same_function(llama, tmp_path, export):
    """alpha may change between two stages; the model must not jump."""
    adapter = lora(llama, rank=4, alpha=8.0)
    params = shaken(adapter.params)
    folder = export(adapter, params, tmp_path / "a")
    again = lora(llama, rank=4, alpha=12.0, rslora=True, init_from=folder)
    assert again.scale == 6.0
    ours, theirs = (a.apply(p, BATCH, None) for a, p in ((again, again.params), (adapter, params)))
    assert mx.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 2.0), (True, 4.0)])
def test_the_scale_of_a_peft_folder_is_alpha_over_rank_or_its_root(llama, tmp_path, rslora, scale):
    """PEFT writes which of the two it was, and no scale."""
    adapter = lora(llama, rank=4)
    file = export_peft(adapter, adapter.params, tmp_path / "a") / "adapter_config.json"
    config = json.loads(file.read_text()) | {"lora_alpha": 8, "use_rslora": rslora}
    file.write_text(json.dumps(config))
    assert read_adapter(file.parent).scale == scale


def test_names_as_newer_and_older_peft_write_them(llama, tmp_path):
    """With the adapter's name inside, and the magnitude as a weight."""
    adapter = dora(llama, rank=4)
    params = shaken(adapter.params)
    folder = export_peft(adapter, params, tmp_path / "a")
    tensors = mx.load(str(folder / "adapter_model.safetensors"))
    mx.eval(tensors)
    renamed = {
        name.replace(".weight", ".default.weight").replace(
            "_vector", "_vector.default.weight"
        ): leaf
        for name, leaf in tensors.items()
    }
    write_safetensors(folder / "adapter_model.safetensors", renamed)
    assert same_bits(flatten(dora(llama, rank=4, init_from=folder).params), flatten(params))


def test_an_adapter_of_another_model_names_the_tensors_that_do_not_match(qwen3, folder_of, folder):
    """Loading what fits and dropping the rest would train something nobody asked for."""
    wider = load(folder_of("llama", hidden_size=64, head_dim=16))
    message = refused(wider, folder)
    assert "another model" in message
    assert (
        "model.layers.0.self_attn.q_proj.lora_a has shape [32, 16] instead of [64, 16]" in message
    )
    deeper = load(folder_of("llama", num_hidden_layers=4))
    assert "model.layers.3.self_attn.q_proj.lora_a is missing" in refused(deeper, folder)


@pytest.mark.parametrize(
    ("build", "options", "words"),
    [
        (lora, {"rank": 8}, "shape [32, 16] instead of [32, 8]"),
        (lora, {"target_modules": ["q_proj"]}, "v_proj.lora_a has no place"),
        (lora, {"num_layers": 1}, "layers.0.self_attn.q_proj.lora_a has no place"),
        (dora, {}, "q_proj.m is missing"),
        (full, {}, "model.embed_tokens.weight is missing"),
    ],
)
def test_other_settings_name_the_tensors_that_do_not_match(llama, folder, build, options, words):
    """Rank, targets, layers and kind have to be those it was made with."""
    message = refused(llama, folder, build, **options)
    assert words in message
    assert "rank, target_modules" in message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "not an object"),
        ("{}", "neither layout"),
        ('{"fine_tune_type": "lora"}', "lora_parameters.scale"),
        ('{"lora_parameters": {"scale": "x"}}', "lora_parameters.scale"),
        ('{"peft_type": "IA3"}', "IA3"),
        ('{"peft_type": "LORA"}', "r or lora_alpha"),
        ('{"peft_type": "LORA", "r": 0, "lora_alpha": 1}', "r or lora_alpha"),
        ('{"peft_type": "LORA", "r": 4, "lora_alpha": 1, "rank_pattern": {"a": 1}}', "differ"),
        ('{"peft_type": "LORA", "r": 4, "lora_alpha": 1}', "no adapter_model.safetensors"),
    ],
)
def test_a_broken_config_says_what_is_wrong(llama, folder, config, words):
    """One message, with the folder in it."""
    (folder / "adapter_config.json").write_text(config)
    message = refused(llama, folder)
    assert words in message
    assert str(folder) in message


def test_a_folder_that_is_not_there_or_empty_is_an_error(llama, tmp_path, folder):
    """Each missing file is named."""
    assert "no such folder" in refused(llama, tmp_path / "nothing")
    (folder / "adapters.safetensors").unlink()
    assert "no adapters.safetensors" in refused(llama, folder)
    (folder / "adapter_config.json").unlink()
    assert "no adapter_config.json" in refused(llama, folder)


def test_a_damaged_tensor_file_is_an_error(llama, folder):
    """A truncated adapter is what a full disk leaves in other trainers."""
    file = folder / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert "adapters.safetensors cannot be read" in refused(llama, folder)


def test_a_tensor_of_another_method_is_an_error(llama, tmp_path):
    """PEFT folders may hold trained biases or modules that have no place here."""
    adapter = lora(llama)
    folder = export_peft(adapter, adapter.params, tmp_path / "a")
    write_safetensors(
        folder / "adapter_model.safetensors", {"base_model.model.lm_head.bias": mx.ones(1)}
    )
    assert "lm_head.bias" in refused(llama, folder)


def test_the_folder_may_be_replaced_by_the_run_that_started_from_it(llama, folder):
    """Lazily read tensors would come from the new file, or from nowhere."""
    before = flatten(lora(llama, init_from=folder).params)
    arrays = read_adapter(folder).arrays
    shutil.rmtree(folder)
    assert same_bits(arrays, before)
