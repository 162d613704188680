"""The errors a user can meet: what is wrong, where, what was expected, what to do."""

from __future__ import annotations


class MlxfnError(Exception):
    """Root of every error mlxfn raises on purpose.

    Args:
        what: What is wrong, in one sentence.
        where: File, line, key or row that it concerns.
        got: The value that was found.
        expected: What would have been right.
        remedy: What the user can do about it.

    Example:
        >>> print(MlxfnError("the rank is 0", where="adapter.rank", remedy="use 8 or 16"))
        the rank is 0
          where:    adapter.rank
          remedy:   use 8 or 16
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        got: object = None,
        expected: object = None,
        remedy: object = None,
    ) -> None:
        self.what = what
        self.where = where
        self.got = got
        self.expected = expected
        self.remedy = remedy
        super().__init__(self.render())

    def render(self) -> str:
        """Return the message as the command line prints it, one part per line."""
        parts = {
            "where": self.where,
            "got": self.got,
            "expected": self.expected,
            "remedy": self.remedy,
        }
        lines = [f"  {name + ':':<9} {text}" for name, text in parts.items() if text is not None]
        return "\n".join([self.what, *lines])


class ConfigError(MlxfnError):
    """A wrong command line, configuration value, model or adapter (exit code 2)."""

    exit_code = 2


class DataError(MlxfnError):
    """A data set that cannot be trained on as it is (exit code 3)."""

    exit_code = 3


class RunDirError(MlxfnError):
    """A run directory that cannot be used, or a file in it that cannot be written (exit code 4)."""

    exit_code = 4


class CheckpointError(RunDirError):
    """A checkpoint that is damaged or belongs to something else (exit code 4)."""


class HaltedError(MlxfnError):
    """A run stopped by its own health checks: diverged or non-finite (exit code 5)."""

    exit_code = 5


class MemoryBudgetError(MlxfnError):
    """A configuration that does not fit the memory budget (exit code 6)."""

    exit_code = 6
