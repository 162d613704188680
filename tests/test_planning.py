"""Facts about the choice of how a run executes."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import attrs
import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxfn.config import Config
from mlxfn.errors import MemoryBudgetError
from mlxfn.measure import measure_update
from mlxfn.memory import GB
from mlxfn.models.execution import Execution
from mlxfn.models.load import load_model, load_skeleton
from mlxfn.models.lora import dora, full, lora
from mlxfn.planning import Choice, batch_sizes, choices, choose, fastest, survey, trained
from mlxfn.timing import Rates
from tests.support.models import write_model

LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32768,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def seven(tmp_path_factory) -> Path:
    """The folder of a 7 B model of which nothing but the configuration is there."""
    folder = tmp_path_factory.mktemp("seven")
    (folder / "config.json").write_text(json.dumps(LLAMA_7B))
    return folder


def config(**changes) -> Config:
    """A configuration with settings changed by dotted path, dots written as two underscores."""
    made = Config()
    for path, value in changes.items():
        section, _, leaf = path.partition("__")
        made = attrs.evolve(
            made, **{section: attrs.evolve(getattr(made, section), **{leaf: value})}
        )
    return made


def test_a_model_is_planned_from_its_configuration_alone(seven):
    """Before 14 GB are downloaded one wants to know; and planning must not take them either."""
    before = mx.get_active_memory()
    model = load_skeleton(seven, dtype="bfloat16")
    small = load_skeleton(seven, dtype="bfloat16", quantize_bits=4)
    assert model.nbytes() == 14_496_047_104
    assert model.parameter_count() == small.parameter_count() == 7_248_023_552
    assert small.nbytes() < 0.3 * model.nbytes()
    assert choose(config(), small)[0].table.base == small.nbytes()
    assert mx.get_active_memory() - before < 64e6


def test_seven_billion_parameters_fit_eight_gigabytes_in_four_bits(seven):
    """The plan finds it alone: no other quantization and no whole micro-batch of rows does."""
    asked = config(memory__budget_gb=8.0, data__batch_size=2)
    found = survey(asked, lambda bits: load_skeleton(seven, dtype="bfloat16", quantize_bits=bits))
    assert found.best is not None
    assert found.best.bits == 4
    assert found.best.needs() <= 8 * GB
    assert found.best.batch_size * found.best.accumulation == 8


def test_the_fastest_that_fits_is_chosen(seven):
    """With room nothing is recomputed; with less of it more is, and never more than needed."""
    model = load_skeleton(seven, dtype="bfloat16", quantize_bits=4)
    found = list(choices(config(data__batch_size=1), model))
    budgets = [40 * GB, 20 * GB, 12 * GB, 10 * GB]
    best = [fastest(found, budget) for budget in budgets]
    assert best[0] is not None
    assert best[0].execution.remat == "none"
    seconds = [one.seconds for one in best if one]
    assert len(seconds) == len(budgets)
    assert seconds == sorted(seconds)
    for one, budget in zip(best, budgets, strict=True):
        assert one is not None
        assert one.needs() <= budget
        assert all(c.seconds >= one.seconds for c in found if c.needs() <= budget)


@given(
    product=st.floats(1e9, 1e15),
    bandwidth=st.floats(1e9, 1e13),
    unpacking=st.floats(1e6, 1e12),
    kind=st.sampled_from(["lora", "full"]),
)
def test_at_any_speeds_none_is_faster_than_the_first(seven, product, bandwidth, unpacking, kind):
    """Where the first fits nothing is left to measure, and a start on a CPU saves 0.15 s."""
    model = load_skeleton(seven, dtype="bfloat16", quantize_bits=4)
    with patch("mlxfn.planning.rates", lambda *_: Rates(product, bandwidth, unpacking)):
        found = list(choices(config(adapter__kind=kind), model))
        assert min(one.seconds for one in found) == found[0].seconds


def test_the_device_is_measured_only_where_the_choice_depends_on_it(seven):
    """With room for everything, or no choice left, the speeds change nothing."""
    model = load_skeleton(seven, dtype="bfloat16", quantize_bits=4)
    only = Execution("all", "all", "packed")
    with patch("mlxfn.planning.rates", side_effect=AssertionError("measured")):
        assert choose(config(memory__budget_gb=1e3), model)[0].execution.remat == "none"
        assert choose(config(memory__budget_gb=1e3), model, decided=only)[0].execution == only
        with pytest.raises(AssertionError, match="measured"):
            choose(config(memory__budget_gb=12.0, data__batch_size=1), model)


def test_what_cannot_fit_is_refused_and_an_automatic_budget_only_chooses(seven, monkeypatch):
    """An estimate is no reason to refuse a run that nobody limited."""
    model = load_skeleton(seven, dtype="bfloat16")
    with pytest.raises(MemoryBudgetError, match="mlxfn plan") as refused:
        choose(config(memory__budget_gb=8.0), model)
    assert refused.value.exit_code == 6
    monkeypatch.setattr("mlxfn.memory.device_memory_gb", lambda: 8.0)
    choice, _ = choose(config(), model)
    assert choice.needs() == min(c.needs() for c in choices(config(), model))


def test_what_the_settings_say_is_kept(seven):
    """Somebody who asks for a number of layers gets it, fit or not."""
    model = load_skeleton(seven, dtype="bfloat16", quantize_bits=4)
    asked = config(train__remat=3, train__lean="none", model__quantized_matmul="packed")
    (only,) = choices(asked, model)
    assert attrs.asdict(only.execution) == {"remat": 3, "lean": "none", "quantized": "packed"}


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mixtral"])
@pytest.mark.parametrize("build", [lora, dora, full])
def test_the_trainable_values_are_counted_exactly(tmp_path, kind, build):
    """By the adapter that is built later, expert layers included."""
    model = load_model(write_model(tmp_path / kind, kind))
    targets = ["q_proj", "o_proj"] if build is dora else "all-linear"
    options = {} if build is full else {"rank": 4, "target_modules": targets}
    asked = config(adapter__kind=build.__name__)
    if build is not full:
        asked = config(
            adapter__kind=build.__name__, adapter__rank=4, adapter__target_modules=targets
        )
    assert trained(asked, model)[0] == build(model, **options).parameter_count()


def test_a_micro_batch_is_a_divisor_of_the_update():
    """The update has to stay the same rows."""
    assert batch_sizes(config(data__batch_size=3, train__gradient_accumulation_steps=2)) == [
        6,
        3,
        2,
        1,
    ]


def test_a_measured_update_is_near_the_prediction(tmp_path):
    """The prediction is arithmetic; the device has the last word, and they agree to a tenth."""
    sizes = {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "intermediate_size": 768,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
    }
    folder = write_model(tmp_path / "model", **sizes)
    asked = config(
        model__path=str(folder),
        data__batch_size=4,
        data__max_seq_length=256,
        train__gradient_accumulation_steps=1,
    )
    choice: Choice = choose(asked, load_model(folder))[0]
    measured = measure_update(asked, choice)
    assert measured["peak_gb"] == pytest.approx(choice.table.total / GB, rel=0.15)
    assert measured["seconds"] > 0
