"""Which checkpoints may go: the newest n stay, and so does every protected one."""

from __future__ import annotations

from collections.abc import Collection, Iterable


def to_remove(steps: Iterable[int], keep_last_n: int, protected: Collection[int] = ()) -> list[int]:
    """Return the steps whose checkpoints may be removed, oldest first.

    Args:
        steps: The steps of all checkpoints there are.
        keep_last_n: How many of the newest stay, at least 1.
        protected: Steps that stay whatever their age, such as the best one.

    Raises:
        ValueError: ``keep_last_n`` is below 1.

    Example:
        >>> to_remove([10, 20, 30, 40, 50], keep_last_n=2, protected={20})
        [10, 30]
    """
    if keep_last_n < 1:
        raise ValueError(f"keep_last_n is {keep_last_n}, expected at least 1")
    return [step for step in sorted(set(steps))[:-keep_last_n] if step not in protected]
