"""Write truth.npz, or print how far mlxfn, float32 PyTorch and every wrong variant are from it.

``python -m tests.reference.make_truth`` writes the file; with ``--tables`` it prints those of
docs/explanation/parity.md and writes nothing. It needs PyTorch and PEFT.
"""

from __future__ import annotations

import sys

from tests.reference import ours, setting, theirs
from tests.reference.trajectory import LIMITS, Deviation, deviation, store, truth
from tests.reference.variants import WRONG


def main(arguments: list[str]) -> None:
    """Write the truth, or print the tables."""
    if "--tables" in arguments:
        print_runs()
        print_variants()
    else:
        store({c: theirs.train(ours.model_folder(c[0]), *c) for c in setting.COMBINATIONS})


def print_runs() -> None:
    """Print what every combination does in mlxfn, and in PyTorch at the same precision."""
    head("model | adapter | in float32")
    for model, kind in setting.COMBINATIONS:
        right, folder = truth(model, kind), ours.model_folder(model)
        row(f"{model} | {kind} | mlxfn", deviation(ours.RIGHT.run(model, kind), right))
        single = theirs.train(folder, model, kind, dtype="float32")
        row(f"{model} | {kind} | PyTorch", deviation(single, right))
    row("limit | | ", LIMITS)


def print_variants() -> None:
    """Print what every wrong variant does."""
    head("wrong variant | model | adapter")
    for name, (model, kind, trainer) in WRONG.items():
        row(f"{name} | {model} | {kind}", deviation(trainer.run(model, kind), truth(model, kind)))
    row("limit | | ", LIMITS)


def head(first: str) -> None:
    """Print the head of a table."""
    columns = f"{first} | {' | '.join(Deviation._fields)}"
    print(f"\n| {columns} |\n|{'---|' * (columns.count('|') + 1)}")


def row(first: str, measured: Deviation) -> None:
    """Print a row of a table."""
    print(f"| {first} | {' | '.join(f'{value:.1e}' for value in measured)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
