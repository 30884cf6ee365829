"""What there is to choose from, for people and for editors."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
from collections.abc import Iterable
from typing import Any

from pydantic import TypeAdapter

from medcl3d.config import describe
from medcl3d.errors import ConfigError
from medcl3d.packaged_configs import packaged_names, packaged_root
from medcl3d.registry import Registry

KINDS = {
    "pairs": "medcl3d.pairs:PAIRS",
    "views": "medcl3d.views:VIEWS",
    "encoders": "medcl3d.encoders:ENCODERS",
    "objectives": "medcl3d.objectives:OBJECTIVES",
    "sources": "medcl3d.data.sources:SOURCES",
}
CONFIGS = {
    "pretrain": "medcl3d.training.pretrain:PretrainConfig",
    "finetune": "medcl3d.downstream.finetune:FinetuneConfig",
    "compare": "medcl3d.comparison.plan:CompareConfig",
}


def names_of(kind: str) -> list[str]:
    """The names of all things of one kind. ConfigError for an unknown kind."""
    return packaged_names() if kind == "configs" else _registry(kind).names()


def explain(kind: str, name: str) -> str:
    """What one thing is, with its fields, types and defaults. ConfigError for an unknown kind or name."""
    _known(name, names_of(kind), kind)
    if kind == "configs":
        return (_configs() / f"{name}.yaml").read_text(encoding="utf-8").rstrip()
    registry = _registry(kind)
    fields = describe(registry, name)
    lines = [f"{name} ({registry.kind})", "", inspect.getdoc(registry.get(name)) or "", "", "fields:" if fields else "no fields"]
    width = max((len(f.name) for f in fields), default=0)
    lines += [f"  {f.name:<{width}}  {f.type}, {_default(f.default)}" for f in fields]
    return "\n".join(lines)


def schema_of(kind: str) -> str:
    """The JSON Schema of a configuration as text. ConfigError for an unknown kind."""
    _known(kind, CONFIGS, "configuration")
    schema = TypeAdapter(_load(CONFIGS[kind])).json_schema()
    definitions = schema.setdefault("$defs", {})
    schema |= _resolve({key: value for key, value in schema.items() if key != "$defs"}, definitions)
    schema["$defs"] = {name: _resolve(inner, definitions) for name, inner in definitions.items()} | definitions
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2)


def _configs() -> Any:
    return packaged_root()


def _load(place: str) -> Any:
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def _known(name: str, known: Iterable[str], what: str) -> None:
    names = sorted(known)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"{name}: not one of the {what}; {hint}there are {', '.join(names)}")


def _registry(kind: str) -> Registry:
    _known(kind, [*KINDS, "configs"], "kinds")
    return _load(KINDS[kind])
