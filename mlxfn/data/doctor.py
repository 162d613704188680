"""The doctor: everything about a data set that training would not tell, or only one at a time."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import attrs
import numpy as np

from mlxfn.data.buckets import choose_buckets, pack_buckets
from mlxfn.data.chat import opens_thinking
from mlxfn.data.copies import Copies
from mlxfn.data.encode import Codec, EncodedRow, EncodeOptions, Outcome, encode_many
from mlxfn.data.formats import Chat, Completion, Example, Ids, Text, column_names, detect, parse
from mlxfn.data.mix import exact_weights, largest_remainder
from mlxfn.data.order import batches_by_bucket
from mlxfn.data.pack import capacity_for, pack
from mlxfn.data.prepare import Sources
from mlxfn.data.problems import Findings, Problem, senseless
from mlxfn.data.progress import counted
from mlxfn.data.readers import Reader, canonical, readers_of
from mlxfn.data.record import Record
from mlxfn.data.records import SPLITS
from mlxfn.data.report import DataReport, SourceUse, quantiles
from mlxfn.data.tally import Tally
from mlxfn.errors import DataError
from mlxfn.state import IGNORED

_BINS = 10  # of the histogram
_END = 3  # last ids among which an end of turn has to be (templates write a line end after it)
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_OFTEN = 4  # times that a source of a mix is repeated in an epoch, from which on it is said
_NO_MARK = 3  # a shorter special token may well be text


class Shown(NamedTuple):
    """One token of a row that is shown."""

    text: str
    learned: bool


@attrs.frozen
class Padding:
    """What an epoch would compute besides the rows, for one way of making batches."""

    shapes: int  # lengths of batches, each a compiled trace
    rows: int  # rows of batches
    share: float  # of all positions


@attrs.frozen
class SplitHealth:
    """One split: what becomes of its rows, and how long they are."""

    report: DataReport
    histogram: tuple[tuple[int, int, int], ...]  # (from, to, rows) in positions
    bucketed: Padding | None
    packed: Padding | None
    samples: tuple[tuple[Shown, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the split as JSON values."""
        return {
            "report": self.report.to_dict(),
            "histogram": [list(part) for part in self.histogram],
            "bucketed": self.bucketed and attrs.asdict(self.bucketed),
            "packed": self.packed and attrs.asdict(self.packed),
            "samples": [[token._asdict() for token in sample] for sample in self.samples],
        }


@attrs.frozen
class Diagnosis:
    """What the doctor found."""

    splits: dict[str, SplitHealth]
    problems: tuple[Problem, ...]

    @property
    def senseless(self) -> bool:
        """Whether training would be refused, or would learn or measure nothing."""
        return senseless(self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "senseless": self.senseless,
            "problems": [problem.to_dict() for problem in self.problems],
            "splits": {name: health.to_dict() for name, health in self.splits.items()},
        }


def examine(
    source: Sources,
    tokenizer: Any,
    options: EncodeOptions,
    *,
    batch_size: int,
    samples: int = 3,
    valid_fraction: float = 0.0,
) -> Diagnosis:
    """Look at every row of a data set, or of several that are mixed.

    What is kept of a row is 24 bytes: ten million of them take 240 MB.

    Args:
        source: As ``encode_splits`` takes it.
        tokenizer: A Hugging Face tokenizer, or mlx-lm's wrapper of one.
        options: How rows become tokens in training.
        batch_size: Rows in a batch.
        samples: First rows that are shown token by token.
        valid_fraction: Share of train that becomes valid.

    Raises:
        DataError: There is no data, or a file cannot be read at all.
        ConfigError: ``options.columns`` names a column that no format has.
    """
    wards: list[_Ward] = []
    for split, origin, reader in _readers(source, valid_fraction):
        ward = _Ward(split, origin, tokenizer, options, samples)
        ward.look(counted(ward.name, reader.scan(), reader.meter.share))
        ward.compare(wards)
        wards.append(ward)
    weights = exact_weights(source) if isinstance(source, Mapping) else None
    drawn = _drawn([ward for ward in wards if ward.split == "train"], weights)
    splits = {ward.name: ward.health(batch_size, drawn.get(ward.origin)) for ward in wards}
    problems = [problem for ward in wards for problem in ward.conclusions(drawn.get(ward.origin))]
    return Diagnosis(splits, tuple(sorted(problems, key=lambda p: p.severity != "error")))


def _readers(source: Sources, valid_fraction: float) -> Iterator[tuple[str, str, Reader]]:
    """Yield each split, the source of a mix it is from, and how to read it; train comes first."""
    sources = {str(name): name for name in source} if isinstance(source, Mapping) else {"": source}
    readers = {name: readers_of(one, valid_fraction) for name, one in sources.items()}
    for split in SPLITS:
        for name, of_source in readers.items():
            if split in of_source:
                yield split, name, of_source[split]


