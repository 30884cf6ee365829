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

from medcl3d.config.overrides import Schema, value_of
from medcl3d.config.plain import plain
from medcl3d.config.suggestions import did_you_mean
from medcl3d.config.validate import T, _in_memory, _validate, line_of
from medcl3d.config.yaml_tree import COMMAND_LINE, Tree
from medcl3d.core.errors import ConfigError, UserError

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
            problem=f"not YAML: {error.problem}",
            remedy="indent with spaces and quote special characters",
            place=f"{path}:{place}",
        ) from None
    except yaml.YAMLError as error:  # ReaderError, for invalid characters, has no line
        raise ConfigError(
            problem=f"not YAML: {' '.join(str(error).split())}",
            remedy="save it as plain UTF-8 text",
            place=path,
        ) from None
    except ConfigError as wrong:
        wrong.line, wrong.place = f"{path}:{wrong.place}", ""
        raise
    if not isinstance(tree.value, dict):
        what = "empty" if tree.value is None else f"a {type(tree.value).__name__}"
        raise ConfigError(
            problem=f"the file is {what}",
            remedy="it must hold keys, as in `seed: 0`. See configs/ for complete files",
            place=f"{path}:1",
        )
    return _overridden(tree, overrides, model, str(path))


def _overridden(tree: Tree, overrides: Sequence[str] | Mapping[str, Any], model: type[T], name: str) -> T:
    """A validated tree, with some of its fields replaced."""
    adapter = TypeAdapter(model)
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            _set(tree, key, copy.deepcopy(value))
    else:
        schemas = [adapter.json_schema()] if overrides else []
        for text in overrides:
            override(tree, text, schemas)
    return _validate(tree, adapter, name)


def override(tree: Tree, text: str, schemas: Sequence[Schema] = ()) -> None:
    """Set ``key.path=value`` in a tree, parsed by the types in `schemas`. ConfigError if it is not an
    override.
    """
    path, equals, value = text.partition("=")
    where = tuple(path.split("."))
    if not equals or not all(where):
        raise ConfigError(
            problem=f"{text!r} is not an override",
            remedy="write key.path=value, as in train.steps=100",
            line=COMMAND_LINE,
        )
    _set(tree, path, value_of(value, where, schemas))


def _set(tree: Tree, path: str, value: Any) -> None:
    try:
        tree.set(tuple(path.split(".")), value)
    except ConfigError as wrong:
        wrong.line = COMMAND_LINE
        raise


def parse(tree: Mapping[str, Any], model: type[T], name: str) -> T:
    """Validate a configuration in memory; `name` is the file in messages."""
    return _validate(_in_memory(tree), TypeAdapter(model), name)


def read_options(texts: Sequence[str], schemas: Sequence[Schema] = ()) -> dict[str, Any]:
    """Parse ``key.path=value`` texts into nested values, as in `override`. ConfigError if one is not an
    override.
    """
    tree = Tree("{}")
    for text in texts:
        override(tree, text, schemas)
    return dict(tree.value)


def locate(error: UserError, path: Path, overrides: Sequence[str]) -> None:
    """Set the line of a component's error, since components have no access to the file.

    An error without a field whose place is a value of the file, such as the folder of the data, gets the line
    of that value. Any other error is left unchanged.
    """
    if error.line or not (error.where or error.place):  # `load` has set it, or nothing can
        return
    try:
        tree = Tree(_read(path))
        for text in overrides:
            override(tree, text)
    except (ConfigError, yaml.YAMLError, AttributeError):  # `load` has reported it
        return
    where = tree.find(error.where or (error.place,))
    if where is not None:
        error.line = line_of(tree, where, str(path))
        error.place = "" if error.place == str(path) else error.place


def _read(path: Path) -> str:
    if not path.is_file():
        near = (
            did_you_mean(path.name, [p.name for p in path.parent.glob("*.y*ml")])
            if path.parent.is_dir()
            else ""
        )
        raise ConfigError(
            problem=f"no such file{near}",
            remedy="a minimal one starts with `data: {root: data/mine}`; see configs/ for complete files",
            place=path,
        )
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ConfigError(
            problem=f"{size} bytes, more than the limit of a configuration ({MAX_BYTES})",
            remedy="check that it is the right file",
            place=path,
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            problem=f"not UTF-8 text (byte {error.start})", remedy="save it as UTF-8", place=path
        ) from None
