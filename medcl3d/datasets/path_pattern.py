"""A pattern of paths: names in braces match pieces of folder and file names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from medcl3d.core.columns import PATH_COLUMNS
from medcl3d.core.errors import ConfigError, DataError


class PathPattern:
    """A path with names in braces, as a lazy and a greedy regular expression."""

    def __init__(self, field: str, text: str):
        self.field, self.text = field, text
        if text.startswith("/") or ".." in text.split("/"):
            raise ConfigError(field, text, "leaves the root", "write a path below it")
        parts = re.split(r"(\{[A-Za-z_]\w*\}|\*\*/|\*)", text)
        if any(c in part for part in parts[::2] for c in "{}"):
            raise ConfigError(field, text, "a name in braces has letters, digits and _, as {patient}")
        self.names = list(dict.fromkeys(part[1:-1] for part in parts[1::2] if part.startswith("{")))
        wrong = [name for name in self.names if name in PATH_COLUMNS]
        if wrong:
            raise ConfigError(field, text, f"{{{wrong[0]}}} is a column of paths", "choose another name")
        if not self.names and field == "pattern":
            remedy = "write {patient} in place of the patient's id"
            raise ConfigError(field, text, "has no name in braces", remedy)
        self._lazy, self._greedy = (re.compile(_expression(parts, more)) for more in ("?", ""))

    def read(self, root: Path, path: str) -> dict[str, str] | None:
        """Name -> its text in a path, None if it does not match. DataError if it matches in two ways."""
        lazy, greedy = self._lazy.fullmatch(path), self._greedy.fullmatch(path)
        if lazy is None or greedy is None:
            return None
        if lazy.groupdict() != greedy.groupdict():
            ways = f"{lazy.groupdict()} and {greedy.groupdict()}"
            problem = f"matches {self.field} = {self.text!r} in two ways, {ways}"
            raise DataError(root / path, problem, "make the pattern more specific")
        return {name: lazy[name] for name in self.names}


def _expression(parts: Sequence[str], more: str) -> str:
    seen: set[str] = set()
    made = ""
    for place, part in enumerate(parts):
        if place % 2 == 0:
            made += re.escape(part)
        elif part.startswith("{"):
            made += f"(?P={part[1:-1]})" if part in seen else f"(?P<{part[1:-1]}>[^/]+{more})"
            seen.add(part)
        else:
            made += f"(?:[^/]+/)*{more}" if part == "**/" else f"[^/]*{more}"
    return made