def _drawn(wards: Sequence[_Ward], weights: Sequence[Fraction] | None) -> dict[str, SourceUse]:
    """Return what an epoch takes from each source of a mix; nothing without a mix."""
    if weights is None or len(weights) != len(wards):
        return {}
    rows = [len(ward.lengths) for ward in wards]
    counts = largest_remainder([weight * sum(rows) for weight in weights])
    parts = zip(wards, rows, weights, counts, strict=True)
    return {
        ward.origin: SourceUse(ward.origin, count, float(weight), drawn)
        for ward, count, weight, drawn in parts
    }


class _Ward:
    """One split, or that of one source, while it is looked at."""

    def __init__(
        self, split: str, origin: str, tokenizer: Any, options: EncodeOptions, samples: int
    ) -> None:
        self.split, self.origin = split, origin
        self.name = f"{split} of {origin}" if origin else split
        self.codec = Codec.of(tokenizer)
        self.options = options
        self.columns = column_names(options.columns)
        self.findings = Findings(self.name)
        self.tally = Tally(self.name)
        self.copies = Copies()
        self.lengths = array("i")
        self.samples: list[tuple[Shown, ...]] = []
        self._wanted = samples
        self._formats: dict[str, str] = {}
        self._thinks = opens_thinking(tokenizer)
        added = getattr(self.codec.inner, "added_tokens_decoder", {}).values()
        marks = {str(token) for token in added if token.special}
        self._marks = sorted(mark for mark in marks if len(mark) > _NO_MARK)

    def look(self, found: Iterable[Record | DataError]) -> None:
        """Look at every row."""
        for item in found:
            if isinstance(item, DataError):
                self.findings.add("unreadable", str(item.where), _short(item))
                continue
            self.copies.add(canonical(item.value), item.path, item.line)
            try:
                example = self._parse(item)
                outcome = next(encode_many([example], self.codec, self.options))
            except DataError as error:
                kind = "vocabulary" if "vocabulary" in error.what else "wrong_row"
                self.findings.add(kind, item.where, "" if kind == "vocabulary" else error.what)
                continue
            self.tally.add(outcome)
            self._look_at_texts(example)
            self._look_at_outcome(example, outcome)

    def compare(self, others: Iterable[_Ward]) -> None:
        """Look for rows that are there twice, in this split or in those before it."""
        self.copies.close()
        self.findings.add_many("duplicates", *self.copies.repeated())
        for other in others:
            kind = "duplicates" if other.split == self.split else "overlap"
            detail = "" if kind == "duplicates" else other.name
            self.findings.add_many(kind, *self.copies.shared_with(other.copies), detail=detail)

    def _parse(self, record: Record) -> Example:
        fmt = self.options.fmt
        if fmt == "auto":
            if record.path not in self._formats:
                self._formats[record.path] = detect(record, self.columns)
            fmt = self._formats[record.path]
        return parse(record, fmt, self.columns, basis="the first row of its file")

    def _look_at_texts(self, example: Example) -> None:
        texts = list(_texts(example))
        bos = self.codec.inner.bos_token
        if bos and any(text.startswith(bos) for text in texts):
            self.findings.add("double_bos", example.where)
        if any(_REPLACEMENT in text for text in texts):
            self.findings.add("replacement", example.where)
        inside = [mark for mark in self._marks if any(mark in text for text in texts)]
        if found := [mark for mark in inside if mark != bos]:
            self.findings.add("control_tokens", example.where, found[0])
        if not isinstance(example, Ids | Text):
            answer = _answer(example)
            if answer == "":
                self.findings.add("empty_answer", example.where)
            elif self._thinks and answer is not None and "</think" not in answer:
                self.findings.add("no_thinking", example.where)

    def _look_at_outcome(self, example: Example, outcome: Outcome) -> None:
        row, place = outcome.row, outcome.where
        if row is None:
            self.findings.add(self._why_dropped(example, outcome), place)
            return
        self.lengths.append(len(row.tokens))
        if outcome.fate == "truncated":
            self.findings.add("truncated", place)
        elif self.codec.special.isdisjoint(row.labels[-_END:].tolist()):
            self.findings.add("no_end", place)
        first = row.tokens[:2].tolist()
        if isinstance(example, Ids) and first == [self.codec.bos] * 2:
            self.findings.add("double_bos", place)
        if len(self.samples) < self._wanted:
            self.samples.append(self._shown(row))

    def _why_dropped(self, example: Example, outcome: Outcome) -> str:
        if outcome.fate == "overlong":
            return "overlong"
        whole = attrs.evolve(self.options, max_seq_length=2**31 - 1)
        if next(encode_many([example], self.codec, whole)).row is not None:
            return "prompt_too_long"
        return "no_target"

    def _shown(self, row: EncodedRow) -> tuple[Shown, ...]:
        """Return the tokens of a row; the first one is never a target."""
        last = [int(row.labels[-1])] if row.labels[-1] != IGNORED else []
        ids = [*row.tokens.tolist(), *last]
        learned = [False, *(row.labels != IGNORED).tolist()][: len(ids)]
        decode: Callable[[list[int]], str] = self.codec.inner.decode
        return tuple(Shown(decode([i]), yes) for i, yes in zip(ids, learned, strict=True))

    def health(self, batch_size: int, use: SourceUse | None) -> SplitHealth:
        """Return what the split is like, and how much of an epoch it is in a mix."""
        lengths = np.array(self.lengths, np.int32)
        report = self.tally.count(quantiles(lengths))
        if use is not None and self.split == "train" and use.rows:
            report = attrs.evolve(report, sources=(use,))
        if not len(lengths):
            return SplitHealth(report, (), None, None, ())
        limit = self.options.max_seq_length
        return SplitHealth(
            report,
            _histogram(lengths),
            _padding(lengths, choose_buckets(lengths, limit), batch_size),
            _padding_of_packs(lengths, batch_size, limit),
            tuple(self.samples),
        )

    def conclusions(self, use: SourceUse | None) -> list[Problem]:
        """Return the problems, with those that only show when all rows are known."""
        report = self.tally.count(())
        broken = self.findings.count("unreadable") + self.findings.count("wrong_row")
        name = self.findings.split
        extra: list[Problem] = []
        if not report.kept:
            extra.append(Problem("empty_split", name, report.rows + broken, report.dropped_at))
        elif report.dropped > report.rows / 2:
            extra.append(Problem("mostly_dropped", name, report.dropped, report.dropped_at))
        if report.kept and report.label_tokens < report.tokens / 100:
            extra.append(Problem("few_targets", name, report.label_tokens, ()))
        if use is not None and self.split == "train" and use.rows < use.drawn / _OFTEN:
            detail = f"{use.drawn / use.rows:.2g}"
            extra.append(Problem("repeated", name, use.rows, (), detail))
        return self.findings.problems() + extra


