"""Facts about exports: mlx-lm and PEFT get the same logits, and nothing is ever half-written."""

from __future__ import annotations

import json
import subprocess
import sys

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import safetensors.numpy

from mlxfn.errors import ConfigError, RunDirError
from mlxfn.models import export as exporting
from mlxfn.models.export import export_fused, export_mlx_lm, export_peft
from mlxfn.models.load import load_model
from mlxfn.models.lora import dora, full, lora
from mlxfn.models.model import Model
from mlxfn.tree import flatten, same_bits
from tests.support.models import random_batch, shaken

BATCH = random_batch()
SOME = ["q_proj", "v_proj", "down_proj"]


def logits(adapter, params):
    return adapter.apply(params, BATCH, None)


def close(a, b, tolerance=1e-5):
    """Compare logits whose largest value is about 5."""
    return mx.max(mx.abs(a - b)).item() <= tolerance


@pytest.mark.parametrize(
    ("kind", "build", "options"),
    [
        ("llama", lora, {"target_modules": "all-linear", "dropout": 0.2, "rslora": True}),
        ("llama", lora, {"target_modules": SOME, "num_layers": 2}),
        ("llama", lora, {"target_modules": ["layers.1.self_attn.q_proj", "lm_head"]}),
        ("qwen3", lora, {"target_modules": [*SOME, "embed_tokens"]}),
        ("mixtral", lora, {"target_modules": "all-linear"}),
        ("llama", dora, {"target_modules": SOME, "num_layers": 1}),
        ("qwen2", dora, {"target_modules": "all-linear"}),
        ("qwen3", dora, {"target_modules": [*SOME, "embed_tokens"]}),
        ("llama", full, {}),
        ("qwen3", full, {"num_layers": 1}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_mlx_lm_loads_the_adapter_and_the_fused_model_with_equal_logits(
    model_of, tmp_path, kind, build, options
):
    """The result is used with mlx-lm; a difference there is a bug of ours."""
    model = model_of(kind)
    adapter = build(model, **options)
    params = shaken(adapter.params)
    ours = logits(adapter, params)
    assert not close(ours, model.module(BATCH.tokens), 0.1)
    folder = export_mlx_lm(adapter, params, tmp_path / "adapters")
    theirs, _ = mlx_lm.load(str(model.folder), adapter_path=str(folder))
    assert close(theirs(BATCH.tokens), ours)
    export_fused(adapter, params, tmp_path / "fused")
    assert close(mlx_lm.load(str(tmp_path / "fused"))[0](BATCH.tokens), ours, 2e-5)


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_a_qlora_adapter_loads_on_the_quantized_base(model_of, tmp_path, bits):
    """The usual case on a Mac: the base in few bits on disk, the adapter beside it."""
    plain = model_of("llama", quantize_bits=bits, quantize_group_size=32)
    base = export_fused(lora(plain), lora(plain).params, tmp_path / "base")
    model = load_model(base)
    adapter = lora(model, target_modules="all-linear")
    params = shaken(adapter.params)
    ours = logits(adapter, params)
    folder = export_mlx_lm(adapter, params, tmp_path / "adapters")
    theirs, _ = mlx_lm.load(str(base), adapter_path=str(folder))
    assert close(theirs(BATCH.tokens), ours)


def test_fusing_a_quantized_base_packs_again_or_stays_exact(model_of, tmp_path):
    """Small but rounded, or exact but large: the user chooses."""
    model = model_of("llama", quantize_bits=4, quantize_group_size=32)
    adapter = lora(model, target_modules="all-linear")
    params = shaken(adapter.params)
    ours = logits(adapter, params)
    packed = load_model(export_fused(adapter, params, tmp_path / "packed"))
    exact = load_model(export_fused(adapter, params, tmp_path / "exact", dequantize=True))
    assert packed.describe()["bits"] == 4
    assert exact.describe()["bits"] is None
    assert exact.module.model.embed_tokens.weight.dtype == mx.float32
    assert close(exact.module(BATCH.tokens), ours, 3e-5)
    rounded = packed.module(BATCH.tokens)
    assert not close(rounded, ours, 1e-3)
    assert mx.mean(mx.abs(rounded - ours)) < 0.5 * mx.mean(mx.abs(ours))


def test_mlx_lm_generates_with_the_export_from_the_command_line(llama, tmp_path):
    """The last step of the whole job, as a user types it."""
    adapter = lora(llama)
    folder = export_mlx_lm(adapter, shaken(adapter.params), tmp_path / "adapters")
    command = [sys.executable, "-m", "mlx_lm", "generate", "--model", str(llama.folder)]
    command += ["--adapter-path", str(folder), "--prompt", "Hello", "--max-tokens", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Generation: 4 tokens" in done.stdout


def test_the_adapter_folder_says_what_it_is(llama, tmp_path):
    """mlx-lm reads these keys, and people do too."""
    adapter = lora(llama, rank=4, alpha=6.0, dropout=0.1, target_modules=["q_proj"], num_layers=2)
    folder = export_mlx_lm(adapter, adapter.params, tmp_path / "a")
    assert json.loads((folder / "adapter_config.json").read_text()) == {
        "model": str(llama.folder),
        "fine_tune_type": "lora",
        "num_layers": 2,
        "lora_parameters": {
            "rank": 4,
            "scale": 1.5,
            "dropout": 0.1,
            "keys": ["model.layers.1.self_attn.q_proj", "model.layers.2.self_attn.q_proj"],
        },
    }
    assert same_bits(mx.load(str(folder / "adapters.safetensors")), flatten(adapter.params))


def peft_merged(model, folder):
    """Return the base's weights with a PEFT folder merged in, by PEFT's own definition."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    weights = {n: np.array(w) for n, w in flatten(model.module.parameters()).items()}
    scale = config["lora_alpha"] / config["r"]
    for path in config["target_modules"]:
        name = f"base_model.model.{path}"
        if f"{name}.lora_A.weight" in tensors:
            update = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        else:
            update = (tensors[f"{name}.lora_embedding_B"] @ tensors[f"{name}.lora_embedding_A"]).T
        merged = weights[f"{path}.weight"] + scale * update
        if config["use_dora"]:
            magnitude = tensors[f"{name}.lora_magnitude_vector"]
            merged *= (magnitude / np.linalg.norm(merged, axis=1))[:, None]
        weights[f"{path}.weight"] = merged
    return weights


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (lora, {"rslora": True, "num_layers": 2}),
        (lora, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
        (dora, {"target_modules": "all-linear"}),
    ],
)
def test_a_peft_folder_merges_to_the_same_logits(llama, folder_of, tmp_path, build, options):
    """By PEFT's formulas, written out here: PyTorch itself is too large to install for it."""
    adapter = build(llama, rank=4, alpha=6.0, **options)
    params = shaken(adapter.params)
    folder = export_peft(adapter, params, tmp_path / "peft")
    other = load_model(folder_of("llama")).module
    weights = peft_merged(llama, folder)
    other.load_weights([(name, mx.array(w)) for name, w in weights.items()])
    assert close(other(BATCH.tokens), logits(adapter, params), 2e-5)


@pytest.mark.parametrize(
    ("kind", "build", "options", "words"),
    [
        ("llama", full, {}, "every parameter"),
        ("mixtral", lora, {"target_modules": "all-linear"}, "expert"),
        ("qwen3", lora, {"target_modules": ["embed_tokens"]}, "output head"),
    ],
)
def test_what_peft_cannot_express_is_refused(model_of, tmp_path, kind, build, options, words):
    """A folder that loads and computes something else would be worse."""
    adapter = build(model_of(kind), **options)
    with pytest.raises(ConfigError, match=words):
        export_peft(adapter, adapter.params, tmp_path / "peft")
    assert not list(tmp_path.iterdir())


def test_full_weights_of_a_16_bit_model_are_written_in_16_bits(model_of, tmp_path):
    """The masters are fp32, the model that loads them is not."""
    adapter = full(model_of("llama", dtype="bfloat16"))
    folder = export_mlx_lm(adapter, adapter.params, tmp_path / "a")
    written = mx.load(str(folder / "adapters.safetensors"))
    assert {leaf.dtype for leaf in written.values()} == {mx.bfloat16}


def test_a_fused_model_brings_its_tokenizer(llama, tmp_path):
    """A model without it cannot be used, and its own chat template is part of the training."""
    adapter = lora(llama)
    folder = export_fused(adapter, adapter.params, tmp_path / "fused")
    fused = load_model(folder)
    messages = [{"role": "user", "content": "Hello"}]
    ids = [
        m.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        for m in (fused, llama)
    ]
    assert ids[0] == ids[1]


def test_a_large_model_is_written_in_several_files(llama, tmp_path, monkeypatch):
    """As on the hub, with an index that says where everything is."""
    monkeypatch.setattr(exporting, "SHARD_BYTES", 50_000)
    adapter = full(llama)
    folder = export_fused(adapter, adapter.params, tmp_path / "fused")
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert len(files) > 2
    assert sorted(set(index["weight_map"].values())) == files
    assert index["metadata"]["total_size"] == llama.nbytes()
    assert same_bits(load_model(folder).module(BATCH.tokens), llama.module(BATCH.tokens))


def test_a_model_made_by_hand_has_no_folder_to_fuse_into(llama, tmp_path):
    """Where would the tokenizer come from?"""
    adapter = lora(Model(llama.module, vocab_size=400))
    with pytest.raises(ConfigError, match="loaded from a folder"):
        export_fused(adapter, adapter.params, tmp_path / "fused")


def test_an_export_replaces_an_older_one_whole(llama, tmp_path):
    """No file of the old one may stay: it would be loaded with the new ones."""
    adapter = lora(llama)
    folder = export_mlx_lm(adapter, adapter.params, tmp_path / "a")
    (folder / "left-over.txt").write_text("old")
    params = shaken(adapter.params)
    export_mlx_lm(adapter, params, folder)
    assert sorted(f.name for f in folder.iterdir()) == [
        "adapter_config.json",
        "adapters.safetensors",
    ]
    assert same_bits(mx.load(str(folder / "adapters.safetensors")), flatten(params))
    assert [f.name for f in tmp_path.iterdir()] == ["a"]


def test_an_export_never_replaces_something_else(llama, tmp_path):
    """`--output ~/Documents` must not cost anybody their documents."""
    adapter = lora(llama)
    (tmp_path / "thesis.txt").write_text("years of work")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(RunDirError, match="replace something else"):
            export_mlx_lm(adapter, adapter.params, place)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    export_mlx_lm(adapter, adapter.params, tmp_path / "new" / "deep")


@pytest.mark.parametrize("there", [False, True])
def test_an_export_that_fails_leaves_what_was_there(llama, tmp_path, monkeypatch, there):
    """A full disk: mlx-lm and others leave a truncated adapter behind."""
    adapter = lora(llama)
    folder = tmp_path / "a"
    if there:
        export_mlx_lm(adapter, adapter.params, folder)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "write_json", full_disk)
    with pytest.raises(RunDirError, match="No space left"):
        export_mlx_lm(adapter, shaken(adapter.params), folder)
    assert [f.name for f in tmp_path.iterdir()] == (["a"] if there else [])
    if there:
        assert same_bits(mx.load(str(folder / "adapters.safetensors")), flatten(adapter.params))
