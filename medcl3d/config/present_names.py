"""Former names of fields in whole configurations, in overrides and in paths of fields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from medcl3d.config.field_types import CHOICE_OF
from medcl3d.config.json_schema import below
from medcl3d.config.overrides import FIELDS_OF, PATHS_OF, Schema, _forms, schemas_at
from medcl3d.config.registry import registry_of
from medcl3d.config.renamed_fields import RENAMED, refuse_both, warn
from medcl3d.config.validate import line_of
from medcl3d.config.yaml_tree import COMMAND_LINE, Place, Tree
from medcl3d.core.errors import ConfigError


class _Form(NamedTuple):
    """A part of a JSON Schema, the schema, and whether the values at the place are of this type."""

    node: Schema
    root: Schema
    typed: bool = True


class _Level(NamedTuple):
    """What JSON Schemas define at one place: forms, and those of free-form fields."""

    forms: tuple[_Form, ...]
    free: tuple[_Form, ...] = ()

    @classmethod
    def of(cls, schemas: Sequence[Schema], typed: bool = True) -> _Level:
        return cls(tuple(_Form(form, schema, typed) for schema in schemas for form in _forms(schema, schema)))

    def below(self, key: Any) -> _Level:
        """The same one level deeper."""
        found: list[_Form] = []
        free: list[_Form] = []
        for node, root, typed in self.forms:
            if CHOICE_OF in node:
                registry = registry_of(node[CHOICE_OF])
                if registry is not None and key in registry.names():
                    found.append(_Form(registry.json_schema(key), registry.json_schema(key), typed))
            elif inner := below(node, key):
                found += [_Form(form, root, typed) for form in _forms(inner, root)]
                for kind in (FIELDS_OF, PATHS_OF):
                    schemas = [schema for place in inner.get(kind, ()) for schema in schemas_at(place)]
                    free += _Level.of(schemas, kind == FIELDS_OF).forms
        if found or not self.free:
            return _Level(tuple(found), tuple(free) or self.free)
        return _Level(self.free).below(key)

    def present(self, key: Any) -> Any:
        """The present name of a key."""
        if any(key in form.node.get("properties", {}) for form in self.forms):
            return key
        names = (form.node.get(RENAMED, {}).get(key) for form in (*self.forms, *self.free))
        return next(filter(None, names), key)

    def steps(self, path: Place) -> Iterator[tuple[Any, _Level]]:
        """The present name of each key of a path, and the level below it."""
        level = self
        for key in path:
            present = level.present(key)
            level = level.below(present)
            yield present, level


def field_at(path: str, schemas: Sequence[Schema]) -> tuple[str, list[Schema]]:
    """A dotted path of a field with present names, without a warning, and the types of the field."""
    keys, levels = zip(*_Level.of(schemas).steps(tuple(path.split("."))), strict=True)
    return ".".join(keys), [form.node for form in levels[-1].forms if form.typed]


def present_paths(paths: Sequence[str], schemas: Sequence[Schema]) -> list[str]:
    """Dotted paths of overrides with present names.

    FutureWarning for each former name; ConfigError if two overrides give one field under both names.
    """
    found = [field_at(path, schemas)[0] for path in paths]
    first: dict[str, str] = {}
    for path, present in zip(paths, found, strict=True):
        other = first.setdefault(present, path)
        if other != path:
            problem, remedy = f"{other} and {path} are two names of one field", f"give only {present}"
            raise ConfigError(problem=problem, remedy=remedy, line=COMMAND_LINE)
        if path != present:
            warn(f"{COMMAND_LINE}: ", path, _last_change(path, present))
    return found


def use_present_names(tree: Tree, schemas: Sequence[Schema], name: str, quiet: bool = False) -> None:
    """Rename the fields of a tree that have former names; their lines remain known.

    name: the file in messages; quiet: without a FutureWarning. ConfigError if a field has both names.
    """
    _update(tree, tree.value, (), _Level.of(schemas), name, quiet)


def _update(tree: Tree, value: Any, where: Place, level: _Level, name: str, quiet: bool) -> None:
    if isinstance(value, dict):
        for key in list(value):
            steps = list(level.steps(tuple(key.split("."))))
            present = ".".join(one for one, _ in steps)
            if present != key:
                place = _place(tree, (*where, key), name)
                refuse_both(present in value, place, key, present)
                if not quiet:
                    warn(place, key, _last_change(key, present))
                _rename(tree, value, where, key, present)
            _update(tree, value[present], (*where, present), steps[-1][1], name, quiet)
    elif isinstance(value, list):
        paths_of = any(PATHS_OF in form.node for form in level.forms)
        for index, item in enumerate(value):
            if paths_of and isinstance(item, str):
                path = ".".join(key for key, _ in _Level(level.free).steps(tuple(item.split("."))))
                if path != item and not quiet:
                    warn(_place(tree, (*where, index, item), name), item, _last_change(item, path))
                value[index] = path
            _update(tree, item, (*where, index), level.below(index), name, quiet)


def _last_change(former: str, present: str) -> str:
    """The last name that differs between two paths of equal length."""
    pairs = zip(former.split("."), present.split("."), strict=True)
    return [new for old, new in pairs if new != old][-1]


def _place(tree: Tree, where: Place, name: str) -> str:
    above = ".".join(map(str, where[:-1]))
    return f"{line_of(tree, where, name)}: {above + '.' if above else ''}"


def _rename(tree: Tree, mapping: dict[str, Any], where: Place, former: str, present: str) -> None:
    """Rename a key in place, with its position among the others and the lines of all below it."""
    items = [(present if key == former else key, value) for key, value in mapping.items()]
    mapping.clear()
    mapping.update(items)
    depth, old = len(where) + 1, (*where, former)
    tree.lines = {
        (*where, present, *place[depth:]) if place[:depth] == old else place: line
        for place, line in tree.lines.items()
    }
