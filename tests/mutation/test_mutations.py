"""The list of mutations fits the code as it is; running them is ``python -m tests.mutation``."""

import ast
from functools import cache

import pytest

from tests.mutation.field import FIELD
from tests.mutation.mutation import ROOT
from tests.mutation.page import PAGE, rendered
from tests.mutation.small import SMALL

ALL = [*(m for bug in FIELD for m in bug.mutations), *SMALL]


@pytest.mark.parametrize("mutation", ALL, ids=lambda m: f"{m.file}: {m.what}")
def test_every_mutation_applies(mutation):
    """Old text that is gone tests nothing: change it along with the code it stands for."""
    changed = mutation.applied(ROOT)
    assert changed is not None, f"not there exactly once: {mutation.old!r}"
    assert changed != (ROOT / mutation.file).read_text(encoding="utf-8")
    ast.parse(changed)


def test_no_two_mutations_are_one():
    """A change that is counted twice makes the share of killed ones look better."""
    changes = [(m.file, m.old, m.new, m.tests) for m in ALL]
    assert len(set(changes)) == len(changes)


@cache
def functions(file):
    """The names of the test functions in a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("node", sorted({node for m in ALL for node in m.nodes}))
def test_every_test_that_a_mutation_names_exists(node):
    """pytest runs nothing and fails for a name that is not there: that would count as a kill."""
    file, _, name = node.partition("::")
    assert (ROOT / file).exists()
    assert not name or name.partition("[")[0] in functions(file)


def test_every_bug_of_the_field_has_its_mutation_and_one_test():
    """The list has 32 rows; a test that is named alone is the one that has to fail."""
    assert [bug.number for bug in FIELD] == list(range(1, 33))
    for bug in FIELD:
        assert bug.mutations, bug.bug
        for mutation in bug.mutations:
            assert len(mutation.tests) == 1, mutation.what
            assert "::" in mutation.tests[0]
            assert not mutation.survives


def test_the_small_changes_are_many_and_few_survive():
    """Survivors are explained one by one, and explanations must not become the habit."""
    assert len(SMALL) >= 40
    assert sum(bool(m.survives) for m in SMALL) <= len(SMALL) / 10


def test_the_page_shows_these_lists():
    """Write it anew with: python -m tests.mutation.page."""
    text = PAGE.read_text(encoding="utf-8")
    assert rendered(text) == text
