"""What griffe cannot know about our docstrings: one example each, and constructors by attrs."""

from __future__ import annotations

import re
from typing import Any

import griffe

TITLE = re.compile(r"^( *)Example:$", re.MULTILINE)
ATTRS = ("attrs.frozen", "attrs.define")


class Docstrings(griffe.Extension):
    """Make the loaded objects say what the running ones do."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Call the example ``Examples:``, the only title under which griffe shows code."""
        if obj.docstring:
            obj.docstring.value = TITLE.sub(r"\1Examples:", obj.docstring.value)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        """Give a class made by attrs, or a NamedTuple, the constructor that its fields make."""
        made = any(decorator.callable_path in ATTRS for decorator in cls.decorators)
        named = any(str(base) == "NamedTuple" for base in cls.bases)
        if (made or named) and "__init__" not in cls.members:
            fields = [field for field in cls.attributes.values() if field.annotation]
            parameters = griffe.Parameters(_parameter("self"), *map(_of_field, fields))
            cls.set_member("__init__", griffe.Function("__init__", parameters=parameters))


def _of_field(field: griffe.Attribute) -> griffe.Parameter:
    return _parameter(field.name.lstrip("_"), field.annotation, field.value)


def _parameter(name: str, annotation: Any = None, default: Any = None) -> griffe.Parameter:
    kind = griffe.ParameterKind.positional_or_keyword
    return griffe.Parameter(name, annotation=annotation, kind=kind, default=default)
