"""The law of checkpoints, and that of configurations: what is written is what was."""

from __future__ import annotations

import json

from hypothesis import given

from mlxfn import configfile
from mlxfn.testing import laws
from mlxfn.testing.strategies import configs, run_states
from tests.laws.families import many


@many
@given(run_states())
def test_every_run_state_comes_back_as_it_was(state):
    """A bit lost in a checkpoint is a resumed run that differs from one never stopped."""
    laws.encoding_is_lossless(state)


@many
@given(configs())
def test_every_configuration_comes_back_as_it_was(config):
    """config.toml and the checkpoint's manifest are what a resumed run is built from."""
    values = json.loads(json.dumps(configfile.to_plain(config)))
    assert configfile.build(values).config == config
    assert configfile.build(configfile.flatten(configfile.to_nested(config))).config == config
