"""nnU-Net's raw format, versions 2 and 1: a `dataset.json`, and one file per channel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medcl3d.core.errors import DataError
from medcl3d.datasets.manifest import NO_PATIENTS, Manifest
from medcl3d.datasets.sources import SOURCES
from medcl3d.io.json_file import read_json, unique_names
from medcl3d.io.walk import VOLUMES, files_under

LAYOUT = (
    'an nnU-Net folder holds dataset.json with channel_names {"0": "CT"}, labels {"background": 0} and '
    "file_ending, imagesTr, labelsTr"
)

Case = tuple[str, str, dict[int, str], str]  # side, name, channel -> image, label


@SOURCES.register("nnunet")
def nnunet(root: Path, *, allow_outside: bool = False) -> Manifest:
    """Read a raw dataset of nnU-Net v2 or v1.

    Source: Isensee et al. 2021, nnU-Net, and its dataset_format.md.

    Each channel file (``CASE_0000.nii.gz``) is its own scan, with the channel's name as modality; the
    channels of a case share the case's frame and label. Cases count as patients, since the format has no
    patient ids. If `dataset.json` has the key `dataset`, it lists the training cases to read. Cases of
    `imagesTs` with labels in `labelsTs` are the test split; without labels they join the training side.
    Labels that are regions of several values are read value by value, each named after its regions. In
    `dataset.json` of v1, `modality` holds the channels and `training` the cases, as ``CASE.nii.gz``. Files
    outside any case are counted.

    Raises DataError if `dataset.json` has another format, if a case lacks a channel, or if there is no image.
    """
    path = root / "dataset.json"
    content = _as_version_2(path, _read(path))
    channels = _channels(path, content)
    values = {name: _values(path, name, value) for name, value in _object(path, content, "labels").items()}
    ending = content.get("file_ending")
    if ending not in VOLUMES:
        problem = f"file_ending = {ending!r}: only .nii.gz and .nii are read"
        raise DataError(path, problem, "convert the images to .nii.gz")
    notes = [NO_PATIENTS, *_label_notes(content, values)]
    unreadable: list[OSError] = []
    files = list(files_under(root, unreadable.append))
    listed = _listed(path, content)
    known = {Path(image).as_posix() for *_, images, _ in listed for image in images.values()}
    unlisted = [file for file in files if file.as_posix() not in known]
    cases = listed or _by_name(root, "Tr", ending, unlisted)
    cases = [*cases, *_by_name(root, "Ts", ending, unlisted)]
    is_tested = any(label for side, *_, label in cases if side == "Ts")
    rows = []
    for side, case, images, label in cases:
        if set(images) != set(channels):
            problem = f"case {case} has the channels {sorted(images)}, channel_names {sorted(channels)}"
            raise DataError(root / f"images{side}", problem, "rename files, or correct channel_names")
        split = {"split": "test" if side == "Ts" and label else "train"} if is_tested else {}
        for number, image in sorted(images.items()):
            scan = case if len(channels) == 1 else f"{case}_{number:04d}"
            row = {
                "scan": scan,
                "patient": case,
                "modality": channels[number],
                "frame": case,
                "path": image,
                "label": label,
            }
            rows.append(row | split)
    if not rows:
        raise DataError(root, f"no image *_0000{ending} in imagesTr or imagesTs", LAYOUT)
    manifest = Manifest.of(pd.DataFrame(rows), root, _class_names(values), outside=allow_outside, notes=notes)
    return manifest.with_skipped(files, unreadable, lambda file: _reason(file, ending, bool(listed)))


def _reason(file: str, ending: str, is_listed: bool) -> str:
    """Why a NIfTI file is not part of a case."""
    folder, _, name = file.partition("/")
    if folder in ("labelsTr", "labelsTs"):
        return "label maps have no image"
    if folder not in ("imagesTr", "imagesTs"):
        return "NIfTI files are not in a folder of nnU-Net and are skipped"
    if "/" in name or not name.endswith(ending):
        return f"images are not *{ending} files of {folder} and are skipped"
    not_listed = "are not listed in dataset.json and " if is_listed else ""
    return f"images of {folder} {not_listed}are skipped"


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path, LAYOUT)
    if not isinstance(content, dict):
        raise DataError(path, "a JSON object is needed", LAYOUT)
    return content


def _as_version_2(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Convert `dataset.json` of version 1 to version 2. DataError for the Decathlon's: no channel numbers."""
    if "channel_names" in content or "modality" not in content:
        return content
    channels, labels, listed = (content.get(name) for name in ("modality", "labels", "training"))
    items = listed if isinstance(listed, list) else []
    images = [item.get("image") for item in items if isinstance(item, dict)]
    if not (is_numbered(path.parent, images) if images else any(path.parent.glob("imagesTr/*_0000.nii.gz"))):
        raise DataError(path, "is a Decathlon file", "use the source decathlon")
    if isinstance(labels, dict) and all(value.isdecimal() for value in labels):  # 1: liver
        labels = {name: int(value) for value, name in labels.items()}
    made = {"channel_names": channels, "labels": labels, "file_ending": ".nii.gz"}
    if not isinstance(listed, list) or not isinstance(channels, dict):
        return made
    cases = {}
    for number, item in enumerate(listed):
        image, label = (item.get("image"), item.get("label")) if isinstance(item, dict) else (None, None)
        if not isinstance(image, str) or not isinstance(label, str):
            raise DataError(path, f"training[{number}]: image and label are needed, each a path")
        numbered = [_numbered(image, channel) for channel in range(len(channels))]
        cases[Path(image).name.removesuffix(".nii.gz")] = {"images": numbered, "label": str(Path(label))}
    return {**made, "dataset": cases}


