"""Strategies and laws to test your own pieces with."""

from mlxfn.testing import laws, toys
from mlxfn.testing.law import Fact, LawError, fact

__all__ = ["Fact", "LawError", "fact", "laws", "toys"]
