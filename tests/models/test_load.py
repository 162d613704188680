"""Facts about loading: what arrives is frozen and whole, and what is wrong is said once, clearly."""

from __future__ import annotations

import json
import shutil

import mlx.core as mx
import pytest

from mlxfn.errors import ConfigError
from mlxfn.models.load import fingerprint, load_model
from mlxfn.models.quantized import is_quantized
from mlxfn.models.safetensors import write_safetensors
from mlxfn.tree import flatten, same_bits
from tests.support.models import CONFIGS, VOCAB, load, random_batch, write_model

TOKENS = random_batch().tokens


@pytest.fixture
def folder(folder_of, tmp_path):
    """A model folder to break."""
    return shutil.copytree(folder_of("llama"), tmp_path / "model")


def refused(path, **options):
    with pytest.raises(ConfigError) as caught:
        load_model(path, **options)
    assert caught.value.exit_code == 2
    return str(caught.value)


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_architecture_arrives_frozen_with_mlx_lms_logits(folder_of, kind):
    """Any causal model that mlx-lm loads is a base, and none of it is trainable by accident."""
    from mlx_lm import load as theirs

    model = load(folder_of(kind))
    assert flatten(model.module.trainable_parameters()) == {}
    assert same_bits(model.module(TOKENS), theirs(str(folder_of(kind)))[0](TOKENS))
    assert model.vocab_size == VOCAB
    assert model.config["model_type"] == kind


def test_the_end_of_turn_token_is_known(llama):
    """Generation would never stop, and the end of an answer would not be taught."""
    assert llama.tokenizer.eos_token_ids == {llama.tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_a_16_bit_model_is_computed_in_fp32_on_a_cpu(folder):
    """A CPU multiplies fp32 matrices fastest; packed weights stay packed."""
    weights = mx.load(str(folder / "model.safetensors"))
    write_safetensors(
        folder / "model.safetensors", {n: w.astype(mx.bfloat16) for n, w in weights.items()}
    )
    model = load(folder, quantize_bits=4, quantize_group_size=32)
    dtypes = {
        name.rsplit(".", 1)[-1]: leaf.dtype
        for name, leaf in flatten(model.module.parameters()).items()
        if "q_proj" in name
    }
    assert dtypes == {"weight": mx.uint32, "scales": mx.float32, "biases": mx.float32}
    assert model.describe()["dtype"] == "float32"
    assert load(folder, dtype="bfloat16").describe()["dtype"] == "bfloat16"
    assert load(folder).describe()["dtype"] == "float32"


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_model_is_quantized_on_load(llama, folder_of, bits):
    """QLoRA from a plain model, without a conversion step."""
    model = load(folder_of("llama"), quantize_bits=bits, quantize_group_size=32)
    assert model.config["quantization"] == {"group_size": 32, "bits": bits, "mode": "affine"}
    assert model.module.model.layers[0].self_attn.q_proj.bits == bits
    assert model.parameter_count() == llama.parameter_count()
    assert model.nbytes() < llama.nbytes() / 2
    error = mx.abs(model.module(TOKENS) - llama.module(TOKENS)).mean().item()
    assert 0 < error < {3: 2.0, 4: 1.0, 8: 0.1}[bits]


def test_layers_whose_size_does_not_divide_stay_as_they_are(tmp_path):
    """And if none divides, it is an error: the user believes in a quantized model."""
    folder = write_model(tmp_path / "m", intermediate_size=48)
    layer = load(folder, quantize_bits=4, quantize_group_size=32).module.model.layers[0]
    assert is_quantized(layer.self_attn.q_proj)
    assert not is_quantized(layer.mlp.down_proj)
    assert "no layer" in refused(folder, quantize_bits=4, quantize_group_size=128)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantize_bits": 7}, "2, 3, 4, 5, 6 or 8"),
        ({"quantize_bits": 4, "quantize_group_size": 48}, "32, 64 or 128"),
        ({"dtype": "int8"}, "auto, float32, bfloat16 or float16"),
    ],
)
def test_options_out_of_range_are_errors(folder_of, options, words):
    """Each with what would have been right."""
    assert words in refused(folder_of("llama"), **options)


