"""A table of one's own: `manifest.csv` with one row a scan."""

from __future__ import annotations

import json
from pathlib import Path

from medcl3d.data.manifest import Manifest, read_table
from medcl3d.data.sources import SOURCES
from medcl3d.errors import DataError


@SOURCES.register("csv")
def csv(root: Path, *, manifest: str = "manifest.csv", allow_outside: bool = False) -> Manifest:
    """Read a CSV or TSV whose paths are relative to its folder.

    Needed is the column path; scan (default: from the path) and patient (default: each scan its own, said
    aloud) should be there. Known: session, session_days, modality, frame (scans that
    share world millimetres), label (path of the segmentation), atlas (path of four lines of four numbers: an affine from
    the scan's world mm to an atlas's), class, split. All others are metadata.
    A `labels.json` beside it, ``{"1": "name"}``, declares the classes of the segmentations.

    root: the table itself, or the folder that holds `manifest`.

    Raises DataError for a table that is unreadable or ambiguous.
    """
    path = root if root.is_file() else root / manifest
    return Manifest.of(read_table(path), path.parent, _label_names(path.parent / "labels.json"), outside=allow_outside)


def _label_names(path: Path) -> dict[int, str]:
    if not path.exists():
        return {}
    try:
        return {int(value): str(name) for value, name in json.loads(path.read_text(encoding="utf-8-sig")).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f'{path}: not a JSON object like {{"0": "background", "1": "liver"}}: {error}') from None
