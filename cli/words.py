"""Numbers in words: how the command line writes counts, times, shares and commands."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

from attrs import frozen


def count(number: float) -> str:
    """Return a count that is read at a glance.

    Example:
        >>> count(950), count(98_304), count(1_050_000), count(7_240_000_000)
        ('950', '98,304', '1.05 M', '7.24 B')
    """
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,.0f}"


def plural(number: float, noun: str) -> str:
    """Return a count with its noun.

    Example:
        >>> plural(1, "row"), plural(12_000, "row")
        ('1 row', '12,000 rows')
    """
    return f"{count(number)} {noun}" + ("" if number == 1 else "s")


def duration(seconds: float) -> str:
    """Return a time as a clock shows it, or in seconds where it is short.

    Example:
        >>> duration(4.21), duration(75), duration(7384)
        ('4.2 s', '1:15', '2:03:04')
    """
    if not math.isfinite(seconds):
        return "?"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(share: float) -> str:
    """Return a share as a percentage with two digits that say something.

    Example:
        >>> percent(0.0934), percent(0.0004), percent(1.0)
        ('9.3%', '0.04%', '100%')
    """
    number = 100 * share
    return f"{number:.0f}%" if number >= 10 else f"{number:.2g}%"


def rate(value: float) -> str:
    """Return a learning rate, short.

    Example:
        >>> rate(2e-4), rate(0.00123456), rate(0.0)
        ('2.0e-4', '1.2e-3', '0')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def memory(gigabytes: float) -> str:
    """Return an amount of memory in the unit that suits it.

    Example:
        >>> memory(0.0813), memory(7.35)
        ('81 MB', '7.35 GB')
    """
    return f"{gigabytes:.2f} GB" if gigabytes >= 1 else f"{gigabytes * 1000:.0f} MB"


def size(number: int) -> str:
    """Return a number of bytes in the unit that suits it.

    Example:
        >>> size(950), size(1_250_000)
        ('950 B', '1.25 MB')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number} B"


def command(*words: object) -> str:
    """Return a command as it can be pasted into a shell.

    Example:
        >>> command("mlxfn", "eval", "runs/my run")
        "mlxfn eval 'runs/my run'"
    """
    return shlex.join(str(word) for word in words)


def one_line(text: str, width: int | None = None) -> str:
    r"""Return text on one line, cut with an ellipsis where it is longer than width.

    Example:
        >>> one_line("two\nlines"), one_line("abcdefgh", 5)
        ('two lines', 'abcd…')
    """
    joined = " ".join(text.split())
    return joined if width is None or len(joined) <= width else joined[: width - 1] + "…"


SAME = 0.005
"""Relative change of the mean loss that is not called a trend."""


def trend(losses: Sequence[float]) -> str:
    """Return where losses are going: the mean of the last 3 against the 7 before them.

    Example:
        >>> trend([3.0, 2.9, 2.5, 2.4, 2.3]), trend([1.0, 1.0, 1.0, 1.0]), trend([2.0])
        ('↘', '→', ' ')
    """
    finite = [loss for loss in losses[-10:] if math.isfinite(loss)]
    before, recent = finite[:-3], finite[-3:]
    if not before:
        return " "
    change = sum(recent) / len(recent) - sum(before) / len(before)
    if abs(change) <= SAME * abs(sum(before) / len(before)):
        return "→"
    return "↘" if change < 0 else "↗"


@frozen
class Pace:
    """How fast a run goes, from the updates that were seen lately.

    Args:
        seen: (update, seconds since 1970) of the last events, oldest first.
    """

    seen: tuple[tuple[int, float], ...] = ()

    def observe(self, update: int, time: float) -> Pace:
        """Return the pace after one more event."""
        return Pace((*self.seen, (update, time))[-20:])

    def left(self, total: int) -> float:
        """Return the seconds until update ``total``; evaluations on the way are counted in.

        Example:
            >>> Pace().observe(0, 100.0).observe(10, 105.0).left(30)
            10.0
        """
        if len(self.seen) < 2 or self.seen[-1][0] <= self.seen[0][0]:
            return math.nan
        (first, begun), (last, now) = self.seen[0], self.seen[-1]
        return max(total - last, 0) * (now - begun) / (last - first)
