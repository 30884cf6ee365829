"""Medical Segmentation Decathlon: a `dataset.json` that lists images and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from medcl3d.data.json_file import label_names, read_json
from medcl3d.data.manifest import Manifest
from medcl3d.data.notes import naming
from medcl3d.data.scan_ids import made_ids
from medcl3d.data.sources import SOURCES
from medcl3d.data.walk import volumes_under
from medcl3d.errors import DataError

NEEDED = 'needed are training: [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}] and labels: {"0": "background", "1": "liver"}'


@SOURCES.register("decathlon")
def decathlon(root: Path, *, allow_outside: bool = False) -> Manifest:
    """Read a folder of the Decathlon. Source: Simpson et al. 2019, arXiv:1902.09063.

    The sets carry no patient ids, so each file counts as its own patient: two scans of one person
    (left and right hippocampus) may then fall on both sides of a split. The `imagesTs` of a set have
    no labels and join the training side. Images that `dataset.json` does not list are counted.

    Raises DataError where `dataset.json` is absent or not what it should be.
    """
    path = root / "dataset.json"
    content = _read(path)
    pairs = [_pair(path, "training", number, item) for number, item in enumerate(_list(path, content, "training"))]
    tests = _list(path, content, "test") if content.get("test") else []
    pairs += [(_pair(path, "test", number, item)[0], "") for number, item in enumerate(tests)]
    if not pairs:
        raise DataError(f"{path}: training lists no image; {NEEDED}")
    images = [image for image, _ in pairs]
    stems = [Path(image).name.removesuffix(".gz").removesuffix(".nii") for image in images]
    columns = {"scan": made_ids(images, stems), "modality": _modality(content.get("modality")), "path": images}
    table = pd.DataFrame({**columns, "label": [label for _, label in pairs]})
    names = label_names(path, content.get("labels") or {})
    return Manifest.of(table, root, names, outside=allow_outside, notes=_unlisted(root, images))


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path, "a Decathlon folder holds dataset.json, imagesTr and labelsTr")
    if not isinstance(content, dict):
        raise DataError(f"{path}: a JSON object is needed, with training: [{{image, label}}] and labels")
    if "channel_names" in content:
        raise DataError(f"{path}: is of nnU-Net; prepare it with the source nnunet")
    return content


def _list(path: Path, content: dict[str, Any], name: str) -> list[Any]:
    if not isinstance(content.get(name), list):
        raise DataError(f"{path}: not the Decathlon's layout: {name} is no list; {NEEDED}")
    return list(content[name])


def _pair(path: Path, part: str, number: int, item: Any) -> tuple[str, str]:
    """Paths of an image and its label, "" for none; test images are often listed by their paths alone."""
    if isinstance(item, str):
        item = {"image": item}
    image, label = (item.get("image"), item.get("label") or "") if isinstance(item, dict) else (None, "")
    if not isinstance(image, str) or not image or not isinstance(label, str):
        raise DataError(f"{path}: not the Decathlon's layout: {part}[{number}] names no image and label; {NEEDED}")
    return str(Path(image)), str(Path(label)) if label else ""


def _modality(given: Any) -> str:
    """``{"0": "FLAIR", "1": "T1w"}`` -> ``FLAIR+T1w``, since all channels lie in one file."""
    names = given.values() if isinstance(given, dict) else given if isinstance(given, list) else [given] if given else []
    return "+".join(str(name) for name in names) or "unknown"


def _unlisted(root: Path, images: list[str]) -> list[str]:
    """What lies beside the listed images and is passed over."""
    notes, listed = [], set(images)
    for folder in ("imagesTr", "imagesTs"):
        if (root / folder).is_dir():
            volumes, unread = volumes_under(root / folder)
            others = [f"{folder}/{file}" for file in volumes if f"{folder}/{file}" not in listed]
            notes += [naming(f"{len(others)} images are not listed in dataset.json and not taken", others)] if others else []
            notes += unread
    return notes
