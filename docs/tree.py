"""Write the repository's tree into README.md, one line per file, from the files' own first lines.

``python docs/tree.py`` rewrites it; a test fails when it is no longer what is there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
START, END = "<!-- tree, written by docs/tree.py -->\n```text\n", "```\n<!-- end of tree -->"
WIDTH = 30  # column at which the descriptions start

FOLDERS: dict[str, str] = {
    "benchmarks": "one file per question, one table out",
    "cli": "the command line, installed as mlxfn_cli: one file per command",
    "configs": "installed as mlxfn_configs: the embedded default, and recipes that run",
    "configs/default": "the model and the data set that `mlxfn train` uses without a configuration",
    "configs/default/data": "a small real text data set",
    "configs/default/making": "how the model and the data set were made",
    "configs/default/model": "1 M parameters, byte-level BPE, chat template",
    "docs": "the site",
    "docs/changelog.d": "one fragment for each change a user can notice",
    "docs/explanation": "how it works, and why",
    "docs/howto": "recipes",
    "docs/reference": "configuration, command line, errors, API: written from the code",
    "tests": "mirrors mlxfn/; README.md is the map, `python -m tests` runs every check",
}
FILES: dict[str, str] = {
    "benchmarks/README.md": "what is measured, and how",
    "docs/changelog.md": "the changelog, from the fragments",
    "docs/index.md": "the front page",
    "docs/log.md": "dead ends, with numbers",
    "docs/performance.md": "what a run costs, measured, and what falls short",
}
CLOSED = {"tests", "docs/howto", "docs/explanation", "docs/reference", "docs/changelog.d"}
"""Folders that stand for what is in them."""
ORDER = ("mlxfn", "cli", "configs", "tests", "benchmarks", "docs")


def render() -> str:
    """Return the tree as text."""
    return "".join(line for folder in ORDER for line in _lines(ROOT / folder, 0))


def current() -> str:
    """Return the tree that README.md holds."""
    return _split()[1]


def _split() -> tuple[str, str, str]:
    before, _, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition(START)
    tree, _, after = rest.partition(END)
    return before, tree, after


def _lines(path: Path, depth: int) -> Iterator[str]:
    name = "  " * depth + path.name + ("/" if path.is_dir() else "")
    yield f"{name:<{WIDTH}} {describe(path)}".rstrip() + "\n"
    if path.is_dir() and str(path.relative_to(ROOT)) not in CLOSED:
        for child in sorted(path.iterdir(), key=lambda child: (child.is_dir(), child.name)):
            if _belongs(child):
                yield from _lines(child, depth + 1)


def _belongs(path: Path) -> bool:
    if path.name.startswith((".", "__")) or path.name == "py.typed":
        return False
    return path.is_dir() or path.suffix in {".py", ".md", ".toml", ".yaml"}


def describe(path: Path) -> str:
    """Return one line about a file or folder: its docstring, title or first comment."""
    if path.is_dir():
        own = FOLDERS.get(str(path.relative_to(ROOT)))
        return own or _docstring(path / "__init__.py")
    if own := FILES.get(str(path.relative_to(ROOT))):
        return own
    if path.suffix == ".py":
        return _docstring(path)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def _docstring(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) if path.exists() else ""
    first = (text or "").partition("\n")[0].rstrip(".")
    return re.sub(r"``([^`]*)``", r"`\1`", first)


if __name__ == "__main__":
    head, _, tail = _split()
    (ROOT / "README.md").write_text(head + START + render() + END + tail, encoding="utf-8")
