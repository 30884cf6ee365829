"""Parsing of YAML files into frozen dataclasses, with one-line errors that name the line and a remedy.

A file is a complete configuration and executes no code. Types are strict, unknown keys are refused with the nearest
known one, and a component's fields are validated against its own schema.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from medcl3d.config.overrides import Schema, value_of
from medcl3d.config.registry import Choice, Registry
from medcl3d.config.validation_errors import did_you_mean, problems, type_words
from medcl3d.config.yaml_tree import COMMAND_LINE, Place, Tree, Wrong
from medcl3d.core.errors import ConfigError

T = TypeVar("T")
STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
MAX_BYTES = 1_000_000
MAX_ALSO = 3  # further mistakes in one message


def choice_of(registry: Registry) -> Any:
    """The type of a field that chooses one component of a registry: ``name`` or ``{name: {field: value}}``."""
    # A default is validated too: that fills in its fields, so that `config.yaml` has them.
    return Annotated[part_of(registry), Field(validate_default=True)]


def part_of(registry: Registry) -> Any:
    """The type of such a choice within a list, or of a field without a default."""
    return Annotated[Choice, PlainValidator(lambda value: _choice(registry, plain(value))), registry]


def _choice(registry: Registry, value: Any) -> Choice:
    """Validate the configuration of one component; Wrong with a path below the value."""
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, Mapping) or len(value) != 1:
        known = ", ".join(registry.names())
        raise Wrong((), value, f"one {registry.kind} is required, as `name` or `name: {{field: value}}`; choose from {known}")
    ((name, given),) = value.items()
    if name not in registry.names():
        raise Wrong(
            (name,),
            given,
            f"no {registry.kind} has this name{did_you_mean(name, registry.names())}; choose from {', '.join(registry.names())}",
        )
    fields = registry.schema(name)
    try:
        parsed = fields.validate_json(json.dumps(given or {}, default=str), strict=True)
    except ValidationError as error:
        first = problems(error, given or {}, fields)[0]
        raise Wrong((name, *first.where), first.value, first.message) from None
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
    return [FieldSpec(key, type_words(spec), spec.get("default", "required")) for key, spec in properties.items()]


def load(path: str | Path | Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any], model: type[T]) -> T:
    """Read a configuration.

    path: a YAML file, or its content as a mapping; overrides: ``key.path=value`` each, or values by their ``key.path``;
    model: a pydantic dataclass with `STRICT`.
    ConfigError: one line ``file:line: key = value: problem; remedy``.
    """
    if isinstance(path, Mapping):
        return _overridden(_in_memory(plain(path)), overrides, model, "configuration")
    path = Path(path)
    try:
        text = _read(path)
        tree = Tree(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{mark.line + 1}:{mark.column + 1}" if mark else "1"
        raise ConfigError(f"{path}:{place}: not YAML: {error.problem}; indent with spaces and quote special characters") from None
    except yaml.YAMLError as error:  # ReaderError, for invalid characters, has no line
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}; save it as plain UTF-8 text") from None
    except Wrong as wrong:
        place = f"{path}:{wrong.line}" if wrong.line else str(path)
        raise ConfigError(f"{place}: {_key(wrong.where, wrong.value)}{wrong.message}") from None
    if not isinstance(tree.value, dict):
        what = "empty" if tree.value is None else f"a {type(tree.value).__name__}"
        raise ConfigError(
            f"{path}:1: the file is {what}; it must hold keys, as in `seed: 0`. See configs/ for complete files"
        )
    return _overridden(tree, overrides, model, str(path))


def _overridden(tree: Tree, overrides: Sequence[str] | Mapping[str, Any], model: type[T], name: str) -> T:
    """A validated tree, with some of its fields replaced."""
    adapter = TypeAdapter(model)
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            _set(tree, key, copy.deepcopy(value), value)
    else:
        schemas = [adapter.json_schema()] if overrides else []
        for text in overrides:
            override(tree, text, schemas)
    return _validate(tree, adapter, name)


def override(tree: Tree, text: str, schemas: Sequence[Schema] = ()) -> None:
    """Set ``key.path=value`` in a tree, parsed by the types in `schemas`. ConfigError if it is not an override."""
    path, equals, value = text.partition("=")
    where = tuple(path.split("."))
    if not equals or not all(where):
        raise ConfigError(f"{COMMAND_LINE}: {text!r} is not an override; write key.path=value, as in train.steps=100")
    _set(tree, path, value_of(value, where, schemas), value)


def _set(tree: Tree, path: str, value: Any, shown: Any) -> None:
    try:
        tree.set(tuple(path.split(".")), value)
    except Wrong as wrong:
        raise ConfigError(f"{COMMAND_LINE}: {path} = {shown}: {wrong.message}") from None


def parse(tree: Mapping[str, Any], model: type[T], name: str) -> T:
    """Validate a configuration in memory; `name` is the file in messages."""
    return _validate(_in_memory(tree), TypeAdapter(model), name)


def parse_choice(registry: Registry, chosen: str, fields: Mapping[str, Any], name: str) -> Choice:
    """A component with its fields, defaults filled in. ConfigError: unknown, or a wrong field; `name` as in `parse`."""
    if chosen not in registry.names():
        listed = f"choose from {', '.join(registry.names())}"
        raise ConfigError(f"{name}: no {registry.kind} is named {chosen!r}{did_you_mean(chosen, registry.names())}; {listed}")
    return Choice(chosen, parse_fields(registry, chosen, fields, name))


def parse_fields(registry: Registry, chosen: str, fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The fields of a component, defaults filled in. ConfigError: a wrong field; `name` as in `parse`."""
    values: dict[str, Any] = {}
    for field, value in fields.items():
        try:
            values[field] = plain(value)
        except PydanticSerializationError:
            kind = type(value).__name__
            raise ConfigError(f"{name}: {field}: an object of type {kind} is not a field value; use numbers, text or lists") from None
    parsed = _validate(_in_memory(values), registry.schema(chosen), name)
    return {field: getattr(parsed, field) for field in type(parsed).model_fields}


