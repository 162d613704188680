"""Write the tables of docs/explanation/field-bugs.md from the lists: ``python -m tests.mutation.page``."""

from __future__ import annotations

from collections import Counter

from tests.mutation.field import FIELD
from tests.mutation.mutation import ROOT, Mutation
from tests.mutation.small import SMALL

PAGE = ROOT / "docs/explanation/field-bugs.md"
START = "<!-- {}, written by tests/mutation/page.py -->\n"
END = "<!-- end of {} -->"


def field_table() -> str:
    """Return one line for every change that puts a bug of the list in."""
    lines = ["| # | bug, and where it was seen | what puts it in here | what fails then |"]
    lines.append("|---|---|---|---|")
    for bug in FIELD:
        first = f"{bug.number} | {bug.bug} ({bug.seen})"
        for mutation in bug.mutations:
            what = f"`{mutation.file}`: {mutation.what}"
            tests = ", ".join(f"`{node}`" for node in mutation.nodes)
            lines.append(f"| {first} | {what} | {tests} |")
            first = " | "
    return "\n".join(lines) + "\n"


def small_table() -> str:
    """Return how many small changes each file has, and those that survive."""
    counts, survivors = Counter(m.file for m in SMALL), [m for m in SMALL if m.survives]
    alive = Counter(m.file for m in survivors)
    lines = ["| file | changes | killed |", "|---|---|---|"]
    lines += [f"| `{file}` | {n} | {n - alive[file]} |" for file, n in sorted(counts.items())]
    total = len(SMALL) - len(survivors)
    lines.append(f"| all | {len(SMALL)} | {total} ({total / len(SMALL):.0%}) |")
    lines += ["", "Those that survive change no result:", ""]
    return "\n".join([*lines, *map(_survivor, survivors)]) + "\n"


def _survivor(mutation: Mutation) -> str:
    return f"- `{mutation.file}`, {mutation.what}: {mutation.survives}."


TABLES = {"field bugs": field_table, "small changes": small_table}


def rendered(text: str) -> str:
    """Return the page with its tables as they ought to be."""
    for name, table in TABLES.items():
        start, end = START.format(name), END.format(name)
        before, _, rest = text.partition(start)
        text = before + start + "\n" + table() + "\n" + end + rest.partition(end)[2]
    return text


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