def is_numbered(root: Path, images: Sequence[Any]) -> bool:
    """Whether the first image of a list exists only as ``CASE_0000.nii.gz``: nnU-Net v1, no Decathlon."""
    first = next((image for image in images if isinstance(image, str)), "")
    return not os.path.lexists(root / first) and os.path.lexists(root / _numbered(first, 0))


def _numbered(image: str, channel: int) -> str:
    return f"{Path(image).as_posix().removesuffix('.nii.gz')}_{channel:04d}.nii.gz"


def _object(path: Path, content: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(content.get(name), dict) or not content[name]:
        raise DataError(path, f"not nnU-Net's layout: {name} is not an object", LAYOUT)
    return dict(content[name])


def _channels(path: Path, content: dict[str, Any]) -> dict[int, str]:
    given = _object(path, content, "channel_names")
    wrong = [number for number in given if not number.isdecimal()]
    if wrong:
        raise DataError(path, f"not nnU-Net's layout: channel_names: {wrong[0]!r} is not a number", LAYOUT)
    return {int(number): str(name) for number, name in given.items()}


def _values(path: Path, name: str, value: Any) -> tuple[int, ...]:
    """The values of a label in the label maps: one, or those of a region."""
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(v, bool) or not str(v).isdecimal() for v in values):
        problem = f"labels: {name} = {value!r}: an integer or a list of integers is needed"
        raise DataError(path, f"not nnU-Net's layout: {problem}")
    return tuple(int(v) for v in values)


def _class_names(values: dict[str, tuple[int, ...]]) -> dict[int, str]:
    """Class -> name. A value without its own label is named after its regions."""
    names = {0: "background"} | {of[0]: name for name, of in values.items() if len(of) == 1}
    unnamed = {value for of in values.values() for value in of} - set(names)
    regions = {v: "+".join(name for name, of in values.items() if v in of) for v in unnamed}
    return dict(sorted(unique_names(names | regions).items()))


def _label_notes(content: dict[str, Any], values: dict[str, tuple[int, ...]]) -> list[str]:
    notes = []
    regions = [name for name, of in values.items() if len(of) > 1]
    if regions:
        names = ", ".join(f"{value} {name}" for value, name in _class_names(values).items())
        kept = f"the label maps keep single values, named {names}"
        notes.append(f"labels {', '.join(regions)} are regions of several values; {kept}")
    if "ignore" in values:
        value = content["labels"]["ignore"]
        remedy = "leave it out of task.segmentation.classes: its voxels then count as background"
        notes.append(f"label {value} means ignore; {remedy}")
    return notes


def _listed(path: Path, content: dict[str, Any]) -> list[Case]:
    """The training cases that `dataset.json` lists, if any; a case's images are in channel order."""
    given = content.get("dataset") or {}
    if not isinstance(given, dict):
        problem = "dataset: an object of cases, or none, is needed"
        raise DataError(path, problem, "remove it to read all of imagesTr")
    cases: list[Case] = []
    for case, files in given.items():
        images, label = (files.get("images"), files.get("label")) if isinstance(files, dict) else (None, None)
        paths: list[Any] = [*images, label] if isinstance(images, list) and images else [None]
        if not all(isinstance(text, str) for text in paths):
            raise DataError(path, f"dataset.{case}: images: [...] and label are needed, each a path")
        cases.append(("Tr", case, dict(enumerate(paths[:-1])), str(label)))
    return cases


def _by_name(root: Path, side: str, ending: str, files: Sequence[Path]) -> list[Case]:
    """The cases of a side, from the names of its files."""
    folder = f"images{side}"
    found: dict[str, dict[int, str]] = {}
    for file in files:
        if file.parent.as_posix() != folder or not file.name.endswith(ending):
            continue
        case, _, number = file.name.removesuffix(ending).rpartition("_")
        if not case or len(number) != 4 or not number.isdecimal():
            raise DataError(root / file, f"the name of a channel's file is CASE_0000{ending}", "rename it")
        found.setdefault(case, {})[int(number)] = file.as_posix()
    existing = {file.as_posix() for file in files}
    labels = {case: f"labels{side}/{case}{ending}" for case in found}
    return [
        (side, case, images, labels[case] if side == "Tr" or labels[case] in existing else "")
        for case, images in found.items()
    ]
