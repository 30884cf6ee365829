"""Scans identified by folder and file names: a pattern with names in braces."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from medcl3d.core.errors import ConfigError, DataError
from medcl3d.datasets.columns import patient_column_remedy, similar_columns
from medcl3d.datasets.manifest import Manifest
from medcl3d.datasets.name_words import names_label_maps
from medcl3d.datasets.path_pattern import PathPattern
from medcl3d.datasets.pattern_proposal import propose_pattern
from medcl3d.datasets.sources import SOURCES
from medcl3d.io.json_file import read_label_names
from medcl3d.io.walk import files_under, skipped_notes


@SOURCES.register("folder")
def folder(
    root: Path, *, pattern: str | None = None, label: str | None = None, allow_outside: bool = False
) -> Manifest:
    """Read scans identified by their paths, as ``{patient}/{session}_{modality}.nii.gz``.

    pattern  required: of an image's path below the root; a name in braces matches a piece of one folder or
             file name and becomes a column (patient, session, modality, frame, class, ...), ``*`` matches any
             piece, ``**/`` any folders. Without it, the error proposes one
    label    of a label map's path; its names in braces are a subset of those of `pattern` and select its
             images

    Without ``{patient}`` each scan counts as its own patient, with a warning. Files that match neither
    pattern are counted, as are files that look like scans of another format. A `labels.json` in the root,
    ``{"1": "name"}``, declares the classes; 0 is background.

    Raises ConfigError for an invalid pattern, or without one; DataError if no file matches, if one path
    matches in two ways, or if a patient would be a folder of label maps.
    """
    if pattern is None:
        raise ConfigError("pattern", None, "is missing", propose_pattern(root))
    images = PathPattern("pattern", pattern)
    maps = PathPattern("label", label) if label else None
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
            _refuse_label_maps(root / path, of_image.get("patient", ""))
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


def _refuse_label_maps(path: Path, patient: str) -> None:
    """DataError if the name of a patient means label maps, as of a folder `Masken`."""
    if names_label_maps(patient):
        problem = f"patient = {patient!r}: the name means label maps, not a patient"
        remedy = "name these files with label=, or write a pattern that leaves them out"
        raise DataError(path, problem, remedy)
