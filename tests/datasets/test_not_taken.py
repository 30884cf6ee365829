"""Every source reports skipped files: each file with a scan is in a row of the manifest or in a note."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medcl3d.core.errors import DataError
from medcl3d.core.notes import Counted, without_names
from medcl3d.datasets.manifest import Manifest
from medcl3d.datasets.sources import SOURCES
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.prepare import prepare

Write = Callable[..., Path]
RAMP = np.arange(6 * 5 * 7, dtype=np.int16).reshape(6, 5, 7)
SCANS = (".nii.gz", ".nii", ".mha", ".npz", ".dcm")
WITHOUT_FILES = ("simulated",)  # sources that read no files


def _csv(root: Path, write: Write) -> dict[str, Any]:
    for name in (
        "images/a.nii.gz",
        "images/b.nii.gz",
        "labels/a.nii.gz",
        "images/later.nii.gz",
        "labels/later.nii.gz",
    ):
        write(f"in/{name}", RAMP)
    (root / "images/old.mha").write_bytes(b"x")
    (root / "manifest.csv").write_text(
        "path,patient,label\nimages/a.nii.gz,p,labels/a.nii.gz\n./images/b.nii.gz,q,\n"
    )
    return {}


def _folder(root: Path, write: Write) -> dict[str, Any]:
    for name in ("p1/T1.nii.gz", "p1/seg.nii.gz", "p2/seg.nii.gz", "p2/T2.nii.gz", "p3/T1.nii", "top.nii.gz"):
        write(f"in/{name}", RAMP)
    (root / "p1/T1.mha").write_bytes(b"x")
    return {"pattern": "{patient}/T1.nii.gz", "label": "{patient}/seg.nii.gz"}


def _bids(root: Path, write: Write) -> dict[str, Any]:
    stem = "sub-1/anat/sub-1"
    for name in (
        f"{stem}_T1w.nii.gz",
        f"{stem}_bold.nii.gz",
        "sub-1/anat/T2w.nii.gz",
        "sub-2_T1w.nii.gz",
        "top.nii.gz",
    ):
        write(f"in/{name}", RAMP)
    for name in ("dseg", "desc-brain_mask", "desc-preproc_T1w"):
        write(f"in/derivatives/a/{stem}_{name}.nii.gz", RAMP)
    write(f"in/derivatives/b/{stem}_desc-other_mask.nii.gz", RAMP)
    (root / f"{stem}_T2w.mha").write_bytes(b"x")
    (root / "scout.npz").write_bytes(b"x")
    return {"derivative": "a", "label": ("dseg",)}


def _dicom(root: Path, write: Write) -> dict[str, Any]:
    pytest.importorskip("pydicom")
    from tests.datasets.dicoms import VOXELS, write_series

    write_series(root / "a", uid="1.2.1")
    for name, uid, fields in (
        ("b", "1.2.2", {"Modality": "MR"}),
        ("d", "1.2.4", {"ImagePositionPatient": None}),
    ):
        write_series(root / name, VOXELS[:1], uid=uid, **fields)
    write("in/beside.nii.gz", RAMP)
    for path in list(root.glob("*/IM*")):
        path.rename(path.with_name(f"{path.name}.dcm"))
    return {"modalities": ("CT",)}


def _decathlon(root: Path, write: Write) -> dict[str, Any]:
    def item(side: str, name: str, *, labelled: bool = True) -> dict[str, Any]:
        write(f"in/images{side}/{name}.nii.gz", RAMP)
        if labelled:
            write(f"in/labels{side}/{name}.nii.gz", RAMP % 2)
        return {"image": f"./images{side}/{name}.nii.gz"} | (
            {"label": f"./labels{side}/{name}.nii.gz"} if labelled else {}
        )

    content = {
        "training": [item("Tr", "a"), item("Tr", "b") | {"fold": 1}],
        "validation": [item("Tr", "c")],
        "test": [item("Ts", "d"), item("Ts", "e", labelled=False)],
        "holdout": [item("Ts", "f", labelled=False)],
        "labels": {"0": "background", "1": "x"},
    }
    item("Tr", "unlisted")
    (root / "imagesTr/old.mha").write_bytes(b"x")
    (root / "dataset.json").write_text(json.dumps(content))
    return {}


def _nnunet(root: Path, write: Write) -> dict[str, Any]:
    for side, cases in (("Tr", "abc"), ("Ts", "de")):
        for case in cases:
            write(f"in/images{side}/{case}_0000.nii.gz", RAMP)
            write(f"in/labels{side}/{case}.nii.gz", RAMP % 2)
    write("in/imagesVal/x_0000.nii.gz", RAMP)
    write("in/imagesTs/d_0000.nii", RAMP)
    (root / "imagesTr/old.mha").write_bytes(b"x")
    listed = {
        case: {"images": [f"imagesTr/{case}_0000.nii.gz"], "label": f"labelsTr/{case}.nii.gz"}
        for case in "ab"
    }
    about = {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "x": 1},
        "file_ending": ".nii.gz",
        "dataset": listed,
    }
    (root / "dataset.json").write_text(json.dumps(about))
    return {}


def _medmnist(root: Path, write: Write) -> dict[str, Any]:
    arrays = {
        f"{part}_images": np.arange(128, dtype=np.uint8).reshape(2, 4, 4, 4)
        for part in ("train", "val", "test")
    }
    arrays |= {f"{part}_labels": np.array([[0], [1]]) for part in ("train", "val", "test")}
    np.savez(root / "set.npz", **arrays, extra_images=np.zeros(3))
    np.savez(root / "other.npz", **arrays)
    write("in/beside.nii.gz", RAMP)
    return {"file": "set.npz"}


MAKERS = {
    "csv": _csv,
    "folder": _folder,
    "bids": _bids,
    "dicom": _dicom,
    "decathlon": _decathlon,
    "nnunet": _nnunet,
    "medmnist": _medmnist,
}


def read(source: str, root: Path, fields: dict[str, Any]) -> Manifest:
    places = (root, root.parent / "raw") if source in ("dicom", "medmnist") else (root,)
    checked = SOURCES.schema(source).validate_python(fields).model_dump()
    return SOURCES.get(source)(*places, **checked)


def test_every_source_has_a_maker() -> None:
    assert set(MAKERS) == set(SOURCES.names()) - set(WITHOUT_FILES)


@pytest.mark.parametrize("source", sorted(MAKERS))
def test_each_file_with_a_scan_is_read_or_counted(source: str, tmp_path: Path, write_nifti: Write) -> None:
    root = tmp_path / "in"
    root.mkdir()
    manifest = read(source, root, MAKERS[source](root, write_nifti))
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.name.endswith(SCANS)}
    taken = {
        Path(cell).as_posix()
        for name in ("path", "label")
        if name in manifest.table
        for cell in manifest.table[name]
        if cell
    }
    left = files - taken
    if source == "dicom":
        left -= {file for file in left if file.startswith("a/")}  # the slices of the series that is read
    if source == "medmnist":
        left -= {"set.npz"}
    assert left, "the collection has skipped files"
    counted = [note for note in manifest.notes if re.match(r"\d+ ", note)]
    named = " ".join(counted)
    for file in left:
        # Notes name the folder and number of a DICOM series.
        assert file in named or f"{root / Path(file).parent}: series" in named, (file, counted)


def test_notes_can_omit_names() -> None:
    for redact in (False, True):
        seen = Counted(redact=redact)
        for name in ("a", "b", "c", "d"):
            seen.add("files are odd", name)
        assert seen.notes() == (["4 files are odd"] if redact else ["4 files are odd (a, b, c and 1 more)"])
        assert without_names(seen.notes()[0]) == "4 files are odd"


def test_labelled_test_and_validation_images_are_those_sides(tmp_path: Path, write_nifti: Write) -> None:
    root = tmp_path / "in"
    root.mkdir()
    manifest = read("decathlon", root, _decathlon(root, write_nifti))
    assert manifest.table.set_index("scan")["split"].to_dict() == {
        "a": "train",
        "b": "train",
        "c": "validation",
        "d": "test",
        "e": "train",
    }
    assert manifest.table.set_index("scan").loc["d", "label"] == "labelsTs/d.nii.gz"
    notes = " ".join(manifest.notes)
    assert "1 items of the list holdout in dataset.json are skipped" in notes and "imagesTs/f.nii.gz" in notes
    assert "1 items of dataset.json have a key fold, which is not read" in notes
    (root / "dataset.json").rename(root / "list_0.json")
    assert len(SOURCES.get("decathlon")(root / "list_0.json")) == 5


def test_unlisted_files_are_reported_before_missing_files(tmp_path: Path, write_nifti: Write) -> None:
    for name in "abc":
        write_nifti(f"in/imagesTr/{name}_0000.nii.gz", RAMP)
    listed = [{"image": f"imagesTr/{name}.nii.gz", "label": ""} for name in "abc"]
    (tmp_path / "in/dataset.json").write_text(json.dumps({"training": listed, "labels": {}}))
    messages: list[str] = []
    with pytest.raises(DataError, match=r"3 files of the manifest are missing.*imagesTr/a\.nii\.gz"):
        prepare(
            "decathlon",
            tmp_path / "in",
            tmp_path / "out",
            options=PrepareOptions(workers=1),
            say=messages.append,
        )
    assert any(
        "3 images are not listed in dataset.json and are skipped (imagesTr/a_0000.nii.gz" in line
        for line in messages
    )


def test_prepare_warns_of_label_maps_among_the_images(tmp_path: Path, write_nifti: Write) -> None:
    rng = np.random.default_rng(0)
    for patient in range(3):
        write_nifti(f"in/p{patient}/t1.nii.gz", rng.normal(100, 20, (8, 8, 8)).astype(np.float32))
        write_nifti(f"in/p{patient}/seg.nii.gz", rng.integers(0, 4, (8, 8, 8)).astype(np.uint8))
    messages: list[str] = []
    fields = {"pattern": "{patient}/{modality}.nii.gz"}
    prepare(
        "folder",
        tmp_path / "in",
        tmp_path / "out",
        fields=fields,
        options=PrepareOptions(workers=1),
        say=messages.append,
    )
    lines = [line for line in messages if "a label map or a shape, not an image" in line]
    assert len(lines) == 1 and lines[0].startswith(
        "warning: 3 of 6 scans, as p0_seg: contains only 4 whole numbers, 0 to 3"
    )
