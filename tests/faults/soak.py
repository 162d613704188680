"""The large counts: ``python -m tests.faults.soak`` prints a tally when it is through.

It takes about twenty minutes on two cores. ``--kills 100 --stops 10 --fuzz 10000`` is a short one.
The campaigns are those of the tests: see ``driver.py`` and ``fuzz.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1"}
EAGER = {"MLX_DISABLE_COMPILE": "1"}
PROMISED_S = 2.0  # from the end of the update that a signal meets to the checkpoint of it


def start(module: str, *words: object, eager: bool = True) -> subprocess.Popen[str]:
    """Start one campaign in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", f"tests.faults.{module}", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT, **(EAGER if eager else {})},
        stdout=subprocess.PIPE,
        text=True,
    )


def drive(folder: Path, campaign: str, count: int, seed: int, *, eager: bool = True) -> Any:
    """Start a campaign of forked runs."""
    place = folder / f"{campaign}-{seed}"
    return start("driver", place, campaign, f"--count={count}", f"--seed={seed}", eager=eager)


def merge(tallies: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up the tallies of one campaign."""
    counts: Counter[str] = Counter()
    for tally in tallies:
        counts.update({k: v for k, v in tally.items() if isinstance(v, int) and k != "seed"})
    longest = {
        name: round(max(tally.get(name, 0.0) for tally in tallies), 3)
        for name in sorted({name for tally in tallies for name in tally if name[:8] == "longest_"})
    }
    wrong = [line for tally in tallies for line in tally.get("wrong", [])]
    errors = "".join(tally.get("errors", "") for tally in tallies)
    late = longest.get("longest_checkpoint_beyond_update_s", 0.0)
    if late > PROMISED_S:
        wrong.append(f"a checkpoint came {late} s after the update that a signal met")
    return {**counts, **longest, "wrong": wrong, "errors": errors}


def main() -> int:
    """Run every campaign at once and print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--stops", type=int, default=100, help="of each signal")
    parser.add_argument("--fuzz", type=int, default=1_000_000)
    given = parser.parse_args()
    seeds = [secrets.randbelow(2**32) for _ in range(3)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs = [
            drive(folder, "kill", given.kills // 2, seeds[0]),
            drive(folder, "kill", given.kills - given.kills // 2, seeds[1], eager=False),
            drive(folder, "stop", given.stops, seeds[2]),
            drive(folder, "resume", 1, 0),
            start("fuzz", given.fuzz, seeds[2]),
        ]
        said = [job.communicate()[0] for job in jobs]
    tallies: dict[str, list[dict[str, Any]]] = {}
    for line in said:
        tally = json.loads(line or '{"campaign": "broken", "wrong": ["a campaign said nothing"]}')
        tallies.setdefault(tally.pop("campaign"), []).append(tally)
    print("seeds", seeds)
    failed = False
    for campaign, parts in tallies.items():
        total = merge(parts)
        failed |= bool(total["wrong"] or total["errors"])
        print(campaign, json.dumps(total))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
