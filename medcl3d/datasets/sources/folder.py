"""Scans identified by folder and file names: a pattern with names in braces."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medcl3d.core.columns import PATH_COLUMNS
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.datasets.columns import patient_column_remedy, similar_columns
from medcl3d.datasets.manifest import Manifest
from medcl3d.datasets.sources import SOURCES
from medcl3d.io.json_file import read_label_names
from medcl3d.io.walk import files_under, skipped_notes


@SOURCES.register("folder")
def folder(root: Path, *, pattern: str, label: str | None = None, allow_outside: bool = False) -> Manifest:
    """Read scans identified by their paths, as ``{patient}/{session}_{modality}.nii.gz``.

    pattern  of an image's path below the root; a name in braces matches a piece of one folder or file name
             and becomes a column (patient, session, modality, frame, class, ...), ``*`` matches any piece,
             ``**/`` any folders
    label    of a label map's path; its names in braces are a subset of those of `pattern` and select its
             images

    Without ``{patient}`` each scan counts as its own patient, with a warning. Files that match neither
    pattern are counted, as are files that look like scans of another format. A `labels.json` in the root,
    ``{"1": "name"}``, declares the classes; 0 is background.

    Raises ConfigError for an invalid pattern; DataError if no file matches, or if one path matches in two
    ways.
    """
    images = _Pattern("pattern", pattern)
    maps = _Pattern("label", label) if label else None
    unknown = sorted(set(maps.names) - set(images.names)) if maps else []
    if unknown:
        raise ConfigError("label", label, f"{{{unknown[0]}}} is not in pattern = {pattern!r}", "add it there")
    if label == pattern:
        raise ConfigError("label", label, "is also the pattern of the images", "write a different pattern")
    near = similar_columns(images.names)
    if "patient" in near:
        problem = f"{{{near['patient']}}}: {patient_column_remedy(near['patient'])}"
        raise ConfigError("pattern", pattern, problem)
    rows: list[dict[str, str]] = []
    labels: dict[tuple[str, ...], str] = {}
    unreadable: list[OSError] = []
    files = list(files_under(root, unreadable.append))
    for file in files:
        path = file.as_posix()
        of_label = maps.read(root, path) if maps else None
        of_image = images.read(root, path) if of_label is None else None
        if of_label is not None:
            key = tuple(of_label.values())
            if key in labels:
                problem = f"{labels[key]} is a label of the same images"
                raise DataError(root / path, problem, "use more names in braces in label")
            labels[key] = path
        elif of_image is not None:
            rows.append({**of_image, "path": path})

    def why(path: str) -> str:
        return "label maps have no image" if path in labels.values() else "NIfTI files match no pattern"

    if not rows or (maps and not labels):
        unmatched = f"pattern = {pattern!r}" if not rows else f"label = {label!r}"
        others = skipped_notes(root, files, unreadable, taken={row["path"] for row in rows}, why=why)
        remedy = "; ".join(others) or "the root has no other NIfTI file"
        raise DataError(root, f"no file matches {unmatched}", remedy)
    if maps:
        for row in rows:
            row["label"] = labels.get(tuple(row[name] for name in maps.names), "")
    names = read_label_names(root / "labels.json")
    manifest = Manifest.of(pd.DataFrame(rows), root, names, outside=allow_outside)
    return manifest.with_skipped(files, unreadable, why)


class _Pattern:
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
