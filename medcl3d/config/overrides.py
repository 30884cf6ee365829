"""Values from command-line text: by the type of its field, it is used unchanged or parsed as YAML."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import TypeAdapter

from medcl3d.config.json_schema import resolved
from medcl3d.config.registry import Registry
from medcl3d.config.yaml_tree import Tree
from medcl3d.core.errors import ConfigError

Schema = Mapping[str, Any]
# in a JSON Schema: ``module:name`` of the definitions of the free-form fields below this one
FIELDS_OF = "x-fields-of"
# the same for dotted keys of such fields, with values of another type
PATHS_OF = "x-paths-of"
EMPTY = ("", "~")
_JSON_SCHEMAS: dict[type, Schema] = {}  # of configurations: making one takes about 20 ms


def value_of(text: str, types: Sequence[Schema]) -> Any:
    """The value of one field.

    For a text or path field, text is used unchanged, also ``cohort #2`` and ``2024``, except for quotes
    around it; ``null`` is None if the field is optional. For any other field the text is parsed as YAML. Text
    that is not YAML, or that has a comment which YAML would drop, remains text: types are validated later.

    types: the forms that JSON Schemas allow for the field, empty if unknown.
    """
    try:
        if not types or not all(_is_text(form) or _is_null(form) for form in types):
            return Tree(text, comments=False).value
        if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
            return str(Tree(text).value)
    except (yaml.YAMLError, ConfigError):
        return text
    nothing = text in EMPTY or (text.lower() == "null" and any(map(_is_null, types)))
    return None if nothing else text


def json_schema_of(model: type) -> Schema:
    """The JSON Schema of a configuration; not to be changed."""
    if model not in _JSON_SCHEMAS:
        _JSON_SCHEMAS[model] = TypeAdapter(model).json_schema()
    return _JSON_SCHEMAS[model]


def schemas_at(place: str) -> list[Schema]:
    """The JSON Schema of a configuration, or those of all components of a registry."""
    found = pkgutil.resolve_name(place)
    is_registry = isinstance(found, Registry)
    return [found.json_schema(one) for one in found.names()] if is_registry else [json_schema_of(found)]


def _forms(node: Schema, schema: Schema) -> list[Schema]:
    node = resolved(node, schema)
    return [resolved(form, schema) for form in node.get("anyOf", [node])]


def _is_text(form: Schema) -> bool:
    return form.get("type") == "string" and "enum" not in form and "const" not in form


def _is_null(form: Schema) -> bool:
    return form.get("type") == "null"
