"""What a run came to."""

from __future__ import annotations

from typing import Any

import attrs


@attrs.frozen
class Ending:
    """Why a run ended, and the exit code that says so."""

    reason: str  # finished, early_stopping, diverged, nonfinite, SIGINT, ...
    exit_code: int
    message: str = ""


FINISHED = Ending("finished", 0)


@attrs.frozen(kw_only=True)
class TrainingResult:
    """The final report of a run."""

    # how it ended
    reason: str
    exit_code: int
    message: str
    # how far it came
    epochs: int  # completed
    steps: int  # updates applied
    samples: int  # rows trained on
    tokens: int  # label tokens trained on
    skipped: int  # non-finite updates left out
    dropped_rows: int  # rows left out before training
    # how well
    first_valid_loss: float | None  # before the first update
    last_valid_loss: float | None
    best_loss: float | None
    best_step: int | None
    # where it is
    run_dir: str
    final_path: str | None  # adapter folder of the last update
    best_path: str | None  # adapter folder of the best validation loss
    # what it took
    total_time_s: float  # of this process; a resumed run counts from the resume
    tokens_per_s: float  # label tokens per second of update time, of this process
    real_tokens_per_s: float  # the same with prompts; padding never counts
    peak_memory_gb: float
    # every logged update and evaluation
    history: tuple[dict[str, Any], ...]
