"""Medical Segmentation Decathlon: a `dataset.json` that lists images and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from medcl3d.data.json_file import label_names, read_json
from medcl3d.data.manifest import Manifest
from medcl3d.data.notes import Counted
from medcl3d.data.scan_ids import made_ids
from medcl3d.data.sources import SOURCES
from medcl3d.data.sources.nnunet import is_numbered
from medcl3d.data.walk import VOLUMES, files_under
from medcl3d.errors import DataError

NEEDED = 'needed are training: [{"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}] and labels: {"0": "background", "1": "liver"}'
# By the lists of a file; testing is what MONAI calls the test list.
SIDES = {"training": "train", "validation": "validation", "test": "test", "testing": "test"}

Pair = tuple[str, str, str]  # image, label, side


@SOURCES.register("decathlon")
def decathlon(root: Path, *, allow_outside: bool = False) -> Manifest:
    """Read a folder of the Decathlon, or a list of files in the same form, as MONAI's. Source: Simpson et al. 2019, arXiv:1902.09063.

    root  the folder with `dataset.json`, or such a file under another name

    Taken are the lists training, validation and test (or testing). Images of validation and test that have labels are those sides of
    the split; without labels, as in the `imagesTs` of the Decathlon, they join the training side. The sets carry no patient ids, so
    each file counts as its own patient: two scans of one person (left and right hippocampus) may then fall on both sides of a split.
    Other lists, and images that no list names, are counted.

    Raises DataError where `dataset.json` is absent or not what it should be.
    """
    path, root = (root, root.parent) if root.is_file() else (root / "dataset.json", root)
    content = _read(path)
    left = Counted()
    pairs = _pairs(path, content, left)
    if not pairs:
        raise DataError(f"{path}: training lists no image; {NEEDED}")
    images = [image for image, _, _ in pairs]
    if "modality" in content and is_numbered(root, images):
        raise DataError(f"{path}: its images are there with numbers of channels, as nnU-Net has them; prepare it with the source nnunet")
    stems = [Path(image).name.removesuffix(".gz").removesuffix(".nii") for image in images]
    columns = {"scan": made_ids(images, stems), "modality": _modality(content.get("modality")), "path": images}
    table = pd.DataFrame({**columns, "label": [label for _, label, _ in pairs]})
    if {side for _, _, side in pairs} != {"train"}:
        table["split"] = [side for _, _, side in pairs]
    names = label_names(path, content.get("labels") or {})
    closed: list[OSError] = []
    files = files_under(root, closed.append)
    manifest = Manifest.of(table, root, names, outside=allow_outside, notes=left.notes())
    return manifest.noting(files, closed, lambda file: f"{_what(file)} are not listed in {path.name} and not taken")


def _what(file: str) -> str:
    return "label maps" if file.startswith("labels") else "images"


def _pairs(path: Path, content: dict[str, Any], left: Counted) -> list[Pair]:
    """All images of the lists that are known; those of other lists are counted."""
    pairs: list[Pair] = []
    for part, side in SIDES.items():
        for number, item in enumerate(_list(path, content, part) if part == "training" or content.get(part) else []):
            image, label = _pair(path, part, number, item)
            pairs.append((image, label, side if label else "train"))
            for key in sorted(set(item) - {"image", "label"}) if isinstance(item, dict) else ():
                left.add(f"items of {path.name} have a key {key}, which is not read", image)
    for part, items in content.items():
        for item in items if isinstance(items, list) and part not in SIDES else ():
            named = str(item.get("image")) if isinstance(item, dict) else str(item)
            if isinstance(item, dict) or named.endswith(VOLUMES):
                left.add(f"items of the list {part} in {path.name} are not taken; move them to training, validation or test", named)
    return pairs


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
