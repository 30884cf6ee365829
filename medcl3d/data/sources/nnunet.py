"""nnU-Net's raw format, version 2: a `dataset.json`, and a file a channel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from medcl3d.data.json_file import read_json
from medcl3d.data.manifest import NO_PATIENTS, Manifest
from medcl3d.data.sources import SOURCES
from medcl3d.data.walk import VOLUMES
from medcl3d.errors import DataError

LAYOUT = 'an nnU-Net folder holds dataset.json with channel_names {"0": "CT"}, labels {"background": 0} and file_ending, imagesTr, labelsTr'


@SOURCES.register("nnunet")
def nnunet(root: Path, *, allow_outside: bool = False) -> Manifest:
    """Read a raw dataset of nnU-Net v2. Source: Isensee et al. 2021, nnU-Net, and its dataset_format.md.

    Each channel file (``CASE_0000.nii.gz``) is a scan of its own, with its channel's name as modality; the channels of a case
    share the case's frame and label. Cases count as patients, since the format knows none. Cases of `imagesTs` that have
    labels in `labelsTs` are the test split; without labels they join the training side.

    Raises DataError where `dataset.json` is not of this format, a case lacks a channel, or there is no image.
    """
    path = root / "dataset.json"
    content = _read(path)
    try:
        channels = {int(number): str(name) for number, name in content["channel_names"].items()}
        names = {int(value): str(name) for name, value in content["labels"].items() if not isinstance(value, list)}
        ending = str(content["file_ending"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not nnU-Net's layout ({error!r}); {LAYOUT}") from None
    if ending not in VOLUMES:
        raise DataError(f"{path}: file_ending is {ending!r}; convert the images to .nii.gz")
    listed = _listed(path, content, ending) or _by_name(root, ending)
    is_tested = any(label for side, *_, label in listed if side == "Ts")
    rows = []
    for side, case, images, label in listed:
        if len(images) != len(channels):
            raise DataError(f"{root / f'images{side}'}: case {case} has {len(images)} channel files, channel_names says {len(channels)}")
        split = {"split": "test" if side == "Ts" and label else "train"} if is_tested else {}
        for number, image in zip(sorted(channels), images, strict=True):
            scan = case if len(channels) == 1 else f"{case}_{number:04d}"
            row = {"scan": scan, "patient": case, "modality": channels[number], "frame": case, "path": image, "label": label}
            rows.append(row | split)
    if not rows:
        raise DataError(f"{root}: no image *_0000{ending} in imagesTr or imagesTs; {LAYOUT}")
    made = Manifest.of(pd.DataFrame(rows), root, names, outside=allow_outside)
    return Manifest(made.table, made.root, made.label_names, made.outside, (*made.notes, *_notes(content)))


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path, LAYOUT)
    if not isinstance(content, dict):
        raise DataError(f"{path}: a JSON object is needed; {LAYOUT}")
    if "channel_names" not in content and "modality" in content:
        raise DataError(f"{path}: is of the Decathlon (and nnU-Net v1); prepare it with the source decathlon")
    return content


def _notes(content: dict[str, Any]) -> list[str]:
    notes = [NO_PATIENTS]
    regions = [name for name, value in content["labels"].items() if isinstance(value, list)]
    if regions:
        notes.append(f"labels {', '.join(regions)} are regions of several values; the label maps keep their single values, without names")
    if "ignore" in content["labels"]:
        value = content["labels"]["ignore"]
        notes.append(f"label {value} means ignore; leave it out of task.segmentation.classes: its voxels then count as background")
    return notes


Case = tuple[str, str, list[str], str]  # side, name, images, label


def _listed(path: Path, content: dict[str, Any], ending: str) -> list[Case]:
    """The training cases that `dataset.json` itself lists, where it does."""
    cases: list[Case] = []
    for case, files in content.get("dataset", {}).items():
        try:
            images, label = [str(image) for image in files["images"]], str(files["label"])
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: dataset.{case}: needed are images: [...] and label ({error!r})") from None
        cases.append(("Tr", case, images, label))
    return cases


def _by_name(root: Path, ending: str) -> list[Case]:
    cases: list[Case] = []
    for side in ("Tr", "Ts"):
        found: dict[str, list[str]] = {}
        for image in sorted((root / f"images{side}").glob(f"*{ending}")):
            case, _, number = image.name.removesuffix(ending).rpartition("_")
            if not case or len(number) != 4 or not number.isdigit():
                raise DataError(f"{image}: a channel's file is named CASE_0000{ending}; rename it")
            found.setdefault(case, []).append(f"images{side}/{image.name}")
        for case, images in found.items():
            label = f"labels{side}/{case}{ending}"
            there = side == "Tr" or (root / label).exists()
            cases.append((side, case, images, label if there else ""))
    return cases
