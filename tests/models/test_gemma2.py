"""Facts about Gemma 2, whose attention mlx-lm leaves unfinished."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlxfn.errors import ConfigError
from mlxfn.models import load as loading
from mlxfn.models.gemma2 import layer_windows
from mlxfn.models.lora import lora
from mlxfn.state import Batch
from tests.support import models

WINDOW = 4
TOKENS = models.random_batch(2, 13).tokens


def load(folder, **changes):
    return models.load(models.write_model(folder, "gemma2", **changes))


def difference(a, b):
    return mx.max(mx.abs(a - b)).item()


def plain(monkeypatch):
    """Leave the model as mlx-lm builds it."""
    monkeypatch.setattr(loading, "complete_gemma2", lambda *_: None)


def test_a_layer_with_a_window_sees_no_further_back(tmp_path):
    """mlx-lm lets every layer see everything: other logits than the model was trained with."""
    model = load(tmp_path / "m", num_hidden_layers=1, sliding_window=WINDOW)
    before = model.module(TOKENS)
    changed = mx.concatenate([(TOKENS[:, :1] + 1) % models.VOCAB, TOKENS[:, 1:]], axis=1)
    moved = np.array(mx.max(mx.abs(model.module(changed) - before), axis=(0, 2)))
    assert (moved > 0).tolist() == [True] * WINDOW + [False] * (13 - WINDOW)


def test_every_second_layer_has_the_window_unless_the_config_says_otherwise():
    kinds = ["full_attention", "sliding_attention"]
    assert layer_windows({"num_hidden_layers": 4}) == [4096, None, 4096, None]
    assert layer_windows({"num_hidden_layers": 2, "sliding_window": None}) == [None, None]
    assert layer_windows({"num_hidden_layers": 2, "layer_types": kinds}) == [None, 4096]


def test_rows_within_the_window_are_bit_for_bit_those_of_mlx_lm(tmp_path, monkeypatch):
    """Nothing changes, and nothing is computed, where the window does not matter."""
    ours = load(tmp_path / "m", sliding_window=13).module(TOKENS)
    plain(monkeypatch)
    theirs = load(tmp_path / "m", sliding_window=13).module(TOKENS)
    assert mx.array_equal(ours, theirs)


def test_generation_token_by_token_sees_the_same_window(tmp_path):
    """A cache holds more keys than a query may look at."""
    model = load(tmp_path / "m", sliding_window=WINDOW)
    cache = make_prompt_cache(model.module)
    pieces = [TOKENS[:, :6], *(TOKENS[:, i : i + 1] for i in range(6, 13))]
    stepwise = mx.concatenate([model.module(piece, cache=cache) for piece in pieces], axis=1)
    assert difference(stepwise, model.module(TOKENS)) < 5e-5


SEGMENTS = mx.array([[1] * 4 + [2] * 9, [1] * 7 + [2] * 6])


@pytest.mark.parametrize("window", [None, WINDOW])
def test_packed_rows_side_by_side_keep_their_own_masks(tmp_path, window):
    """Where key heads are shared, mlx-lm gives row b's mask to key head b."""
    adapter = lora(load(tmp_path / "m", sliding_window=window), packed=True)
    together = adapter.apply(adapter.params, Batch(TOKENS, TOKENS, SEGMENTS), None)
    for row, cut in enumerate((4, 7)):
        alone = adapter.model.module(TOKENS[row : row + 1, cut:])
        assert difference(together[row : row + 1, cut:], alone) < 5e-5


def test_packing_is_refused_where_rows_get_each_others_masks(tmp_path, monkeypatch):
    """The check has to notice it with as many rows as key heads, where the shapes fit."""
    plain(monkeypatch)
    with pytest.raises(ConfigError, match="packing is not exact"):
        lora(load(tmp_path / "m"), packed=True)