def _short(error: DataError) -> str:
    return error.what.removeprefix("a line ").removeprefix("is ")


def _texts(example: Example) -> Iterator[str]:
    """Yield the texts a person wrote in a row."""
    if isinstance(example, Text):
        yield example.text
    elif isinstance(example, Completion):
        yield from (example.prompt, example.completion)
    elif isinstance(example, Chat):
        contents = (message.get("content") for message in example.messages)
        yield from (content for content in contents if isinstance(content, str))


def _answer(example: Chat | Completion) -> str | None:
    """Return the last text of the assistant; None where there is none or it calls a tool."""
    if isinstance(example, Completion):
        return example.completion.strip()
    answers = [message for message in example.messages if message["role"] == "assistant"]
    if not answers or answers[-1].get("tool_calls"):
        return None
    content = answers[-1].get("content")
    return content.strip() if isinstance(content, str) else None


def _histogram(lengths: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    """Count the rows in bins of equal width."""
    width = -(-int(lengths.max()) // _BINS)
    counts = np.bincount((lengths - 1) // width, minlength=1).tolist()
    return tuple((i * width + 1, (i + 1) * width, count) for i, count in enumerate(counts))


def _padding(lengths: np.ndarray, buckets: np.ndarray, batch_size: int) -> Padding:
    uses = _batches_of(lengths, buckets, batch_size)
    positions = int(np.dot(uses, buckets)) * batch_size
    return Padding(int(np.count_nonzero(uses)), len(lengths), 1 - int(lengths.sum()) / positions)


def _padding_of_packs(lengths: np.ndarray, batch_size: int, limit: int) -> Padding:
    packs = pack(lengths, capacity_for(int(lengths.sum()), limit))
    buckets = pack_buckets(packs.sizes, packs.capacity)
    uses = _batches_of(packs.sizes, buckets, batch_size)
    lines = packs.capacity // buckets * batch_size
    positions = int(np.dot(uses, lines * buckets))
    share = 1 - int(lengths.sum()) / positions
    return Padding(int(np.count_nonzero(uses)), int(np.dot(uses, lines)), share)


def _batches_of(sizes: np.ndarray, buckets: np.ndarray, batch_size: int) -> np.ndarray:
    """Return how many batches of an epoch need each bucket, int64 [buckets]."""
    held = np.searchsorted(buckets, sizes)
    ends = np.bincount(held, minlength=len(buckets)).cumsum()
    return batches_by_bucket(ends, batch_size)


def histogram_lines(bins: Sequence[tuple[int, int, int]], width: int = 30) -> list[str]:
    """Return a histogram as text, a line for each bin.

    Example:
        >>> histogram_lines([(1, 8, 2), (9, 16, 4)], width=4)
        ['   1-8    ##   2', '   9-16   #### 4']
    """
    most = max((count for *_, count in bins), default=0)
    bars = [("#" * max(round(width * n / most), n > 0)).ljust(width) for *_, n in bins]
    return [
        f"{low:>4}-{high:<6}{bar} {count:,}"
        for (low, high, count), bar in zip(bins, bars, strict=True)
    ]
