"""YAML as plain values with the line of each, without silent conversions.

In the core schema of YAML 1.2, ``1e-4`` is a number, and ``no``, ``010`` and ``12:30`` are text (PyYAML alone
reads
text, False, 8 and 750). Tags, duplicate keys, recursive aliases and files that expand without limit are
refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

Place = tuple[Any, ...]  # path of a value: keys and list positions from the root

COMMAND_LINE = "command line"
MAX_DEPTH = 20
MAX_VALUES = 100_000
TAG = "tag:yaml.org,2002:"
FLOAT = (
    r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"
    r"|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
)


class ConfigProblem(ValueError):
    """A problem at one place of a tree: place, value (None: not shown), message, and line if known.

    A ValueError, so that a validator may raise it: pydantic then adds the field and continues with the
    others.
    """

    def __init__(self, where: Place, value: Any, message: str, line: int | None = None):
        super().__init__(message)
        self.where, self.value, self.message, self.line = where, value, message, line


class CoreLoader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node with its children, with a limit on nesting, since this recursion is the first to
        overflow.
        """
        if self.depth > MAX_DEPTH:
            raise ConfigProblem(
                (), None, f"nested deeper than {MAX_DEPTH} levels; write it flatter", self.line + 1
            )
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


_ENDS = re.compile(
    r": | = | with |\.\w+ = "
)  # after a key in a message; the last one for a field below it with its default


def _begins_with(message: str, key: str) -> bool:
    return message.startswith(key) and _ENDS.match(message[len(key) :]) is not None


def _places(value: Any, where: Place = ()) -> Iterator[Place]:
    """Every place of a tree; plain text also counts as a key below its place: `simclr` is short for {simclr:
    {}}.
    """
    if where:
        yield where
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*where, key))
    if isinstance(value, str):
        yield (*where, value)


class Tree:
    """The plain values of a YAML text and the line of each. Wrong or yaml.YAMLError if the text is
    invalid.
    """

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
            raise ConfigProblem(where, None, "an alias contains itself; write the values out", line)
        if len(above) > MAX_DEPTH:  # through aliases
            raise ConfigProblem(where, None, f"nested deeper than {MAX_DEPTH} levels; write it flatter", line)
        if self._count > MAX_VALUES:
            raise ConfigProblem(
                where, None, f"expands to more than {MAX_VALUES} values; use fewer aliases", line
            )
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
                digits = len(node.value)
                raise ConfigProblem(
                    where,
                    None,
                    f"a number of {digits} digits; write a shorter one, or quote it for text",
                    line,
                ) from None
        raise ConfigProblem(
            where,
            node.tag,
            "tags are refused, since a configuration executes no code; write a plain value",
            line,
        )

    def _mapping(self, node: yaml.MappingNode, where: Place, below: tuple[int, ...]) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in plain:
                before = self.lines[(*where, key)]
                raise ConfigProblem(
                    (*where, key), None, f"duplicate key, in lines {before} and {line}; keep one", line
                )
            self.lines[(*where, key)] = str(line)
            plain[key] = self._plain(value_node, (*where, key), below)
        return plain

    def line(self, where: Place) -> str:
        """The line of a place, or of its nearest parent in the file, or "command line"."""
        while where and where not in self.lines:
            where = where[:-1]
        return self.lines.get(where, "1")

    def place(self, message: str) -> Place | None:
        """The place whose key or plain value is the beginning of a message, as ``data.patch_size = ...`` or
        ``simclr: ...``.

        The key may lack its parents, and may be followed by a key below it: ``multi_crop: local_size = ...``.
        """
        places = list(_places(self.value))
        heads = [
            (".".join(map(str, place[above:])), place) for place in places for above in range(len(place))
        ]
        heads = [(head, place) for head, place in heads if _begins_with(message, head)]
        if not heads:
            return None
        head, found = max(heads, key=lambda entry: (len(entry[0]), -len(entry[1])))
        rest = message[len(head) :].removeprefix(": ")
        below = [place for place in places if place[: len(found)] == found and len(place) > len(found)]
        named = [place for place in below if _begins_with(rest, ".".join(map(str, place[len(found) :])))]
        return max(named, key=len, default=found)

    def set(self, where: Place, value: Any) -> None:
        """Set a value from the command line at a place. Wrong if a parent is a plain value."""
        target = self.value
        for depth, key in enumerate(where[:-1]):
            inner = target.get(key)
            if isinstance(inner, str):  # `objective: simclr` is short for {simclr: {}}
                inner = {inner: {}}
            if inner is None:
                inner = {}
                self.lines.setdefault(where[: depth + 1], COMMAND_LINE)
            if not isinstance(inner, dict):
                raise ConfigProblem(
                    where, value, f"{'.'.join(where[: depth + 1])} is {inner!r} and has no keys below it"
                )
            target[key] = target = inner
        target[where[-1]] = value
        self.lines = {place: line for place, line in self.lines.items() if place[: len(where)] != where} | {
            where: COMMAND_LINE
        }
