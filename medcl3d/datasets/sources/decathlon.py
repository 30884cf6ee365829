"""Medical Segmentation Decathlon and MONAI: a `dataset.json` that lists images and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from medcl3d.core.errors import DataError
from medcl3d.core.notes import Counted
from medcl3d.datasets.columns import patient_column_remedy, similar_columns
from medcl3d.datasets.manifest import NO_PATIENTS, Manifest
from medcl3d.datasets.scan_ids import default_ids
from medcl3d.datasets.sources import SOURCES
from medcl3d.datasets.sources.nnunet import is_numbered
from medcl3d.io.json_file import label_names, read_json
from medcl3d.io.walk import VOLUMES, files_under

NEEDED = (
    'training: [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}] and '
    'labels: {"0": "background", "1": "liver"} are needed'
)
# List in the file -> side of the split; MONAI names its test list testing.
SIDES = {"training": "train", "validation": "validation", "test": "test", "testing": "test"}

# Keys that an item may have besides image and label.
COLUMNS = ("patient", "session", "session_days", "modality", "frame", "class")

Row = dict[str, str]


@SOURCES.register("decathlon")
def decathlon(root: Path, *, allow_outside: bool = False) -> Manifest:
    """Read a folder of the Decathlon, or a MONAI file list of the same form.

    Source: Simpson et al. 2019, arXiv:1902.09063.

    root  the folder with `dataset.json`, or such a file under another name

    The lists training, validation and test (or testing) are read. Images of validation and test with labels
    are those sides of the split; without labels, as in the `imagesTs` of the Decathlon, they join the
    training side. An item may have more columns: patient, session, session_days, modality, frame, class.
    Without patient ids, as in the Decathlon, each item counts as its own patient: two scans of one person
    (left and right hippocampus) may then be on both sides of a split. An item of several images becomes one
    scan per image, with one patient and frame. A number as label is read as the class. Other lists, other
    keys and unlisted images are counted.

    Raises DataError if `dataset.json` is absent or invalid.
    """
    path, root = (root, root.parent) if root.is_file() else (root / "dataset.json", root)
    content = _read(path)
    skipped = Counted()
    rows, places = _rows(path, content, skipped)
    if not rows:
        raise DataError(path, "training lists no image", NEEDED)
    images = [row["path"] for row in rows]
    if "modality" in content and is_numbered(root, images):
        raise DataError(path, "its image files have nnU-Net channel numbers", "use the source nnunet")
    stems = [Path(image).name.removesuffix(".gz").removesuffix(".nii") for image in images]
    scans, notes = default_ids(images, stems), skipped.notes()
    if len(set(places)) < len(places):  # items of several images
        notes += [] if any("patient" in row for row in rows) else [NO_PATIENTS]
        first = dict(zip(reversed(places), reversed(scans), strict=True))
        firsts = [first[place] for place in places]
        rows = [{"patient": of, "frame": of, **row} for row, of in zip(rows, firsts, strict=True)]
    table = pd.DataFrame([{"scan": scan, **row} for scan, row in zip(scans, rows, strict=True)]).fillna("")
    if set(table["split"]) == {"train"}:
        del table["split"]
    names = label_names(path, content.get("labels") or {})
    unreadable: list[OSError] = []
    files = files_under(root, unreadable.append)
    manifest = Manifest.of(table, root, names, outside=allow_outside, places=places, notes=notes)

    def why(file: str) -> str:
        kind = "label maps" if file.startswith("labels") else "images"
        return f"{kind} are not listed in {path.name} and are skipped"

    return manifest.with_skipped(files, unreadable, why)


def _rows(path: Path, content: dict[str, Any], skipped: Counted) -> tuple[list[Row], list[str]]:
    """Images of the known lists, and the place of each, as ``dataset.json: training[3]``."""
    rows: list[Row] = []
    places: list[str] = []
    modality = content.get("modality")
    for part, side in SIDES.items():
        items = content.get(part)
        if not isinstance(items, list) and (items or part == "training"):
            raise DataError(path, f"not the Decathlon's layout: {part} is not a list", NEEDED)
        for number, item in enumerate(items or []):
            images, about = _item(path, f"{part}[{number}]", item, skipped)
            split = side if about["label"] or "class" in about else "train"
            for image, name in zip(images, _modalities(modality, len(images)), strict=True):
                rows.append({"path": image, "modality": name, "split": split, **about})
                places.append(f"{path}: {part}[{number}]")
    for part, items in content.items():
        for item in items if isinstance(items, list) and part not in SIDES else ():
            named = str(item.get("image")) if isinstance(item, dict) else str(item)
            if isinstance(item, dict) or named.endswith(VOLUMES):
                remedy = "move them to training, validation or test"
                skipped.add(f"items of the list {part} in {path.name} are skipped; {remedy}", named)
    return rows, places


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path, "a Decathlon folder holds dataset.json, imagesTr and labelsTr")
    if not isinstance(content, dict):
        raise DataError(path, "a JSON object is needed, with training: [{image, label}] and labels")
    if "channel_names" in content:
        raise DataError(path, "is an nnU-Net file", "use the source nnunet")
    return content


def _item(path: Path, place: str, item: Any, skipped: Counted) -> tuple[list[str], Row]:
    """Paths of an item's images, and its other columns; label is "" if absent. DataError."""
    item = {"image": item} if isinstance(item, str) else item
    image, label = (item.get("image"), item.get("label")) if isinstance(item, dict) else (None, None)
    images: list[Any] = image if isinstance(image, list) else [image]
    is_class = isinstance(label, (int, float)) and not isinstance(label, bool)
    are_paths = bool(images) and all(isinstance(one, str) and one for one in images)
    if not are_paths or not (label is None or is_class or isinstance(label, str)):
        raise DataError(path, f"not the Decathlon's layout: {place} has no image and label paths", NEEDED)
    about = {"label": str(Path(label)) if isinstance(label, str) and label else ""}
    if is_class:
        about["class"] = str(label)
        skipped.add(f"items of {path.name} have a number as label, which is read as the class", images[0])
    near = similar_columns(list(item))
    if "patient" in near:
        raise DataError(path, f"{place}: key {near['patient']!r}: {patient_column_remedy(near['patient'])}")
    for key in sorted(set(item) - {"image", "label"}):
        if key in COLUMNS and isinstance(item[key], (str, int, float)):
            about[key] = str(item[key])
        elif item[key] is not None:
            skipped.add(f"items of {path.name} have a key {key}, which is not read", images[0])
    return [str(Path(one)) for one in images], about


def _modalities(given: Any, count: int) -> list[str]:
    """The modality of each image.

    ``{"0": "FLAIR", "1": "T1w"}`` names one per image; ``FLAIR+T1w`` if one file has all channels.
    """
    names = given.values() if isinstance(given, dict) else given if isinstance(given, list) else [given]
    words = [str(name) for name in names if given]
    return words if len(words) == count else ["+".join(words) or "unknown"] * count
