"""Lists, descriptions and JSON Schemas of all components and configurations."""

from __future__ import annotations

import inspect
import json
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter

from medcl3d.config.choices import describe
from medcl3d.config.field_descriptions import documentation, with_descriptions
from medcl3d.config.field_types import CHOICE_OF
from medcl3d.config.kinds import CONFIGS, KINDS
from medcl3d.config.packaged import find_config, packaged_names
from medcl3d.config.registry import Registry, registry_of
from medcl3d.config.suggestions import nearest
from medcl3d.core.errors import ConfigError
from medcl3d.datasets.public_sets import find_set, known_sets
from medcl3d.layouts import LAYOUTS


def names_of(kind: str) -> list[str]:
    """All names of one kind. ConfigError for an unknown kind."""
    if kind == "sets":
        return sorted(known_sets())
    if kind == "layouts":
        return sorted(LAYOUTS)
    return packaged_names() if kind == "configs" else _registry(kind).names()


WHAT_KINDS_ARE = {
    "pairs": "pair strategies: which views are drawn together, attract, repel or are ignored",
    "views": "view recipes: augmentations that turn a crop into a view",
    "encoders": "networks",
    "objectives": "losses of a pretraining, with their heads",
    "sources": "formats that `medcl3d prepare` reads",
    "tasks": "what a fine-tuning or an evaluation predicts",
    "sets": "public data sets that `medcl3d download` downloads",
    "layouts": "published weights of other projects that `init` can name",
    "configs": "packaged configurations",
}


def kinds() -> str:
    """The kinds of names, one per line."""
    return _described(WHAT_KINDS_ARE)


def descriptions_of(kind: str) -> str:
    """All names of one kind with a description, one per line. ConfigError for an unknown kind."""
    return _described({name: _description(kind, name) for name in names_of(kind)})


def _description(kind: str, name: str) -> str:
    """The first line of a docstring, the content of a set, or the comment that a file begins with."""
    if kind == "sets":
        return find_set(name).holds
    if kind == "layouts":
        return LAYOUTS[name].about
    if kind == "configs":
        first = find_config(name).read_text(encoding="utf-8").partition("\n")[0]
        return first.removeprefix("# ") if first.startswith("#") else ""
    return (inspect.getdoc(_registry(kind).get(name)) or "").partition("\n")[0]


def _described(names: Mapping[str, str]) -> str:
    width = max(map(len, names), default=0)
    return "\n".join(f"{name:<{width}}  {about}".rstrip() for name, about in names.items())


def explain(kind: str, name: str) -> str:
    """A component with its fields, types and defaults. ConfigError for an unknown kind or name."""
    if kind == "sets":
        return find_set(name).about()
    _known(name, names_of(kind), kind)
    if kind == "layouts":
        return LAYOUTS[name].explained(name)
    if kind == "configs":
        return find_config(name).read_text(encoding="utf-8").rstrip()
    registry = _registry(kind)
    fields = describe(registry, name)
    about = inspect.getdoc(registry.get(name)) or ""
    heading = "fields:" if fields else "no fields"
    width = max((len(f.name) for f in fields), default=0)
    lines = [f"  {f.name:<{width}}  {f.type}, {_default(f.default)}" for f in fields]
    return "\n".join([f"{name} ({registry.kind})", "", about, "", heading, *lines])


def schema_of(kind: str) -> str:
    """The JSON Schema of a configuration as text. ConfigError for an unknown kind."""
    _known(kind, CONFIGS, "configurations")
    schema = TypeAdapter(pkgutil.resolve_name(CONFIGS[kind])).json_schema()
    definitions: dict[str, Any] = {}
    resolved = _resolve(schema, definitions)
    resolved["$defs"] = definitions | resolved.get("$defs", {})
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **resolved}, indent=2)


def _resolve(node: Any, definitions: dict[str, Any]) -> Any:
    """The schema with every choice of a component expanded once in `definitions` (choices may nest)."""
    if isinstance(node, list):
        return [_resolve(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if CHOICE_OF not in node:
        if isinstance(text := node.get("description"), str) and "properties" in node:
            node = {**with_descriptions(node, text), "description": text.partition("\n")[0]}
        return {key: _resolve(value, definitions) for key, value in node.items()}
    package = node[CHOICE_OF]
    if package not in definitions:
        definitions[package] = {}  # ends the recursion of nested choices
        registry = registry_of(package)
        assert registry is not None, package
        definitions[package] |= {
            "oneOf": [form for name in registry.names() for form in _forms(registry, name, definitions)]
        }
    rest = {key: value for key, value in node.items() if key not in (CHOICE_OF, "default")}
    if isinstance(node.get("default"), dict) and "name" in node["default"]:
        rest["default"] = {node["default"]["name"]: node["default"].get("fields", {})}
    return {"$ref": f"#/$defs/{package}", **rest}


def _forms(registry: Registry, name: str, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """The forms of one choice: ``{name: {field: value}}``, and ``name`` alone if no field is required."""
    prefix = f"{registry.package}.{name}."
    fields = registry.schema(name).json_schema(ref_template=f"#/$defs/{prefix}{{model}}")
    for key, inner in fields.pop("$defs", {}).items():
        definitions[prefix + key] = _resolve(inner, definitions)
    docstrings = documentation(registry, name)
    description = (docstrings or [name])[0].partition("\n")[0]
    fields = {**_resolve(with_descriptions(fields, *docstrings), definitions), "description": description}
    whole = {
        "type": "object",
        "properties": {name: fields},
        "required": [name],
        "additionalProperties": False,
    }
    return [whole] if fields.get("required") else [whole, {"const": name, "description": description}]


def _known(name: str, known: Iterable[str], what: str) -> None:
    names = sorted(known)
    if name not in names:
        near = nearest(name, names)
        hint = f"did you mean {near!r}? " if near else ""
        raise ConfigError(
            problem=f"not one of the {what}", remedy=f"{hint}choose from {', '.join(names)}", place=name
        )


def _registry(kind: str) -> Registry:
    _known(kind, WHAT_KINDS_ARE, "kinds")
    registry: Registry = pkgutil.resolve_name(KINDS[kind])
    return registry


def _default(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"name", "fields"}:
        value = {value["name"]: value["fields"]} if value["fields"] else value["name"]
    return "required" if value == "required" else f"default {json.dumps(value)}"
