"""Facts about the choice of modules to adapt."""

from __future__ import annotations

import pytest

from mlxfn.errors import ConfigError
from mlxfn.models.targets import resolve_targets

ATTENTION = [f"model.layers.{n}.self_attn.{p}_proj" for n in range(3) for p in "qkvo"]


def paths(model, targets, num_layers=-1):
    return [site.path for site in resolve_targets(model.module, targets, num_layers)]


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj"], ATTENTION[0::4]),
        (["v_proj", "q_proj"], sorted(ATTENTION[0::4] + ATTENTION[2::4])),
        (["self_attn.o_proj"], ATTENTION[3::4]),
        (["layers.1.self_attn.q_proj"], ATTENTION[4:5]),
        ([r"self_attn\.[qk]_proj"], ATTENTION[0::4] + ATTENTION[1::4]),
        ([r"model\.layers\.[02]\.self_attn\..*"], ATTENTION[:4] + ATTENTION[8:]),
        ("k_proj", ATTENTION[1::4]),
        (["lm_head", "embed_tokens"], ["model.embed_tokens", "lm_head"]),
    ],
)
def test_targets_are_names_suffixes_or_expressions(llama, targets, expected):
    """The spellings of mlx-lm (full paths) and of PEFT (names, expressions) both work."""
    assert sorted(paths(llama, targets)) == sorted(expected)


def test_a_name_matches_from_a_dot_on(llama):
    """`proj` must not mean every module that ends so."""
    with pytest.raises(ConfigError):
        paths(llama, ["proj"])


def test_all_linear_is_every_linear_layer_of_the_decoder(llama, model_of):
    """Seven in a Llama layer; not the head, not the embedding; experts and router in a MoE."""
    found = paths(llama, "all-linear")
    assert len(found) == 7 * 3
    assert not any("lm_head" in path or "embed" in path for path in found)
    experts = paths(model_of("mixtral"), "all-linear")
    assert {p.rsplit(".", 1)[-1] for p in experts if "sparse_moe" in p} == {
        "gate",
        "gate_proj",
        "up_proj",
        "down_proj",
    }


def test_the_order_is_the_models(llama):
    """Adapters and their exports list modules in it, whatever order the user wrote."""
    assert paths(llama, ["v_proj", "q_proj"]) == paths(llama, ["q_proj", "v_proj"])
    assert paths(llama, ["q_proj"]) == ATTENTION[0::4]


def test_num_layers_takes_the_last_ones_and_what_is_outside(llama):
    """As in mlx-lm; the head is in no layer and stays."""
    assert paths(llama, ["q_proj", "lm_head"], 2) == [*ATTENTION[4::4], "lm_head"]
    assert paths(llama, ["q_proj"], 3) == paths(llama, ["q_proj"])


def test_a_target_that_does_not_exist_lists_what_could_be_matched(llama):
    """A typo must not train less than was asked for."""
    with pytest.raises(ConfigError) as caught:
        paths(llama, ["q_proj", "v_porj"])
    text = str(caught.value)
    assert "'v_porj'" in text
    assert "q_proj (3)" in text
    assert "did you mean 'v_proj'?" in text


def test_a_layer_that_cannot_be_adapted_is_no_match(llama):
    """Norms have no matrix to decompose."""
    with pytest.raises(ConfigError, match="does not exist"):
        paths(llama, ["input_layernorm"])


@pytest.mark.parametrize("targets", [[], [""], "", ["q_proj("]])
def test_nothing_and_broken_expressions_are_errors(llama, targets):
    """Each would otherwise train nothing, or end in a traceback."""
    with pytest.raises(ConfigError):
        paths(llama, targets)


@pytest.mark.parametrize("num_layers", [0, -2, 4])
def test_a_number_of_layers_that_is_not_there_is_an_error(llama, num_layers):
    """mlx-lm takes 0 for all and cuts larger ones off, silently."""
    with pytest.raises(ConfigError, match="1 to 3"):
        paths(llama, ["q_proj"], num_layers)


def test_targets_outside_the_chosen_layers_only_are_an_error(llama):
    """The run would have nothing to train."""
    with pytest.raises(ConfigError, match="last 1 layers"):
        paths(llama, ["layers.0.self_attn.q_proj"], 1)