def _in_memory(values: Mapping[str, Any]) -> Tree:
    return Tree.of(json.loads(json.dumps(values, default=to_jsonable_python)))


def read_options(texts: Sequence[str], schemas: Sequence[Schema] = ()) -> dict[str, Any]:
    """Parse ``key.path=value`` texts into nested values, as in `override`. ConfigError if one is not an override."""
    tree = Tree("{}")
    for text in texts:
        override(tree, text, schemas)
    return dict(tree.value)


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
    raise ConfigError(f"{first}{also}" + (f"; and {len(others) - MAX_ALSO} more" if len(others) > MAX_ALSO else ""))


def _located(tree: Tree, wrong: Wrong, name: str) -> str:
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


def with_line(message: str, path: Path, overrides: Sequence[str]) -> str:
    """A component's message about its configuration, prefixed with file and line.

    Components have no access to the file: their messages begin with a key (``data.patch_size = ...``,
    ``multi_crop: local_size = ...``) or with its value (a path). A message that begins with neither is returned unchanged.
    """
    try:
        tree = Tree(_read(path))
        for text in overrides:
            override(tree, text)
    except (ConfigError, Wrong, yaml.YAMLError, AttributeError):  # `load` has reported it
        return message
    text = message.removeprefix(f"{path}: ")
    where = tree.place(text)
    return message if where is None else f"{_line_prefix(tree, where, str(path))}{text}"


def _at_home(value: Any) -> Any:
    """The same values, with text that begins with ``~/`` expanded to a path in the home folder."""
    if isinstance(value, str) and value.startswith("~/"):
        return str(Path(value).expanduser())
    if isinstance(value, dict):
        return {key: _at_home(inner) for key, inner in value.items()}
    return [_at_home(inner) for inner in value] if isinstance(value, list) else value


def _infinite(value: Any, where: Place = ()) -> Iterator[Wrong]:
    if isinstance(value, float) and not math.isfinite(value):
        yield Wrong(where, value, "not a finite number; write one")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _infinite(item, (*where, key))


def _read(path: Path) -> str:
    if not path.is_file():
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else ""
        raise ConfigError(
            f"{path}: no such file{near}; a minimal one starts with `data: {{root: data/mine}}`; see configs/ for complete files"
        )
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ConfigError(f"{path}: {size} bytes, more than the limit of a configuration ({MAX_BYTES}); check that it is the right file")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def _key(where: Place, value: Any) -> str:
    key = ".".join(str(k) for k in where)
    if value is None:
        return f"{key}: " if key else ""
    return f"{key} = {_short(value)}: " if key else f"= {_short(value)}: "


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def plain(value: Any) -> Any:
    """A configuration as dicts, lists, numbers and text, as in `config.yaml` of a run."""
    if isinstance(value, Choice):
        return {value.name: plain(dict(value.fields))}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return to_jsonable_python(value, fallback=_of_array)


def _of_array(value: Any) -> Any:
    """Numbers of NumPy and torch as Python numbers. PydanticSerializationError for any other object."""
    if not hasattr(value, "tolist"):
        raise PydanticSerializationError(f"a {type(value).__name__} is not a plain value")
    return value.tolist()


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Differences of two plain configurations, one line per field."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        return [line for k in keys for line in differences(old.get(k), new.get(k), f"{where}.{k}" if where else str(k))]
    return [] if old == new else [f"{where}: {old!r} -> {new!r}"]
