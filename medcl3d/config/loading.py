"""Parsing of YAML files into frozen dataclasses, with one-line errors that name the line and a remedy.

A file is a complete configuration and executes no code. Types are strict, unknown keys are refused with the
nearest known one, and a component's fields are validated against its own schema.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from medcl3d.config.overrides import Schema, json_schema_of, value_of
from medcl3d.config.plain import plain
from medcl3d.config.present_names import field_at, present_paths, use_present_names
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
    ``key.path``; model: a pydantic dataclass with `STRICT`.
    ConfigError: one line ``file:line: key = value: problem; remedy``.
    """
    if isinstance(path, Mapping):
        return _overridden(_in_memory(plain(path)), overrides, model, "configuration")
    path = Path(path)
    text = _read(path)
    try:
        tree = copy.deepcopy(_parsed(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else f"{path}:1"
        remedy = "indent with spaces and quote special characters"
        raise ConfigError(problem=f"not YAML: {error.problem}", remedy=remedy, place=place) from None
    except yaml.YAMLError as error:  # ReaderError, for invalid characters, has no line
        problem = f"not YAML: {' '.join(str(error).split())}"
        raise ConfigError(problem=problem, remedy="save it as plain UTF-8 text", place=path) from None
    except ConfigError as wrong:
        wrong.line, wrong.place = f"{path}:{wrong.place}", ""
        raise
    if not isinstance(tree.value, dict):
        what = "empty" if tree.value is None else f"a {type(tree.value).__name__}"
        remedy = "it must hold keys, as in `seed: 0`. See configs/ for complete files"
        raise ConfigError(problem=f"the file is {what}", remedy=remedy, place=f"{path}:1")
    return _overridden(tree, overrides, model, str(path))


@functools.lru_cache(maxsize=32)
def _parsed(text: str) -> Tree:
    """The tree of a text: a comparison loads the same file for each arm and replicate."""
    return Tree(text)


def _overridden(tree: Tree, overrides: Sequence[str] | Mapping[str, Any], model: type[T], name: str) -> T:
    """A validated tree, with some of its fields replaced."""
    schemas = [json_schema_of(model)]
    use_present_names(tree, schemas, name)
    if isinstance(overrides, Mapping):
        paths = present_paths(list(overrides), schemas)
        for path, value in zip(paths, overrides.values(), strict=True):
            _set(tree, path, copy.deepcopy(value))
    else:
        present_paths([text.partition("=")[0] for text in overrides], schemas)
        for text in overrides:
            override(tree, text, schemas)
    use_present_names(tree, schemas, name)  # in the values of overrides
    return _validate(tree, TypeAdapter(model), name)


def override(tree: Tree, text: str, schemas: Sequence[Schema] = ()) -> None:
    """Set ``key.path=value`` in a tree, parsed by the types in `schemas`. ConfigError: not an override."""
    path, equals, value = text.partition("=")
    if not equals or not all(path.split(".")):
        problem, remedy = f"{text!r} is not an override", "write key.path=value, as in train.steps=100"
        raise ConfigError(problem=problem, remedy=remedy, line=COMMAND_LINE)
    path, types = field_at(path, schemas)
    _set(tree, path, value_of(value, types))


def _set(tree: Tree, path: str, value: Any) -> None:
    try:
        tree.set(tuple(path.split(".")), value)
    except ConfigError as wrong:
        wrong.line = COMMAND_LINE
        raise


def parse(tree: Mapping[str, Any], model: type[T], name: str, quiet: bool = False) -> T:
    """Validate a configuration in memory; `name` is the file in messages.

    quiet: without a FutureWarning for former names of fields.
    """
    given = _in_memory(tree)
    use_present_names(given, [json_schema_of(model)], name, quiet)
    return _validate(given, TypeAdapter(model), name)


def read_options(texts: Sequence[str], schemas: Sequence[Schema] = ()) -> dict[str, Any]:
    """Parse ``key.path=value`` texts into nested values, as in `override`. ConfigError: not an override."""
    tree = Tree("{}")
    present_paths([text.partition("=")[0] for text in texts], schemas)
    for text in texts:
        override(tree, text, schemas)
    return dict(tree.value)


def locate(error: UserError, path: Path, overrides: Sequence[str], schemas: Sequence[Schema] = ()) -> None:
    """Set the line of a component's error, since components have no access to the file.

    An error without a field whose place is a value of the file, such as the folder of the data, gets the line
    of that value. Any other error is left unchanged.

    schemas: JSON Schemas of the file, for former names of fields.
    """
    if error.line or not (error.where or error.place):  # `load` has set it, or nothing can
        return
    try:
        tree = Tree(_read(path))
        use_present_names(tree, schemas, str(path), quiet=True)
        for text in overrides:
            override(tree, text, schemas)
    except (ConfigError, yaml.YAMLError, AttributeError):  # `load` has reported it
        return
    where = tree.find(error.where or (error.place,))
    if where is not None:
        error.line = line_of(tree, where, str(path))
        error.place = "" if error.place == str(path) else error.place


def _read(path: Path) -> str:
    if path.is_dir():
        remedy = "give a YAML file"
        if (path / "config.yaml").is_file():
            remedy = f"that of this run is {path / 'config.yaml'}"
        raise ConfigError(problem="a folder, not a configuration", remedy=remedy, place=path)
    if not path.is_file():
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*.y*ml")])
        remedy = "a minimal one starts with `data: {root: data/mine}`; see configs/ for complete files"
        raise ConfigError(problem=f"no such file{near}", remedy=remedy, place=path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        problem = f"{size} bytes, more than the limit of a configuration ({MAX_BYTES})"
        raise ConfigError(problem=problem, remedy="check that it is the right file", place=path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 text (byte {error.start})"
        raise ConfigError(problem=problem, remedy="save it as UTF-8", place=path) from None
