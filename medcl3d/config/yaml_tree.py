"""YAML as plain values with the line of each, without silent conversions.

In the core schema of YAML 1.2, ``1e-4`` is a number, and ``no``, ``010`` and ``12:30`` are text (PyYAML alone
reads text, False, 8 and 750). Tags, duplicate keys, recursive aliases and files that expand without limit
are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from medcl3d.core.errors import ConfigError
from medcl3d.core.errors import Where as Place

COMMAND_LINE = "command line"
MAX_DEPTH = 20
MAX_VALUES = 100_000
TAG = "tag:yaml.org,2002:"
FLOAT = (
    r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"
    r"|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)


def _too_deep(where: Place, line: int) -> ConfigError:
    return ConfigError(where, None, f"nested deeper than {MAX_DEPTH} levels", "write it flatter", place=line)


class CoreLoader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node with its children; nesting is limited, since this recursion overflows first."""
        if self.depth > MAX_DEPTH:
            raise _too_deep((), self.line + 1)
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


class CommentlessLoader(CoreLoader):
    """CoreLoader for text without comments: yaml.YAMLError if YAML would drop text after a ``#``."""

    def scan_to_next_token(self) -> None:
        """Skip spaces, and refuse a comment among them."""
        start = self.pointer
        super().scan_to_next_token()
        if "#" in self.buffer[start : self.pointer]:
            raise yaml.YAMLError("a comment")


SCALARS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    "str": str,
}
for _name, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", list("-+0123456789")),
    ("float", FLOAT, list("-+.0123456789")),
):
    CoreLoader.add_implicit_resolver(TAG + _name, re.compile(_pattern), _first)


def _places(value: Any, where: Place = ()) -> Iterator[Place]:
    """Every place of a tree; text also counts as a key below it: `simclr` is short for {simclr: {}}."""
    if where:
        yield where
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*where, key))
    if isinstance(value, str):
        yield (*where, value)


class Tree:
    """The plain values of a YAML text and the line of each. ConfigError or yaml.YAMLError: it is invalid."""

    def __init__(self, text: str, comments: bool = True):
        self.lines: dict[Place, str] = {}
        self._count = 0
        root = yaml.compose(text, Loader=CoreLoader if comments else CommentlessLoader)
        self.value: Any = None if root is None else self._plain(root, (), ())

    @classmethod
    def of(cls, value: Any) -> Tree:
        """A tree of values that are not from a file."""
        tree = cls.__new__(cls)
        tree.value, tree.lines = value, {(): ""}
        return tree

    def _plain(self, node: yaml.Node, where: Place, above: tuple[int, ...]) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(where, str(line))
        self._count += 1
        if id(node) in above:
            raise ConfigError(where, None, "an alias contains itself", "write the values out", place=line)
        if len(above) > MAX_DEPTH:  # through aliases
            raise _too_deep(where, line)
        if self._count > MAX_VALUES:
            problem = f"expands to more than {MAX_VALUES} values"
            raise ConfigError(where, None, problem, "use fewer aliases", place=line)
        kind = node.tag.removeprefix(TAG)
        below = (*above, id(node))
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, where, below)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self._plain(item, (*where, i), below) for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and kind in SCALARS:
            try:
                return SCALARS[kind](node.value)
            except ValueError:
                problem = f"a number of {len(node.value)} digits"
                remedy = "write a shorter one, or quote it for text"
                raise ConfigError(where, None, problem, remedy, place=line) from None
        problem = "tags are refused, since a configuration executes no code"
        raise ConfigError(where, node.tag, problem, "write a plain value", place=line)

    def _mapping(self, node: yaml.MappingNode, where: Place, below: tuple[int, ...]) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in plain:
                problem = f"duplicate key, in lines {self.lines[(*where, key)]} and {line}"
                raise ConfigError((*where, key), None, problem, "keep one", place=line)
            self.lines[(*where, key)] = str(line)
            plain[key] = self._plain(value_node, (*where, key), below)
        return plain

    def line(self, where: Place) -> str:
        """The line of a place, or of its nearest parent in the file, or "command line"."""
        while where and where not in self.lines:
            where = where[:-1]
        return self.lines.get(where, "1")

    def find(self, where: Place) -> Place | None:
        """The place of a field, whose first keys may be missing: a component does not have its own place.

        For a field that is not in the tree, since it has its default: the place of its nearest parent.
        """
        places = [(place, tuple(map(str, place))) for place in _places(self.value)]
        keys = tuple(map(str, where))
        ends = [keys[:count] for count in range(len(keys), 0, -1)]
        return next((place for end in ends for place, own in places if own[-len(end) :] == end), None)

    def set(self, where: Place, value: Any) -> None:
        """Set a value from the command line at a place. ConfigError if a parent is a plain value."""
        target = self.value
        for depth, key in enumerate(where[:-1]):
            inner = target.get(key)
            if isinstance(inner, str):  # `objective: simclr` is short for {simclr: {}}
                inner = {inner: {}}
            if inner is None:
                inner = {}
                self.lines.setdefault(where[: depth + 1], COMMAND_LINE)
            if not isinstance(inner, dict):
                raise ConfigError(
                    where, value, f"{'.'.join(where[: depth + 1])} is {inner!r} and has no keys below it"
                )
            target[key] = target = inner
        target[where[-1]] = value
        self.lines = {place: line for place, line in self.lines.items() if place[: len(where)] != where} | {
            where: COMMAND_LINE
        }
