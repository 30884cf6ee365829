"""MONAI file lists: several images per item, columns besides image and label, classes as labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medcl3d.core.errors import DataError
from medcl3d.datasets.manifest import Manifest
from medcl3d.datasets.sources.decathlon import decathlon


def read(tmp_path: Path, training: list[Any], **others: Any) -> Manifest:
    (tmp_path / "list.json").write_text(json.dumps({"training": training, **others}))
    return decathlon(tmp_path / "list.json")


def test_an_item_of_several_images_is_one_patient_in_one_frame(tmp_path: Path) -> None:
    """As in file lists of BraTS: one file per contrast, and one label map."""
    training = [
        {"image": [f"{case}/t1.nii.gz", f"{case}/t2.nii.gz"], "label": f"{case}/seg.nii.gz"} for case in "ab"
    ]
    manifest = read(tmp_path, training, modality={"0": "T1", "1": "T2"})
    table = manifest.table
    assert table["path"].tolist() == ["a/t1.nii.gz", "a/t2.nii.gz", "b/t1.nii.gz", "b/t2.nii.gz"]
    assert table["patient"].nunique() == 2 and table["patient"].tolist() == table["frame"].tolist()
    assert table["patient"][0] == table["patient"][1] and table["scan"].is_unique
    assert table["modality"].tolist() == ["T1", "T2"] * 2
    assert table["label"].tolist() == ["a/seg.nii.gz"] * 2 + ["b/seg.nii.gz"] * 2
    assert any("no patient ids" in note for note in manifest.notes)


def test_items_may_have_patient_ids(tmp_path: Path) -> None:
    training = [{"image": f"{n}.nii.gz", "patient": n // 2, "class": "yes", "fold": 0} for n in range(4)]
    manifest = read(tmp_path, training)
    assert (
        manifest.table["patient"].tolist() == ["0", "0", "1", "1"]
        and manifest.table["class"].tolist() == ["yes"] * 4
    )
    assert not any("no patient ids" in note for note in manifest.notes)
    assert any("4 items of list.json have a key fold, which is not read" in note for note in manifest.notes)
    with pytest.raises(
        DataError, match=r"list\.json: training\[0\]: key 'subject_id': may be the patient id"
    ):
        read(tmp_path, [{"image": "a.nii.gz", "subject_id": "p"}])
    with pytest.raises(DataError, match=r"list\.json: training\[1\]: patient is empty"):
        read(tmp_path, [{"image": "a.nii.gz", "patient": "p"}, {"image": "b.nii.gz"}])


def test_a_number_as_label_is_the_class(tmp_path: Path) -> None:
    items = [{"image": f"{n}.nii.gz", "label": n % 2} for n in range(4)]
    manifest = read(tmp_path, items[:2], validation=items[2:])
    assert manifest.table["class"].tolist() == ["0", "1", "0", "1"] and set(manifest.table["label"]) == {""}
    assert manifest.table["split"].tolist() == ["train", "train", "validation", "validation"]
    assert any(
        "4 items of list.json have a number as label, which is read as the class" in note
        for note in manifest.notes
    )


def test_a_file_in_two_lists_is_refused_with_both_places(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"training\[0\]: path = 'a\.nii\.gz': also .*list\.json: validation\[0\] has this file",
    ):
        read(tmp_path, [{"image": "a.nii.gz"}], validation=["./a.nii.gz"])
