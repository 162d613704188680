"""A run that is over, or stopped: its model with what it has learned, to measure, ask or export."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import attrs

from mlxfn import configfile
from mlxfn.assemble import (
    load_base,
    make_adapter,
    make_loader,
    make_losses,
    make_plan,
    make_transform,
    paths_of,
    read_data,
)
from mlxfn.checkpoint.store import CheckpointStore
from mlxfn.config import Config
from mlxfn.data.cursor import to_device
from mlxfn.errors import DataError, RunDirError
from mlxfn.evaluate import make_evaluate
from mlxfn.models.adapter import Adapter
from mlxfn.models.model import Model
from mlxfn.rundir import find_run
from mlxfn.state import RunState
from mlxfn.step import init_state
from mlxfn.tree import Params


@attrs.frozen
class SplitLoss:
    """How good the model is on a split."""

    loss: float
    perplexity: float
    weight: float  # label tokens
    rows: int
    time_s: float


@attrs.frozen(eq=False)
class Reopened:
    """A run's model with the trained values of one of its checkpoints."""

    config: Config
    model: Model
    adapter: Adapter
    params: Params
    step: int  # update of the checkpoint

    def evaluate(self, split: str) -> SplitLoss:
        """Measure the loss on every row of a split once.

        Raises:
            DataError: The data set has no such split, or a row of it is wrong.
        """
        start = time.monotonic()
        found = read_data(self.config, self.model, split)
        if split not in found:
            raise DataError(
                f"the data set has no {split} split",
                where=", ".join(paths_of(self.config)),
                remedy=f"add {split}.jsonl to the folder, or name other rows with --data",
            )
        loader = make_loader(self.config, self.model, found[split].rows)
        evaluate = make_evaluate(make_losses(self.config, self.adapter).valid)
        result = evaluate(self.params, (to_device(batch) for batch in loader.epoch()))
        rows = len(found[split].rows)
        return SplitLoss(
            result.loss, result.perplexity, result.weight, rows, time.monotonic() - start
        )


def reopen(
    path: Path, *, checkpoint: Literal["best", "last"] = "best", data: str | None = None
) -> Reopened:
    """Load the model of a run with what it has learned.

    Args:
        path: The run directory.
        checkpoint: The best by validation loss, or the newest; a run without validation has
            only the newest.
        data: Another data set to evaluate on than the run's.

    Raises:
        RunDirError: The folder holds no run, or no checkpoint of it can be read.
        ConfigError: The model is not there any more.
    """
    folder = find_run(path)
    if not folder.config.exists():
        raise RunDirError(
            "there is no run in this folder",
            where=path,
            expected="a run directory, as mlxfn train writes one",
        )
    config = configfile.load(folder.config).config
    if data is not None:
        rows = attrs.evolve(config.data, path=data, mix={}, valid_fraction=0.0)
        config = attrs.evolve(config, data=rows)
    model = load_base(config)
    adapter = make_adapter(config, model)
    with CheckpointStore(folder.checkpoints, keep_last_n=config.checkpoint.keep_last_n) as store:
        template = RunState(
            init_state(adapter.params, make_transform(config, make_plan(config, 1)))
        )
        found = store.latest(template)
        best = found.state.best_step if found else None
        if found and checkpoint == "best" and best is not None:
            found = store.load(best, template)
    if found is None:
        raise RunDirError(
            "the run has no checkpoint that can be read",
            where=folder.checkpoints,
            remedy="mlxfn checkpoints RUN --verify says what is there",
        )
    return Reopened(config, model, adapter, found.state.train.params, int(found.state.train.step))
