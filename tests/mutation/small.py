"""Small changes of the numerical core: operators, constants, borders, dropped terms."""

from __future__ import annotations

from tests.mutation.mutation import Mutation
from tests.mutation.small_data import COLLATE, CURSOR, PACK
from tests.mutation.small_learning import LOSSES, TRANSFORMS
from tests.mutation.small_step import MONITORS, STEPS

SMALL: tuple[Mutation, ...] = (*LOSSES, *TRANSFORMS, *STEPS, *MONITORS, *COLLATE, *CURSOR, *PACK)
