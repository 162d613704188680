"""The bugs that other trainers have shipped, each with the change that would put it in here."""

from __future__ import annotations

from tests.mutation import field_learning, field_loop, field_models
from tests.mutation.mutation import FieldBug

FIELD: tuple[FieldBug, ...] = tuple(
    sorted((*field_learning.BUGS, *field_models.BUGS, *field_loop.BUGS), key=lambda bug: bug.number)
)
"""By their row in the list of docs/explanation/field-bugs.md."""
