"""Descriptions of fields, from the sections of docstrings that describe them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from medcl3d.config.registry import Registry

_ENTRY = re.compile(r"(?P<names>[a-z]\w*(?:, [a-z]\w*)*)  +(?P<text>\S.*)")
"""A line such as ``min_iou, max_iou  overlap of the two crops``; further lines of the text are indented."""
_AS_IN = re.compile(r"[Ff]ields as in `(\w+)`")
"""A reference to a component of the same kind that describes the same fields."""


def field_descriptions(text: str) -> dict[str, str]:
    """Field -> its description in a docstring without indentation, on one line."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        entry = _ENTRY.fullmatch(line)
        if entry:
            names = entry["names"].split(", ")
            found |= dict.fromkeys(names, entry["text"])
        elif line.startswith(" ") and names:
            found |= dict.fromkeys(names, f"{found[names[0]]} {line.strip()}")
        else:
            names = []
    return found


def documentation(registry: Registry, name: str) -> list[str]:
    """The docstrings that describe the fields of a component, the most specific first.

    Those of the class and of the classes that it inherits from, or of the function; then those of components
    that they name as in "Other fields as in `simclr`".
    """
    constructor = registry.get(name)
    owners = inspect.getmro(constructor) if inspect.isclass(constructor) else (constructor,)
    own = [inspect.cleandoc(one.__doc__) for one in owners if one.__doc__ and one.__module__ != "builtins"]
    named = [other for text in own for other in _AS_IN.findall(text)]
    return [*own, *(text for other in named for text in documentation(registry, other))]


def with_descriptions(schema: Mapping[str, Any], *docstrings: str) -> dict[str, Any]:
    """The JSON Schema of an object, with the descriptions of its fields; earlier docstrings take precedence.

    A field with a description keeps it.
    """
    known: dict[str, str] = {}
    for docstring in docstrings:
        known = field_descriptions(docstring) | known
    properties = {
        name: {"description": known[name], **spec} if name in known else spec
        for name, spec in schema.get("properties", {}).items()
    }
    return {**schema, "properties": properties} if properties else dict(schema)
