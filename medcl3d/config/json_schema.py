"""JSON Schemas: types in words, and the schema of a field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medcl3d.config.field_types import CHOICE_OF
from medcl3d.config.yaml_tree import Place

PLURAL = {"number": "numbers", "integer": "whole numbers", "string": "words", "path": "paths"}

BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def type_words(spec: Mapping[str, Any]) -> str:
    """The type in a JSON Schema as text."""
    if "enum" in spec or "const" in spec:
        return " or ".join(str(v) for v in spec.get("enum", [spec.get("const")]))
    if "anyOf" in spec:
        return " or ".join(type_words(option) for option in spec["anyOf"])
    kind = str(spec.get("type", "value"))
    if CHOICE_OF in spec:
        kind = f"one of {str(spec[CHOICE_OF]).rsplit('.', 1)[-1]}"
    elif spec.get("format") == "path":
        kind = "path"
    if kind == "array":
        items = spec.get("prefixItems", [])
        if items and all(item == items[0] for item in items):
            return f"{len(items)} {_plural(type_words(items[0]))}"
        return f"list of {_plural(type_words(spec['items']))}" if spec.get("items") else "list"
    return " ".join([kind, *(f"{sign} {spec[key]}" for key, sign in BOUNDS.items() if key in spec)])


def _plural(words: str) -> str:
    first, space, rest = words.removeprefix("one of ").partition(" ")
    return f"{PLURAL.get(first, first)}{space}{rest}"


def _node(schema: Mapping[str, Any], where: Place) -> Mapping[str, Any]:
    """The part of a JSON Schema for a place, {} if there is none."""
    node: Mapping[str, Any] = resolved(schema, schema)
    for key in where:
        node = next(
            (inner for form in node.get("anyOf", [node]) if (inner := below(resolved(form, schema), key))), {}
        )
        node = resolved(node, schema)
    options = [resolved(form, schema) for form in node.get("anyOf", [])]
    return next((form for form in options if "properties" in form), node)


def below(node: Mapping[str, Any], key: Any) -> Mapping[str, Any]:
    """The part of a JSON Schema for one key or position, {} if there is none."""
    if isinstance(key, int):
        items = node.get("prefixItems", [])
        found = items[key] if key < len(items) else node.get("items")
    else:
        found = node.get("properties", {}).get(key) or node.get("additionalProperties")
    return found if isinstance(found, Mapping) else {}


def resolved(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The target of a reference, or the node itself."""
    while "$ref" in node:
        node = schema["$defs"][str(node["$ref"]).rsplit("/", 1)[-1]]
    return node
