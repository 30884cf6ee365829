"""Messages for pydantic's validation errors: problem and remedy in the terms of the YAML file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from medcl3d.config.json_schema import _node, type_words
from medcl3d.config.suggestions import did_you_mean, nearest
from medcl3d.config.yaml_tree import Place
from medcl3d.core.errors import ConfigError

UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")
PYTHON: dict[str, tuple[type, ...]] = {"string": (str,), "integer": (int,), "number": (int, float)}
_LOOKS_LIKE_ANOTHER_TYPE = re.compile(r"^(yes|no|on|off|[-+]?0\d+|\d+(:\d+)+)$", re.IGNORECASE)


def problems(error: ValidationError, tree: Any, adapter: TypeAdapter[Any]) -> list[ConfigError]:
    """All problems of a tree, ordered: unknown keys, wrong values, missing keys.

    An unknown key that is close to a missing one explains both. Of several forms, the closest counts.
    """
    schema = adapter.json_schema()
    found = list(_by_field(error, tree))
    missing = {where for where, entries in found if entries[0]["type"] in MISSING}
    ranked: list[tuple[int, ConfigError]] = []
    explained = set()
    for where, entries in found:
        kind = entries[0]["type"]
        if kind in UNKNOWN:
            siblings = list(_node(schema, where[:-1]).get("properties", {}))
            near = nearest(str(where[-1]), [str(other[-1]) for other in missing if other[:-1] == where[:-1]])
            explained.add((*where[:-1], near))
            hint = did_you_mean(str(where[-1]), [near] if near else siblings)
            listed = f" (known keys: {', '.join(siblings)})" if siblings else ""
            ranked.append((0, ConfigError(where, _value_at(tree, where), f"unknown key{hint}{listed}")))
        elif kind not in MISSING:
            ranked.append((1, _wrong(where, entries, tree, schema)))
    ranked += [
        (2, _wrong(where, entries, tree, schema)) for where, entries in found if where in missing - explained
    ]
    return [wrong for _, wrong in sorted(ranked, key=lambda entry: entry[0])]


def _by_field(error: ValidationError, tree: Any) -> Iterator[tuple[Place, list[Mapping[str, Any]]]]:
    """The errors of each place; of several forms the deepest errors, since that form fits best."""
    groups: dict[Place, list[tuple[Place, Mapping[str, Any]]]] = {}
    for number, entry in enumerate(error.errors()):
        where, field = _place(entry, tree)
        groups.setdefault((number,) if field is None else ("form", *field), []).append((where, entry))
    for entries in groups.values():
        deepest = max(len(where) for where, _ in entries)
        there = [(where, entry) for where, entry in entries if len(where) == deepest]
        yield there[0][0], [entry for where, entry in there if where == there[0][0]]


def _place(entry: Mapping[str, Any], tree: Any) -> tuple[Place, Place | None]:
    """The place of an error, and the field with several forms, if any (a form's name is not in the file)."""
    where: list[Any] = []
    field = None
    for number, key in enumerate(entry["loc"], start=1):
        if (isinstance(tree, dict) and key in tree) or (
            isinstance(tree, list) and isinstance(key, int) and key < len(tree)
        ):
            tree = tree[key]
        elif number < len(entry["loc"]) or entry["type"] not in MISSING:
            field = tuple(where) if field is None else field
            continue
        where.append(key)
    return tuple(where), field


def _wrong(
    where: Place, entries: Sequence[Mapping[str, Any]], tree: Any, schema: Mapping[str, Any]
) -> ConfigError:
    entry = entries[0]
    kind, cause = entry["type"], entry.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        cause.within(*where)
        return cause
    if kind in MISSING:
        what = "an item" if isinstance(where[-1], int) else "the key"
        return ConfigError(where, None, f"{what} is missing", "add it")
    value = _value_at(tree, where)
    if kind == "value_error":  # inconsistent fields
        return ConfigError(where, None, str(cause))
    if len(entries) > 1 or kind in ("tuple_type", "list_type", "too_long", "too_short"):
        node = _node(schema, where)
        return ConfigError(where, value, f"expected: {type_words(node)}{_as_list(value, node)}")
    message = str(entry["msg"])
    message = message[0].lower() + message[1:]
    if isinstance(value, str) and _LOOKS_LIKE_ANOTHER_TYPE.match(value):
        message += f"; {value!r} is text here: quote it for text, or write true/false or a plain number"
    if isinstance(value, str) and " #" in value:
        rest = value[value.index(" #") + 1 :]
        message += f"; remove {rest!r}, which is part of the value here, not a comment"
    return ConfigError(where, value, message)


def _as_list(value: Any, node: Mapping[str, Any]) -> str:
    """The spelling of a single value as a list, if a list is expected and the value fits; "" otherwise."""
    forms: Sequence[Mapping[str, Any]] = node.get("anyOf", [node])
    array = next((form for form in forms if form.get("type") == "array"), {})
    items = array.get("prefixItems") or [array.get("items", {})]
    fits = isinstance(value, PYTHON.get(items[0].get("type"), ())) and not isinstance(value, bool)
    return f"; write [{', '.join([str(value)] * len(items))}]" if fits else ""


def _value_at(tree: Any, where: Place) -> Any:
    for key in where:
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):
            return None
    return tree
