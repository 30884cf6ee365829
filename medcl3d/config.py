"""A YAML file becomes a frozen dataclass, or one line says which line of it is wrong and what would do.

A file says everything and runs nothing. Types are strict, unknown keys are refused with the nearest known one, and
what names a registered thing is checked against that thing's own fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from medcl3d.errors import ConfigError
from medcl3d.registry import Choice, Registry
from medcl3d.yaml_tree import COMMAND_LINE, Place, Tree, Wrong

T = TypeVar("T")
STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
MAX_BYTES = 1_000_000
_LOOKS_LIKE_ANOTHER_TYPE = re.compile(r"^(yes|no|on|off|[-+]?0\d+|\d+(:\d+)+)$", re.IGNORECASE)


def choice_of(registry: Registry) -> Any:
    """The type of a configuration field that names one thing of a registry: ``name`` or ``{name: {field: value}}``."""
    # A default is checked too: that fills in its fields, so that `config.yaml` says them.
    return Annotated[part_of(registry), Field(validate_default=True)]


def part_of(registry: Registry) -> Any:
    """The same within a list, or for a field without a default."""
    return Annotated[Choice, PlainValidator(lambda value: _choice(registry, plain(value))), registry]


def _choice(registry: Registry, value: Any) -> Choice:
    """Check what a configuration says of one registered thing; Wrong with a path below the value."""
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, Mapping) or len(value) != 1:
        raise Wrong(
            (), value, f"one {registry.kind} is needed, as `name` or `name: {{field: value}}`; there are {', '.join(registry.names())}"
        )
    ((name, given),) = value.items()
    if name not in registry.names():
        raise Wrong(
            (name,),
            given,
            f"no {registry.kind} has this name{_did_you_mean(name, registry.names())}; there are {', '.join(registry.names())}",
        )
    try:
        parsed = registry.schema(name).validate_json(json.dumps(given or {}, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        known = [field.name for field in describe(registry, name)]
        raise Wrong((name, *first["loc"]), _value_at(given or {}, first["loc"]), _say(first, known)) from None
    return Choice(name, {field: getattr(parsed, field) for field in type(parsed).model_fields})


@dataclasses.dataclass(frozen=True)
class FieldSpec:
    """One field of a registered thing, for people."""

    name: str
    type: str
    default: Any


def describe(registry: Registry, name: str) -> list[FieldSpec]:
    """The fields of a registered thing: name, type in words, default."""
    properties = registry.schema(name).json_schema().get("properties", {})
    return [FieldSpec(key, _type_words(spec), spec.get("default", "required")) for key, spec in properties.items()]


def _type_words(spec: Mapping[str, Any]) -> str:
    if "enum" in spec or "const" in spec:
        return " or ".join(str(v) for v in spec.get("enum", [spec.get("const")]))
    if "anyOf" in spec:
        return " or ".join(_type_words(option) for option in spec["anyOf"])
    bounds = [
        f"{sign} {spec[key]}"
        for key, sign in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
        if key in spec
    ]
    return " ".join([str(spec.get("type", "value")), *bounds])


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _value_at(tree: Any, where: Place) -> Any:
    for key in where:
        try:
            tree = tree[key]
        except (KeyError, IndexError, TypeError):
            return None
    return tree


def _say(error: Mapping[str, Any], known: Sequence[str]) -> str:
    """One of pydantic's complaints in the words of a person who wants to mend the file."""
    kind, given = error["type"], error.get("input")
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        name = str(error["loc"][-1])
        return f"unknown key{_did_you_mean(name, known)}" + (f" (known here: {', '.join(known)})" if known else "")
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return "an item is missing; add it" if isinstance(error["loc"][-1], int) else "the key is missing; add it"
    message = str(error["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if isinstance(given, str) and _LOOKS_LIKE_ANOTHER_TYPE.match(given):
        message += f"; {given!r} is text here: quote it where text is meant, write true/false or a plain number otherwise"
    return message


def _siblings(model: type, where: Place) -> list[str]:
    """The fields of the dataclass in which the last key of `where` stands."""
    for key in where[:-1]:
        if not dataclasses.is_dataclass(model):
            return []
        hint = get_type_hints(model).get(str(key))
        options = [hint, *get_args(hint)] if get_origin(hint) is not None else [hint]
        model = next((o for o in options if dataclasses.is_dataclass(o)), type(None))  # type: ignore[assignment]
    return [f.name for f in dataclasses.fields(model)] if dataclasses.is_dataclass(model) else []


def _finite(value: Any, where: Place = ()) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise Wrong(where, value, "not a finite number; write one")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        _finite(item, (*where, key))


def _check_choices(model: type, value: Any, where: Place = ()) -> None:
    """Check what names registered things by hand, so that an error keeps its place in the file."""
    if not dataclasses.is_dataclass(model) or not isinstance(value, dict):
        return
    for name, hint in get_type_hints(model, include_extras=True).items():
        # A choice may be one of several forms, as `choice_of(TASKS) | None` is.
        extras = [extra for form in (hint, *get_args(hint)) for extra in getattr(form, "__metadata__", ())]
        registry = next((extra for extra in extras if isinstance(extra, Registry)), None)
        if value.get(name) is not None and registry is not None:
            try:
                _choice(registry, value[name])
            except Wrong as wrong:
                raise Wrong((*where, name, *wrong.where), wrong.value, wrong.message) from None
        elif name in value:
            inner = next((option for option in (hint, *get_args(hint)) if dataclasses.is_dataclass(option)), None)
            if isinstance(inner, type):
                _check_choices(inner, value[name], (*where, name))


def load(path: str | Path, overrides: Sequence[str], model: type[T]) -> T:
    """Read a configuration.

    path: a YAML file; overrides: ``key.path=value`` each; model: a pydantic dataclass with `STRICT`.
    ConfigError: one line ``file:line: key = value: what is wrong; what would do``.
    """
    path = Path(path)
    try:
        text = _read(path)
        tree = Tree(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{mark.line + 1}:{mark.column + 1}" if mark else "1"
        raise ConfigError(f"{path}:{place}: not YAML: {error.problem}; indent with spaces and quote special characters") from None
    except yaml.YAMLError as error:  # the reader's own, of characters, has no line
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}; save it as plain UTF-8 text") from None
    except Wrong as wrong:
        place = f"{path}:{wrong.line}" if wrong.line else str(path)
        raise ConfigError(f"{place}: {_key(wrong.where, wrong.value)}{wrong.message}") from None
    if not isinstance(tree.value, dict):
        what = "empty" if tree.value is None else f"a {type(tree.value).__name__}"
        raise ConfigError(f"{path}:1: the file is {what}; it must hold keys, as in `seed: 0`. Complete files lie in configs/")
    for text in overrides:
        override(tree, text)
    return _validate(tree, model, str(path))


def override(tree: Tree, text: str) -> None:
    """Set ``key.path=value`` in a tree. ConfigError says why it is no override."""
    path, equals, value = text.partition("=")
    where = tuple(path.split("."))
    if not equals or not all(where):
        raise ConfigError(f"{COMMAND_LINE}: {text!r} is not an override; write key.path=value, as in train.steps=100")
    try:
        tree.set(where, _value(value))
    except Wrong as wrong:
        raise ConfigError(f"{COMMAND_LINE}: {path} = {value}: {wrong.message}") from None


def _value(text: str) -> Any:
    """A value as YAML reads it; what is no YAML, as `{patient}/*.nii.gz`, is text, and types are checked after."""
    try:
        return Tree(text).value
    except yaml.YAMLError:
        return text


def parse(tree: Mapping[str, Any], model: type[T], name: str) -> T:
    """Check a configuration that is already in memory; `name` stands for the file in errors."""
    empty = Tree("")
    empty.value = json.loads(json.dumps(tree, default=to_jsonable_python))
    empty.lines = {(): ""}
    return _validate(empty, model, name)


def read_options(texts: Sequence[str]) -> dict[str, Any]:
    """``key.path=value`` each, as plain nested values; a value is read as YAML, or is text. ConfigError names what is no override."""
    tree = Tree("{}")
    for text in texts:
        override(tree, text)
    return dict(tree.value)


def _validate(tree: Tree, model: type[T], name: str) -> T:
    def fail(where: Place, value: Any, message: str) -> ConfigError:
        line = tree.line(where)
        place = line if line == COMMAND_LINE else f"{name}:{line}" if line else name
        return ConfigError(f"{place}: {_key(where, value)}{message}")

    try:
        _finite(tree.value)
        _check_choices(model, tree.value)
        # JSON is the form in which strict types still take a list for a tuple and text for a path.
        return TypeAdapter(model).validate_json(json.dumps(tree.value), strict=True)
    except Wrong as wrong:
        raise fail(wrong.where, wrong.value, wrong.message) from None
    except ValidationError as error:
        # One line is what a person mends at a time, and the first is often the cause of the rest.
        first = error.errors()[0]
        where = tuple(k for k in first["loc"] if not str(k).startswith(("function-", "dataclass")))
        given = None if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument") else _value_at(tree.value, where)
        raise fail(where, given, _say(first, _siblings(model, where))) from None


def _read(path: Path) -> str:
    if not path.is_file():
        near = _did_you_mean(path.name, [p.name for p in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else ""
        raise ConfigError(
            f"{path}: there is no such file{near}; a minimal one starts with `data: {{root: data/mine}}`, complete ones lie in configs/"
        )
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ConfigError(f"{path}: {size} bytes, more than a configuration has ({MAX_BYTES}); is it the right file?")
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
    """A configuration as dicts, lists, numbers and text: what `config.yaml` of a run holds."""
    if isinstance(value, Choice):
        return {value.name: plain(dict(value.fields))}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    return to_jsonable_python(value)


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """What changed between two plain configurations, a line a field."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = [*old, *(k for k in new if k not in old)]
        return [line for k in keys for line in differences(old.get(k), new.get(k), f"{where}.{k}" if where else str(k))]
    return [] if old == new else [f"{where}: {old!r} -> {new!r}"]
