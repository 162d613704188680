"""Runs in forked processes, killed or stopped at random moments, resumed, and compared.

``python -m tests.faults.driver FOLDER kill --count 100 --seed 1`` prints a tally as JSON. Importing
MLX and mlx_lm takes seconds, so this process imports everything once and forks for each run. It
never evaluates anything itself: MLX starts no thread before its first evaluation, and a process of
one thread can be forked safely. Each child is a whole run from reading the configuration on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import mlxfn
from mlxfn import configfile
from mlxfn.errors import MlxfnError
from mlxfn.sinks.jsonl import read_events
from tests.support.models import write_model
from tests.support.runs import CLOCK, SMALL, sums, write_rows

TINY = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 32,
        "num_attention_heads": 2, "num_key_value_heads": 1}  # fmt: skip
SHORT: dict[str, Any] = {**SMALL, "train.num_epochs": 3, "eval.eval_steps": 4}
"""18 updates with dropout, accumulation, evaluations and nine saves: about half a second."""
LONG: dict[str, Any] = {
    **SMALL,
    "data.packing": True,
    "data.max_seq_length": 48,
    "data.batch_size": 1,
    "train.num_epochs": 100,
    "train.max_steps": 60,
    "eval.eval_steps": 4,
    "monitor.early_stopping_patience": 2,
    "monitor.min_delta": 0.025,
    "checkpoint.save_steps": 1,
    "checkpoint.keep_last_n": 100,
}
"""60 updates planned, all saved, with accumulation, packing, dropout and evaluation; early stopping
ends it after 52, as two evaluations in a row are not better by enough."""
BROKEN = 99  # exit code of a child that raised what no run may raise
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Outcome(NamedTuple):
    """What a run leaves that has to be the same however often it was stopped."""

    adapters: bytes
    best: bytes
    history: list[dict[str, Any]]
    told: list[tuple[Any, ...]]  # the events without what depends on the clock


class Bench:
    """A folder with a tiny model and data, and the runs that are made of them.

    Args:
        folder: Where everything goes.
        settings: The settings of every run.
        seconds: How long new runs are begun.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], seconds: float) -> None:
        self.deadline = time.monotonic() + seconds
        self.folder = folder
        self.settings = settings
        self.errors = folder / "errors.txt"
        folder.mkdir(parents=True, exist_ok=True)
        self.wait(self.fork(self._prepare))

    def _prepare(self) -> int:
        write_model(self.folder / "model", **TINY)
        write_rows(self.folder / "data/train.jsonl", sums(21))
        write_rows(self.folder / "data/valid.jsonl", sums(7, offset=100))
        return 0

    def fork(self, work: Callable[[], int]) -> int:
        """Do something in a child process whose exit code it returns; return the process id."""
        pid = os.fork()
        if pid:
            return pid
        try:
            out = os.open(self.folder / "out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            code = work()
        except KeyboardInterrupt:  # Ctrl-C before the run had begun
            code = 128 + signal.SIGINT
        except BaseException:  # noqa: BLE001 - whatever it is, the tally has to show it
            with self.errors.open("a") as file:
                file.write(traceback.format_exc())
            code = BROKEN
        os._exit(code)

    @staticmethod
    def wait(pid: int) -> int:
        """Return the exit code of a child; minus the signal's number if one ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def start(self, run: Path) -> int:
        """Begin or continue the run of a folder in a child process."""

        def work() -> int:
            settings = {
                **self.settings,
                "model.path": str(self.folder / "model"),
                "data.path": str(self.folder / "data"),
                "output_dir": str(run),
            }
            mode = "resume" if (run / "run.lock").exists() else "new"
            try:
                result = mlxfn.train(configfile.build(settings).config, mode=mode)
            except MlxfnError as error:
                if error.exit_code < 128:
                    raise
                return error.exit_code
            return result.exit_code

        return self.fork(work)

    def finish(self, run: Path) -> int:
        """Begin or continue a run to its end and return its exit code."""
        return self.wait(self.start(run))


def outcome(run: Path) -> Outcome:
    """Read what a finished run left."""
    changing = CLOCK | {"path", "result"}
    told = [
        tuple(sorted((k, json.dumps(v)) for k, v in event.items() if k not in changing))
        for event in read_events(run / "events.jsonl")
        if event["event"] != "start"
    ]
    return Outcome(
        (run / "adapters/adapters.safetensors").read_bytes(),
        (run / "best/adapters.safetensors").read_bytes(),
        json.loads((run / "report.json").read_text())["history"],
        told,
    )


def _without_saves(told: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [event for event in told if ("event", '"save"') not in event]


def residue(run: Path) -> list[str]:
    """Return the names in a run directory that no finished run leaves there."""
    return [str(path) for path in run.rglob("*") if path.name.startswith(".")]


def check(run: Path, whole: Outcome, *, saves: bool = True) -> str:
    """Say in a word how a resumed run differs from one that nothing stopped, or nothing."""
    try:
        found = outcome(run)
    except OSError as error:
        return f"{error.filename} is missing"
    if not saves:
        found, whole = (o._replace(told=_without_saves(o.told)) for o in (found, whole))
    different = [n for n in Outcome._fields if getattr(found, n) != getattr(whole, n)]
    return ", ".join(different or residue(run))


@contextmanager
def compared(bench: Bench) -> Iterator[tuple[Outcome, float]]:
    """Make the run that nothing stops; yield what it leaves and how long it takes."""
    bench.finish(bench.folder / "warm")  # the first run of a machine compiles and fills caches
    begun = time.monotonic()
    code = bench.finish(bench.folder / "whole")
    if code:
        raise SystemExit(f"the run that nothing stops ended with {code}\n{_said(bench)}")
    yield outcome(bench.folder / "whole"), time.monotonic() - begun


def _said(bench: Bench) -> str:
    return bench.errors.read_text() if bench.errors.exists() else ""


def kill(bench: Bench, count: int, seed: int) -> dict[str, Any]:
    """Kill runs at random moments of their life, a third of them again while they resume."""
    tally: Counter[str] = Counter()
    wrong: list[str] = []
    rng = random.Random(seed)
    with compared(bench) as (whole, seconds):
        for number in range(10**9):
            if tally["kills"] >= count or time.monotonic() > bench.deadline:
                break
            run = bench.folder / f"run-{number}"
            again = True
            while again and tally["kills"] < count:
                pid = bench.start(run)
                time.sleep(rng.random() * seconds)
                os.kill(pid, signal.SIGKILL)
                code = bench.wait(pid)
                if code == 0:
                    tally["finished first"] += 1
                    break
                tally["kills" if code == -signal.SIGKILL else f"code {code}"] += 1
                tally[_place(run)] += 1
                again = rng.random() < 1 / 3
            code = bench.finish(run)
            if why := check(run, whole) or (f"code {code}" if code else ""):
                wrong.append(f"{run}: {why}")
            else:
                tally["the same bytes, history and log"] += 1
                shutil.rmtree(run)
    return {**tally, "wrong": wrong, "errors": _said(bench)}


def _place(run: Path) -> str:
    if not (run / "events.jsonl").exists():
        return "before the log"
    kinds = Counter(event["event"] for event in read_events(run / "events.jsonl"))
    if (run / "adapters").exists():
        return "after the training"
    return "in the training" if kinds["step"] else "before the first update"


def stop(bench: Bench, count: int, seed: int) -> dict[str, Any]:
    """Stop runs with each signal at random moments, and see how they end and how soon."""
    tally: Counter[str] = Counter()
    wrong: list[str] = []
    longest: dict[str, float] = {}
    rng = random.Random(seed)
    with compared(bench) as (whole, seconds):
        for number in range(10**9):
            few = [sent for sent in SIGNALS if tally[sent.name] < count]
            if not few or time.monotonic() > bench.deadline:
                break
            sent = few[number % len(few)]
            run = bench.folder / f"run-{number}"
            pid = bench.start(run)
            time.sleep(rng.random() * seconds)
            at = time.time()
            os.kill(pid, sent)
            code = bench.wait(pid)
            for name, seconds_of in _timed(run, at, time.time()).items():
                longest[f"longest_{name}"] = max(longest.get(f"longest_{name}", 0.0), seconds_of)
            unborn = code == -sent and not run.exists()
            if code not in {0, 128 + sent} and not unborn:
                wrong.append(f"{run}: {sent.name} ended it with {code}")
            tally["finished" if code == 0 else "before the run" if unborn else sent.name] += 1
            tally[_place(run)] += 1
            if code:
                code = bench.finish(run)
            # A run that was stopped has told of one save more: the one it was stopped with.
            if why := check(run, whole, saves=False) or (f"code {code}" if code else ""):
                wrong.append(f"{run}: {why}")
            else:
                tally["the same bytes, history and log"] += 1
                shutil.rmtree(run)
    return {**tally, **longest, "wrong": wrong, "errors": _said(bench)}


def _timed(run: Path, at: float, ended: float) -> dict[str, float]:
    """Return how long after a signal a run had saved, and ended, beyond its longest update.

    Args:
        run: The run directory.
        at: When the signal was sent; seconds since 1970, as all here.
        ended: When the process was gone.
    """
    if not (run / "events.jsonl").exists():
        return {"end_s": ended - at}
    steps = [e["step_time_s"] for e in read_events(run / "events.jsonl") if e["event"] == "step"]
    saved = [file.stat().st_mtime for file in (run / "checkpoints").glob("*.npz")]
    update = max(steps, default=0.0)
    return {
        "update_s": update,
        "checkpoint_s": max([*saved, at]) - at,
        "checkpoint_beyond_update_s": max([*saved, at]) - at - update,
        "end_s": ended - at,
    }


def resume(bench: Bench, count: int, seed: int) -> dict[str, Any]:
    """Resume from every ``count``-th checkpoint of one run, beginning with number ``seed``."""
    tally: Counter[str] = Counter()
    wrong: list[str] = []
    with compared(bench) as (whole, _):
        every = sorted((bench.folder / "whole/checkpoints").iterdir())
        tally["updates"] = len(every)
        *_, end = read_events(bench.folder / "whole/events.jsonl")
        tally[f"ended by {end['reason']}"] += 1
        for at in range(seed, len(every), count):
            run = bench.folder / f"from-{every[at].name}"
            shutil.copytree(bench.folder / "whole", run)
            for name in ("adapters", "best"):
                shutil.rmtree(run / name)
            (run / "report.json").unlink()
            for later in every[at + 1 :]:
                (run / "checkpoints" / later.name).unlink()
            code = bench.finish(run)
            if why := check(run, whole) or (f"code {code}" if code else ""):
                wrong.append(f"{run}: {why}")
            else:
                tally["the same bytes, history and log"] += 1
                shutil.rmtree(run)
    return {**tally, "wrong": wrong, "errors": _said(bench)}


def main() -> int:
    """Run one campaign and print its tally."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("campaign", choices=["kill", "stop", "resume"])
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no run after these")
    given = parser.parse_args()
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        raise SystemExit("this process has threads already: forking it is not safe")
    campaign = {"kill": kill, "stop": stop, "resume": resume}[given.campaign]
    for number in SIGNALS:  # whoever starts this in the background lets it ignore some of them
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    bench = Bench(given.folder, LONG if given.campaign == "resume" else SHORT, given.seconds)
    tally = campaign(bench, given.count, given.seed)
    print(json.dumps({"campaign": given.campaign, "seed": given.seed, **tally}))
    return 1 if tally["wrong"] or tally["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
