"""Parsing of YAML files into frozen dataclasses, with one-line errors that name the line and a remedy.

A file is a complete configuration and executes no code. Types are strict, unknown keys are refused with the
nearest
known one, and a component's fields are validated against its own schema.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from medcl3d.config.overrides import Schema, json_schema_of, value_of
from medcl3d.config.plain import plain
from medcl3d.config.present_names import present_path, present_paths, use_present_names
from medcl3d.config.suggestions import did_you_mean
from medcl3d.config.validate import T, _in_memory, _key, _line_prefix, _validate
from medcl3d.config.yaml_tree import COMMAND_LINE, ConfigProblem, Tree
from medcl3d.core.errors import ConfigError

MAX_BYTES = 1_000_000


def load(
    path: str | Path | Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any], model: type[T]
) -> T:
    """Read a configuration.

    path: a YAML file, or its content as a mapping; overrides: ``key.path=value`` each, or values by their
    ``key.path``;
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
        raise ConfigError(
            f"{path}:{place}: not YAML: {error.problem}; indent with spaces and quote special characters"
        ) from None
    except yaml.YAMLError as error:  # ReaderError, for invalid characters, has no line
        raise ConfigError(
            f"{path}: not YAML: {' '.join(str(error).split())}; save it as plain UTF-8 text"
        ) from None
    except ConfigProblem as wrong:
        place = f"{path}:{wrong.line}" if wrong.line else str(path)
        raise ConfigError(f"{place}: {_key(wrong.where, wrong.value)}{wrong.message}") from None
    if not isinstance(tree.value, dict):
        what = "empty" if tree.value is None else f"a {type(tree.value).__name__}"
        raise ConfigError(
            f"{path}:1: the file is {what}; it must hold keys, as in `seed: 0`. See configs/ for complete "
            "files"
        )
    return _overridden(tree, overrides, model, str(path))


def _overridden(tree: Tree, overrides: Sequence[str] | Mapping[str, Any], model: type[T], name: str) -> T:
    """A validated tree, with some of its fields replaced."""
    schemas = [json_schema_of(model)]
    use_present_names(tree, schemas, name)
    if isinstance(overrides, Mapping):
        paths = present_paths(list(overrides), schemas)
        for path, value in zip(paths, overrides.values(), strict=True):
            _set(tree, path, copy.deepcopy(value), value)
    else:
        present_paths([text.partition("=")[0] for text in overrides], schemas)
        for text in overrides:
            override(tree, text, schemas)
    use_present_names(tree, schemas, name)  # in the values of overrides
    return _validate(tree, TypeAdapter(model), name)


def override(tree: Tree, text: str, schemas: Sequence[Schema] = ()) -> None:
    """Set ``key.path=value`` in a tree, parsed by the types in `schemas`. ConfigError if it is not an
    override.
    """
    path, equals, value = text.partition("=")
    path = present_path(path, schemas)
    where = tuple(path.split("."))
    if not equals or not all(where):
        raise ConfigError(
            f"{COMMAND_LINE}: {text!r} is not an override; write key.path=value, as in train.steps=100"
        )
    _set(tree, path, value_of(value, where, schemas), value)


def _set(tree: Tree, path: str, value: Any, shown: Any) -> None:
    try:
        tree.set(tuple(path.split(".")), value)
    except ConfigProblem as wrong:
        raise ConfigError(f"{COMMAND_LINE}: {path} = {shown}: {wrong.message}") from None


def parse(tree: Mapping[str, Any], model: type[T], name: str, quiet: bool = False) -> T:
    """Validate a configuration in memory; `name` is the file in messages.

    quiet: without a FutureWarning for former names of fields.
    """
    given = _in_memory(tree)
    use_present_names(given, [json_schema_of(model)], name, quiet)
    return _validate(given, TypeAdapter(model), name)


def read_options(texts: Sequence[str], schemas: Sequence[Schema] = ()) -> dict[str, Any]:
    """Parse ``key.path=value`` texts into nested values, as in `override`. ConfigError if one is not an
    override.
    """
    tree = Tree("{}")
    present_paths([text.partition("=")[0] for text in texts], schemas)
    for text in texts:
        override(tree, text, schemas)
    return dict(tree.value)


def with_line(message: str, path: Path, overrides: Sequence[str], schemas: Sequence[Schema] = ()) -> str:
    """A component's message about its configuration, prefixed with file and line.

    Components have no access to the file: their messages begin with a key (``data.patch_size = ...``,
    ``multi_crop: local_size = ...``) or with its value (a path). A message that begins with neither is
    returned unchanged. schemas: JSON Schemas of the file, for former names of fields.
    """
    try:
        tree = Tree(_read(path))
        use_present_names(tree, schemas, str(path), quiet=True)
        for text in overrides:
            override(tree, text, schemas)
    except (ConfigError, ConfigProblem, yaml.YAMLError, AttributeError):  # `load` has reported it
        return message
    text = message.removeprefix(f"{path}: ")
    where = tree.place(text)
    return message if where is None else f"{_line_prefix(tree, where, str(path))}{text}"


def _read(path: Path) -> str:
    if not path.is_file():
        near = (
            did_you_mean(path.name, [p.name for p in path.parent.glob("*.y*ml")])
            if path.parent.is_dir()
            else ""
        )
        raise ConfigError(
            f"{path}: no such file{near}; a minimal one starts with `data: {{root: data/mine}}`; see "
            "configs/ for complete files"
        )
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ConfigError(
            f"{path}: {size} bytes, more than the limit of a configuration ({MAX_BYTES}); check that it "
            "is the right file"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
