"""Put every listed bug into a copy of the tree and see whether its tests notice.

``python -m tests.mutation`` from the root of the repository; words choose mutations by their
text or file, ``--jobs N`` works in N copies. The checkout itself is never changed.
"""

from __future__ import annotations

import argparse
import itertools
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.mutation.field import FIELD
from tests.mutation.mutation import ROOT, Mutation
from tests.mutation.small import SMALL

TIMEOUT_S = 300
_PLACE = re.compile(r"/.*:\d+: \w")  # how pytest's shortest trace shows where it failed
_clock = itertools.count(2_000_000_000)


class Verdict(NamedTuple):
    """What became of a mutation."""

    mutation: Mutation
    fate: str  # killed, survived, stale, broken
    seconds: float
    detail: str = ""


def main() -> int:
    """Run the mutations that were asked for; 0 when none survived unexplained, or was stale."""
    arguments = _arguments()
    chosen = [m for m in _all() if _is_chosen(m, arguments.words)]
    # A shell ignores Ctrl-C for what it starts behind itself, and the tests of Ctrl-C inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mlxfn-mutation-") as room:
        copies = [_copy(Path(room) / str(i)) for i in range(arguments.jobs)]
        if not _baseline(copies[0], chosen):
            return 1
        verdicts = _judge_all(copies, chosen, why=arguments.why)
    return _tell(verdicts, time.monotonic() - start)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("words", nargs="*", help="run those with one of these words in them")
    parser.add_argument("--why", action="store_true", help="say where each one was noticed")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 4))
    return parser.parse_args()


def _all() -> list[Mutation]:
    return [*(m for bug in FIELD for m in bug.mutations), *SMALL]


def _is_chosen(mutation: Mutation, words: Sequence[str]) -> bool:
    text = f"{mutation.what} {mutation.file}"
    return not words or any(word in text for word in words)


def _copy(target: Path) -> Path:
    """Copy what git knows of the working tree, and check that Python imports the copy."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in names.rstrip("\0").split("\0"):
        source = ROOT / name
        if os.path.lexists(source):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)
    code = "import mlxfn, mlxfn_cli; print(mlxfn.__file__, mlxfn_cli.__file__)"
    done = _python(target, "-c", code)
    if done.stdout.count(str(target)) != 2:
        raise RuntimeError(f"the copy is not what is imported: {done.stdout}{done.stderr}")
    return target


def _python(copy: Path, *words: str, timeout: float = TIMEOUT_S) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(copy), str(copy / ".types")])
    environment = {"OPENBLAS_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}
    environment.pop("CI", None)  # there pytest explains every byte by which two files differ
    return subprocess.run(
        [sys.executable, *words],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def _pytest(copy: Path, nodes: Iterable[str], timeout: float) -> subprocess.CompletedProcess:
    options = ["-x", "-q", "--no-header", "--tb=line", "--assert=plain"]
    profile = [
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.mutation.plugin",
        "--hypothesis-profile=mutation",
    ]
    return _python(copy, "-m", "pytest", *options, *profile, *nodes, timeout=timeout)


def _baseline(copy: Path, mutations: Sequence[Mutation]) -> bool:
    """Check that every test passes where nothing is changed: else its failure says nothing."""
    nodes = sorted({node for mutation in mutations for node in mutation.nodes})
    done = _pytest(copy, nodes, timeout=4 * TIMEOUT_S)
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-1000:], "\nthe tests fail without a mutation")
    return not done.returncode


def _judge_all(
    copies: Sequence[Path], mutations: Sequence[Mutation], *, why: bool
) -> list[Verdict]:
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for copy in copies:
        free.put(copy)

    def judge(mutation: Mutation) -> Verdict:
        copy = free.get()
        try:
            verdict = _judge(copy, mutation)
        finally:
            free.put(copy)
        print(_line(verdict, why=why), flush=True)
        return verdict

    with ThreadPoolExecutor(len(copies)) as pool:
        return list(pool.map(judge, mutations))


def _judge(copy: Path, mutation: Mutation) -> Verdict:
    start, file = time.monotonic(), copy / mutation.file
    changed, before = mutation.applied(copy), file.read_text(encoding="utf-8")
    if changed is None:
        return Verdict(mutation, "stale", 0.0, "its old text does not stand there exactly once")
    try:
        _write(file, changed)
        done = _pytest(copy, mutation.nodes, TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Verdict(mutation, "killed", time.monotonic() - start, "it never ends")
    finally:
        _write(file, before)
    # 1 is a test that failed; a crash of the interpreter is noticed too, by anybody.
    fate = {0: "survived", 1: "killed"}.get(done.returncode, "broken")
    if done.returncode < 0:
        fate = "killed"
    why = next((line for line in done.stdout.splitlines() if _PLACE.match(line)), "")
    return Verdict(mutation, fate, time.monotonic() - start, why.replace(f"{copy}/", "")[:200])


def _write(file: Path, text: str) -> None:
    """Write a source file with a time of its own: Python trusts compiled files by it."""
    file.write_text(text, encoding="utf-8")
    moment = next(_clock)
    os.utime(file, (moment, moment))


def _line(verdict: Verdict, *, why: bool = False) -> str:
    mutation = verdict.mutation
    fate = "as explained" if verdict.fate == "survived" and mutation.survives else verdict.fate
    detail = verdict.detail if why or fate in {"stale", "broken"} else ""
    return (
        f"{fate:12} {verdict.seconds:5.1f} s  {mutation.file}: {mutation.what}  {detail}".rstrip()
    )


def _tell(verdicts: Sequence[Verdict], seconds: float) -> int:
    """Print the tally and return the exit code."""
    field = {id(m) for bug in FIELD for m in bug.mutations}
    failed = False
    for name, of_field in (("field bugs", True), ("small changes", False)):
        group = [v for v in verdicts if (id(v.mutation) in field) is of_field]
        if not group:
            continue
        killed = sum(v.fate == "killed" for v in group)
        share = f"{killed} of {len(group)} killed, {killed / len(group):.0%}"
        rest = [v for v in group if v.fate != "killed"]
        unexplained = [v for v in rest if v.fate != "survived" or not v.mutation.survives]
        print(f"{name}: {share}; {len(rest) - len(unexplained)} survivors explained")
        unexpected = [v for v in group if v.fate == "killed" and v.mutation.survives]
        for verdict in unexplained + unexpected:
            print("  not as listed:", _line(verdict))
        failed |= bool(unexplained or unexpected)
    print(f"{len(verdicts)} mutations in {seconds:.0f} s")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
