"""The page about verifying one's own pieces: its code runs, and prints what the page shows."""

from __future__ import annotations

import re

from tests.docs.test_pages import ROOT, code_of

PAGE = "docs/howto/verify-your-own.md"


def test_the_page_runs_and_prints_what_it_shows(capsys):
    """What is taught about finding errors must find them."""
    names: dict = {}
    exec(compile(code_of(PAGE), PAGE, "exec"), names)  # noqa: S102 - our own documents
    assert names["state"].step.item() == 30
    blocks = re.findall(r"```text\n(.*?)```", (ROOT / PAGE).read_text(), re.DOTALL)
    shown = [block for block in blocks if not block.startswith("mlxfn ")]
    assert capsys.readouterr().out == "".join(shown)
