"""What can be wrong with a data set: every problem that the doctor knows, with its remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import attrs

PLACES = 5  # that are named for each problem


class Kind(NamedTuple):
    """A problem as such."""

    severity: str  # "error": training is refused or senseless; "warning": it learns something else
    what: str
    remedy: str


KINDS: dict[str, Kind] = {
    "unreadable": Kind(
        "error", "lines that are no row: {detail}", "correct or remove them: training refuses them"
    ),
    "wrong_row": Kind(
        "error",
        "rows that cannot be used: {detail}",
        "correct or remove them: training refuses them",
    ),
    "vocabulary": Kind(
        "error",
        "rows with ids the model does not have",
        "use the tokenizer that belongs to the model",
    ),
    "empty_split": Kind("error", "no row of the split can be trained on", "see the other problems"),
    "mostly_dropped": Kind(
        "error",
        "more than half of the rows are dropped",
        "see the reasons among the other problems",
    ),
    "overlap": Kind(
        "error", "rows that are in {detail} too: the loss on them says nothing", "remove them there"
    ),
    "duplicates": Kind(
        "warning", "rows that were there before: they count several times", "remove all but one"
    ),
    "truncated": Kind(
        "warning",
        "rows over max_seq_length: their end is cut off and not learned",
        "raise data.max_seq_length, or set data.overlong to drop",
    ),
    "overlong": Kind(
        "warning", "rows over max_seq_length: dropped", "raise data.max_seq_length, or shorten them"
    ),
    "prompt_too_long": Kind(
        "warning",
        "rows whose prompt fills max_seq_length: no target is left, dropped",
        "raise data.max_seq_length, or shorten the prompts",
    ),
    "no_target": Kind(
        "warning",
        "rows with nothing to learn: no assistant turn, or an empty text; dropped",
        "remove them, or check data.loss_on and data.columns",
    ),
    "empty_answer": Kind(
        "warning",
        "rows with an empty answer: they teach to end at once",
        "remove them, unless silence is the right answer",
    ),
    "double_bos": Kind(
        "warning",
        "rows with a second beginning of sequence: written in the text or ids, besides the tokenizer's",
        "take the beginning-of-sequence token out of the rows",
    ),
    "no_end": Kind(
        "warning",
        "rows that do not end with an end of turn: a model trained on them does not stop",
        "end the ids with the tokenizer's end-of-turn token",
    ),
    "control_tokens": Kind(
        "warning",
        "rows with control tokens of the template inside their texts: {detail}",
        "remove the markers: the template writes them",
    ),
    "replacement": Kind(
        "warning",
        "rows with the replacement character U+FFFD: their text was decoded wrongly before",
        "make the rows again from their source, with the right encoding",
    ),
    "no_thinking": Kind(
        "warning",
        "rows without reasoning, although the template opens a thinking tag before each answer: "
        "they are learned without the tag that the model will be given",
        "write the reasoning into the answers (<think>...</think>), or use a template without the tag",
    ),
    "repeated": Kind(
        "warning",
        "rows of the mix are fewer than an epoch takes: each comes {detail} times in it",
        "lower the weight of the source in data.mix, unless it is meant to be repeated",
    ),
    "few_targets": Kind(
        "warning",
        "tokens that are learned are less than 1% of all",
        "check data.loss_on; shorten the prompts",
    ),
}


@attrs.frozen
class Problem:
    """A problem of a split: how many rows have it, and where the first ones are."""

    kind: str  # a key of KINDS
    split: str
    count: int
    places: tuple[str, ...]
    detail: str = ""

    @property
    def severity(self) -> str:
        """``"error"`` or ``"warning"``."""
        return KINDS[self.kind].severity

    @property
    def what(self) -> str:
        """What is wrong, in words."""
        return KINDS[self.kind].what.format(detail=self.detail)

    @property
    def remedy(self) -> str:
        """What to do."""
        return KINDS[self.kind].remedy

    def to_dict(self) -> dict[str, Any]:
        """Return the problem as JSON values."""
        return attrs.asdict(self) | {
            "severity": self.severity, "what": self.what, "remedy": self.remedy,
        }  # fmt: skip


class Findings:
    """The problems of a split while its rows go by.

    Args:
        split: Name of the split.
    """

    def __init__(self, split: str) -> None:
        self.split = split
        self._found: dict[tuple[str, str], tuple[int, list[str]]] = {}

    def add(self, kind: str, place: str, detail: str = "") -> None:
        """Note that the row at a place has a problem; details are kept apart."""
        count, places = self._found.get((kind, detail), (0, []))
        if len(places) < PLACES:
            places.append(place)
        self._found[kind, detail] = (count + 1, places)

    def add_many(self, kind: str, count: int, places: Sequence[str], detail: str = "") -> None:
        """Note that several rows have a problem, and where the first of them are."""
        if count:
            before, named = self._found.get((kind, detail), (0, []))
            self._found[kind, detail] = (before + count, [*named, *places][:PLACES])

    def count(self, kind: str) -> int:
        """Return how many rows have a problem."""
        return sum(count for (name, _), (count, _) in self._found.items() if name == kind)

    def problems(self) -> list[Problem]:
        """Return what was found, in the order of ``KINDS``."""
        order = list(KINDS)
        found = sorted(self._found.items(), key=lambda item: order.index(item[0][0]))
        return [
            Problem(kind, self.split, count, tuple(places), detail)
            for (kind, detail), (count, places) in found
        ]


def senseless(problems: Sequence[Problem]) -> bool:
    """Return whether training would be refused, or would learn or measure nothing."""
    return any(problem.severity == "error" for problem in problems)
