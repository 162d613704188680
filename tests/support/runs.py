"""Small runs: a model, rows, and a configuration that trains on them in a second or two."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from mlxfn import configfile
from mlxfn.config import Config
from mlxfn.events import Event, to_dict
from tests.support.models import write_model

SMALL: dict[str, Any] = {
    "adapter.rank": 4,
    "adapter.alpha": 8.0,
    "adapter.dropout": 0.1,
    "adapter.target_modules": "all-linear",
    "data.batch_size": 2,
    "data.max_seq_length": 64,
    "optimizer.learning_rate": 1e-2,
    "train.num_epochs": 2,
    "train.gradient_accumulation_steps": 2,
    "eval.eval_steps": 3,
    "checkpoint.save_steps": 2,
    "log.logging_steps": 1,
}
"""21 rows in 11 batches, so 6 updates in each of 2 epochs, the last of each a short window."""

CLOCK = {
    "time",
    "time_s",
    "step_time_s",
    "tokens_per_s",
    "real_tokens_per_s",
    "memory_gb",
    "peak_memory_gb",
    "pause_s",
}
"""Fields of events in which two runs of the same thing may differ: times, and memory."""


@cache
def model_folder(kind: str = "llama") -> Path:
    """Return a small random model, written once for all tests of a process."""
    return write_model(Path(mkdtemp(prefix="mlxfn-model-")), kind)


def sums(count: int, offset: int = 0) -> list[dict[str, str]]:
    """Return prompts and completions of different lengths."""
    return [
        {"prompt": f"{i} plus {i * i}?", "completion": f"It is {i + i * i}" + "." * (i % 5)}
        for i in range(offset, offset + count)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write JSON lines and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@cache
def data_folder(train: int = 21, valid: int = 7) -> Path:
    """Return a folder with train.jsonl and valid.jsonl, written once for all tests."""
    folder = Path(mkdtemp(prefix="mlxfn-data-"))
    write_rows(folder / "train.jsonl", sums(train))
    write_rows(folder / "valid.jsonl", sums(valid, offset=100))
    return folder


def small_config(output: Path, **changes: Any) -> Config:
    """Return the configuration of a small run; dots in names of settings are double underscores."""
    settings = {"output_dir": str(output), "model.path": str(model_folder())}
    settings |= {"data.path": str(data_folder()), **SMALL}
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    return configfile.build(settings).config


class Collect:
    """A sink that keeps every event as a dict."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def write(self, event: Event) -> None:
        """Keep one event."""
        self.events.append(to_dict(event))

    def close(self) -> None:
        """Do nothing."""

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the events of one kind."""
        return [event for event in self.events if event["event"] == kind]