def test_a_quantized_model_is_not_quantized_again(folder_of, tmp_path):
    """Twice rounded is another model."""
    from mlxfn.models.export import export_fused
    from mlxfn.models.lora import lora

    packed = lora(load(folder_of("llama"), quantize_bits=4, quantize_group_size=32))
    export_fused(packed, packed.params, tmp_path / "packed")
    assert load(tmp_path / "packed").describe()["bits"] == 4
    assert "quantized already" in refused(tmp_path / "packed", quantize_bits=8)


@pytest.mark.parametrize(
    "path",
    ["/no/such/model", "./missing", "~/missing-model", "a/b/c", "nobody/no-such-model", "nothing"],
)
def test_a_model_that_is_not_there_says_what_was_looked_for(path):
    """Path or hub name, with or without a network: one message, no traceback."""
    message = refused(path)
    assert "a model that is not there" in message
    assert path in message
    assert "remedy:" in message
    assert len(message.splitlines()) == 5


def test_a_file_in_place_of_a_folder_is_an_error(folder):
    """People give the weight file itself."""
    assert "give the folder" in refused(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "no model*.safetensors"),
        ("tokenizer.json", "tokenizer"),
    ],
)
def test_a_missing_file_is_named(folder, name, words):
    """A download that broke off leaves some files out."""
    (folder / name).unlink()
    (folder / "tokenizer_config.json").unlink()
    assert words in refused(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "config.json cannot be read"),
        ("[]", "names no model_type"),
        ("{}", "names no model_type"),
        ('{"model_type": "no_such_thing"}', "no_such_thing not supported"),
        ('{"model_type": "llama"}', "hidden_size"),
    ],
)
def test_a_broken_config_says_what_is_wrong_with_it(folder, text, words):
    """Instead of a traceback out of a model class."""
    (folder / "config.json").write_text(text)
    assert words in refused(folder)


def test_weights_of_another_model_are_refused(folder):
    """Shapes and names have to be those of the config."""
    edit_config(folder, intermediate_size=96)
    assert "mlp" in refused(folder)
    edit_config(folder, intermediate_size=64, num_hidden_layers=4)
    assert "Missing" in refused(folder)


@pytest.mark.parametrize("keep", [4, 100, -1])
def test_a_weight_file_that_was_cut_off_is_named(folder, keep):
    """MLX reads past the end of such a file."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    message = refused(folder)
    assert "model.safetensors" in message
    assert "get the file again" in message


def test_custom_code_runs_only_if_it_is_trusted(folder):
    """A model folder from the net must not execute anything unasked."""
    edit_config(folder, model_file="evil.py")
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    assert "trust_remote_code" in refused(folder)
    with pytest.raises(SystemExit, match="executed"):
        load_model(folder, trust_remote_code=True)


def test_a_tokenizer_with_custom_code_is_refused_without_a_question(folder):
    """transformers would ask on the terminal and wait."""
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config |= {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    file.write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    assert "model.trust_remote_code = true" in refused(folder)
    with pytest.raises(SystemExit, match="executed"):
        load_model(folder, trust_remote_code=True)


def test_the_fingerprint_tells_models_apart_and_not_folders(folder, folder_of):
    """A resumed run is refused another model, and allowed the same one in another place."""
    original = load(folder_of("llama")).fingerprint
    assert load(folder).fingerprint == original
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert fingerprint(folder, [file]) != original
    file.write_bytes(content)
    assert fingerprint(folder, [file]) == original
    edit_config(folder, rope_theta=500.0)
    assert fingerprint(folder, [file]) != original


def test_the_vocabulary_is_what_has_both_an_embedding_and_a_logit(tmp_path, folder_of):
    """An id beyond it reads memory that belongs to something else."""
    assert load(folder_of("qwen3")).vocab_size == VOCAB
    assert load(write_model(tmp_path / "m", vocab_size=512)).vocab_size == 512


def test_the_parameter_count_is_that_of_the_architecture(llama, qwen3):
    """Counted by hand, so that plans and reports can be trusted."""
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    assert llama.parameter_count() == 3 * layer + 2 * VOCAB * 32 + 32
    assert qwen3.parameter_count() == 3 * (layer + 2 * 8) + VOCAB * 32 + 32
