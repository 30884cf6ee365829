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
from medcl3d.config.yaml_tree import COMMAND_LINE, ConfigProblem, Place, Tree
from medcl3d.core.errors import ConfigError

T = TypeVar("T")
MAX_ALSO = 3  # further mistakes in one message


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
    first, *others = (_located(tree, one, name) for one in wrong)
    also = "".join(f"; also {text}" for text in others[:MAX_ALSO])
    raise ConfigError(
        f"{first}{also}" + (f"; and {len(others) - MAX_ALSO} more" if len(others) > MAX_ALSO else "")
    )


def _located(tree: Tree, wrong: ConfigProblem, name: str) -> str:
    """``file:line: key = value: problem``."""
    where, text = wrong.where, f"{_key(wrong.where, wrong.value)}{wrong.message}"
    if wrong.value is None and where:  # inconsistent fields: the message begins with one of them
        below = tree.place(".".join(map(str, (*where, wrong.message))))
        if below is not None and len(below) > len(where):
            where, text = below, ".".join(map(str, (*where, wrong.message)))
    elif not where and (below := tree.place(wrong.message)):
        where = below
    return f"{_line_prefix(tree, where, name)}{text}"


def _line_prefix(tree: Tree, where: Place, name: str) -> str:
    line = tree.line(where)
    return f"{line if line == COMMAND_LINE else f'{name}:{line}' if line else name}: "


def _at_home(value: Any) -> Any:
    """The same values, with text that begins with ``~/`` expanded to a path in the home folder."""
    if isinstance(value, str) and value.startswith("~/"):
        return str(Path(value).expanduser())
    if isinstance(value, dict):
        return {key: _at_home(inner) for key, inner in value.items()}
    return [_at_home(inner) for inner in value] if isinstance(value, list) else value


def _infinite(value: Any, where: Place = ()) -> Iterator[ConfigProblem]:
    if isinstance(value, float) and not math.isfinite(value):
        yield ConfigProblem(where, value, "not a finite number; write one")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _infinite(item, (*where, key))


def _key(where: Place, value: Any) -> str:
    key = ".".join(str(k) for k in where)
    if value is None:
        return f"{key}: " if key else ""
    return f"{key} = {_short(value)}: " if key else f"= {_short(value)}: "


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
