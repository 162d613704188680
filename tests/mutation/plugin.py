"""The Hypothesis profile of a mutation run: the same examples every time, and no shrinking."""

from __future__ import annotations

import hypothesis
from hypothesis import Phase

hypothesis.settings.register_profile(
    "mutation",
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=False,
    report_multiple_bugs=False,
    # That a test fails is all that counts: looking for the smallest example takes minutes.
    phases=(Phase.explicit, Phase.generate),
)
