"""What a mutation is: a small change of the code that the named tests have to notice."""

from __future__ import annotations

from pathlib import Path

import attrs

ROOT = Path(__file__).parents[2]


@attrs.frozen
class Mutation:
    """One change, and who has to fail because of it.

    Args:
        what: The change in words.
        file: The file that is changed.
        old: Text that stands there exactly once.
        new: What stands in its place.
        tests: Node ids of the tests; below ``tests/`` unless they begin with another folder.
        survives: Why no test can notice, for a change that changes no result.
    """

    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    survives: str = ""

    @property
    def nodes(self) -> tuple[str, ...]:
        """The tests as pytest takes them, from the root of the repository."""
        return tuple(
            node if node.startswith(("mlxfn/", "tests/")) else f"tests/{node}"
            for node in self.tests
        )

    def applied(self, root: Path) -> str | None:
        """Return the changed text of the file, or None where the old text is not there once."""
        text = (root / self.file).read_text(encoding="utf-8")
        return text.replace(self.old, self.new) if text.count(self.old) == 1 else None


@attrs.frozen
class FieldBug:
    """A bug that a trainer has shipped, and the changes that would put it into this one.

    Args:
        number: Row of the list.
        bug: The bug in one line.
        seen: Where it was seen, for the page.
        mutations: Each puts the bug, or one of its parts, in.
    """

    number: int
    bug: str
    seen: str
    mutations: tuple[Mutation, ...]


def change(what: str, file: str, old: str, new: str, *tests: str, survives: str = "") -> Mutation:
    """Return a mutation of a file of ``mlxfn/`` or, where the name begins so, of ``cli/``."""
    path = file if file.startswith("cli/") else f"mlxfn/{file}"
    return Mutation(what, path, old, new, tests, survives)
