"""Validate plain values against a schema; one message names every mistake."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from medcl3d.config.validation_errors import problems
from medcl3d.config.yaml_tree import COMMAND_LINE, Place, Tree
from medcl3d.core.errors import ConfigError

T = TypeVar("T")


def _in_memory(values: Mapping[str, Any]) -> Tree:
    return Tree.of(json.loads(json.dumps(values, default=to_jsonable_python)))


def _validate(tree: Tree, schema: TypeAdapter[T], name: str) -> T:
    tree.value = _at_home(tree.value)
    wrong = list(_infinite(tree.value))
    try:
        # In JSON mode, strict types still accept a list for a tuple and text for a path.
        parsed = schema.validate_json(json.dumps(tree.value), strict=True)
    except ValidationError as error:
        known = {one.where for one in wrong}
        wrong += [one for one in problems(error, tree.value, schema) if one.where not in known]
    if not wrong:
        return parsed
    for one in wrong:
        one.line, one.named = line_of(tree, one.where, name), one.field
    first, *others = wrong
    first.also = tuple(map(str, others))
    raise first


def line_of(tree: Tree, where: Place, name: str) -> str:
    """``file:line`` of a place, or where else its value is from."""
    line = tree.line(where)
    return line if line == COMMAND_LINE else f"{name}:{line}" if line else name


def _at_home(value: Any) -> Any:
    """The same values, with text that begins with ``~/`` expanded to a path in the home folder."""
    if isinstance(value, str) and value.startswith("~/"):
        return str(Path(value).expanduser())
    if isinstance(value, dict):
        return {key: _at_home(inner) for key, inner in value.items()}
    return [_at_home(inner) for inner in value] if isinstance(value, list) else value


def _infinite(value: Any, where: Place = ()) -> Iterator[ConfigError]:
    if isinstance(value, float) and not math.isfinite(value):
        yield ConfigError(where, value, "not a finite number", "write one")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _infinite(item, (*where, key))
