"""Medical Segmentation Decathlon: a `dataset.json` that lists images and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from medcl3d.data.json_file import read_json
from medcl3d.data.manifest import Manifest
from medcl3d.data.sources import SOURCES
from medcl3d.errors import DataError


@SOURCES.register("decathlon")
def decathlon(root: Path, *, allow_outside: bool = False) -> Manifest:
    """Read a folder of the Decathlon. Source: Simpson et al. 2019, arXiv:1902.09063.

    The sets carry no patient ids, so each file counts as its own patient: two scans of one person
    (left and right hippocampus) may then fall on both sides of a split. The `imagesTs` of a set have
    no labels and join the training side.

    Raises DataError where `dataset.json` is absent or not what it should be.
    """
    path = root / "dataset.json"
    content = _read(path)
    modality = "+".join(str(m) for m in content.get("modality", {}).values()) or "unknown"
    try:
        pairs = [(item["image"], item.get("label", "")) for item in content["training"]]
        pairs += [(item if isinstance(item, str) else item["image"], "") for item in content.get("test", [])]
        names = {int(value): str(name) for value, name in content.get("labels", {}).items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not the Decathlon's layout ({error!r}); needed are training: [{{image, label}}] and labels") from None
    stems = [Path(image).name.removesuffix(".gz").removesuffix(".nii") for image, _ in pairs]
    table = pd.DataFrame(
        {
            "scan": stems,
            "modality": modality,
            "path": [str(Path(image)) for image, _ in pairs],
            "label": [str(Path(label)) if label else "" for _, label in pairs],
        }
    )
    return Manifest.of(table, root, names, outside=allow_outside)


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path, "a Decathlon folder holds dataset.json, imagesTr and labelsTr")
    if not isinstance(content, dict):
        raise DataError(f"{path}: a JSON object is needed, with training: [{{image, label}}] and labels")
    return content
