"""Fields of a configuration that name a registered component."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, PlainValidator, ValidationError

from medcl3d.config.field_types import Choice
from medcl3d.config.json_schema import type_words
from medcl3d.config.plain import plain
from medcl3d.config.registry import Registry, parse_fields
from medcl3d.config.renamed_fields import with_present_names
from medcl3d.config.suggestions import did_you_mean
from medcl3d.config.validation_errors import problems
from medcl3d.core.errors import ConfigError


def choice_of(registry: Registry) -> Any:
    """The type of a field that chooses one component: ``name`` or ``{name: {field: value}}``."""
    # A default is validated too: that fills in its fields, so that `config.yaml` has them.
    return Annotated[choice_in_list(registry), Field(validate_default=True)]


def choice_in_list(registry: Registry) -> Any:
    """The type of such a choice within a list, or of a field without a default."""
    return Annotated[Choice, PlainValidator(lambda value: _choice(registry, plain(value))), registry]


def _choice(registry: Registry, value: Any) -> Choice:
    """Validate the configuration of one component; ConfigError with the field below the value."""
    if isinstance(value, str):
        value = {value: {}}
    remedy = f"choose from {', '.join(registry.names())}"
    if not isinstance(value, Mapping) or len(value) != 1:
        problem = f"one {registry.kind} is required, as `name` or `name: {{field: value}}`"
        raise ConfigError((), value, problem, remedy)
    ((name, given),) = value.items()
    if name not in registry.names():
        problem = f"no {registry.kind} has this name{did_you_mean(name, registry.names())}"
        raise ConfigError((name,), given, problem, remedy)
    if isinstance(given, Mapping):
        given = with_present_names(given, registry.renamed(name), f"{name}: ")
    fields = registry.schema(name)
    try:
        parsed = fields.validate_json(json.dumps(given or {}, default=str), strict=True)
    except ValidationError as error:
        first = problems(error, given or {}, fields)[0]
        first.within(name)
        raise first from None
    return Choice(name, {field: getattr(parsed, field) for field in type(parsed).model_fields})


@dataclasses.dataclass(frozen=True)
class FieldSpec:
    """Description of one field of a component."""

    name: str
    type: str
    default: Any


def describe(registry: Registry, name: str) -> list[FieldSpec]:
    """The fields of a component: name, type as text, default."""
    properties = registry.schema(name).json_schema().get("properties", {})
    return [
        FieldSpec(key, type_words(spec), spec.get("default", "required")) for key, spec in properties.items()
    ]


def parse_choice(registry: Registry, chosen: str, fields: Mapping[str, Any], name: str) -> Choice:
    """A component with its fields. ConfigError: unknown, or a wrong field; `name` as in `parse`."""
    if chosen not in registry.names():
        problem = f"no {registry.kind} is named {chosen!r}{did_you_mean(chosen, registry.names())}"
        remedy = f"choose from {', '.join(registry.names())}"
        raise ConfigError(problem=problem, remedy=remedy, place=name)
    return Choice(chosen, parse_fields(registry, chosen, fields, name))
