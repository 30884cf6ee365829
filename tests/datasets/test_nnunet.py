from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medcl3d.core.errors import DataError
from medcl3d.datasets.sources.decathlon import decathlon
from medcl3d.datasets.sources.nnunet import nnunet
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.prepare import prepare
from medcl3d.store.store import Store

RAMP = np.arange(6 * 5 * 7, dtype=np.int16).reshape(6, 5, 7)
DATASET = {
    "channel_names": {"0": "T2", "1": "ADC"},
    "labels": {"background": 0, "PZ": 1},
    "numTraining": 2,
    "file_ending": ".nii.gz",
}


def write_dataset(root: Path, **changed: Any) -> None:
    content = {name: value for name, value in {**DATASET, **changed}.items() if value is not None}
    (root / "dataset.json").write_text(json.dumps(content))


@pytest.fixture
def raw(tmp_path: Path, write_nifti: Callable[..., Path]) -> Path:
    """Two training cases and a test case of two channels."""
    for side, case in (("Tr", "prostate_01"), ("Tr", "prostate_02"), ("Ts", "prostate_03")):
        for channel in range(2):
            write_nifti(f"raw/images{side}/{case}_{channel:04d}.nii.gz", RAMP * (channel + 1) + int(case[-1]))
        if side == "Tr":
            write_nifti(f"raw/labels{side}/{case}.nii.gz", (RAMP > 50).astype(np.uint8))
    write_dataset(tmp_path / "raw")
    return tmp_path / "raw"


def test_channels_are_scans_of_one_frame(raw: Path) -> None:
    manifest = nnunet(raw)
    table = manifest.table.set_index("scan")
    assert len(table) == 6 and manifest.label_names == {0: "background", 1: "PZ"} and manifest.missing() == []
    row = table.loc["prostate_02_0001"]
    assert (row["patient"], row["modality"], row["frame"], row["label"]) == (
        "prostate_02",
        "ADC",
        "prostate_02",
        "labelsTr/prostate_02.nii.gz",
    )
    assert (table["split"] == "").all() and table.loc["prostate_03_0000", "label"] == ""
    assert "no patient ids" in manifest.notes[0]


def test_labelled_test_cases_are_the_test_split(raw: Path, write_nifti: Callable[..., Path]) -> None:
    write_nifti("raw/labelsTs/prostate_03.nii.gz", (RAMP > 50).astype(np.uint8))
    assert nnunet(raw).table.set_index("patient")["split"].to_dict() == {
        "prostate_01": "train",
        "prostate_02": "train",
        "prostate_03": "test",
    }
    prepare("nnunet", raw, raw.parent / "out", options=PrepareOptions(workers=1))
    assert json.loads((raw.parent / "out/split.json").read_text())["test"] == ["prostate_03"]
    assert len(Store.open(raw.parent / "out")) == 6


def listed(*cases: str) -> dict[str, Any]:
    """The key `dataset` of some training cases."""
    return {
        case: {
            "images": [f"imagesTr/{case}_{c:04d}.nii.gz" for c in range(2)],
            "label": f"labelsTr/{case}.nii.gz",
        }
        for case in cases
    }


def test_listed_training_cases_are_read_and_the_others_counted(raw: Path) -> None:
    write_dataset(raw, dataset=listed("prostate_01"))
    manifest = nnunet(raw)
    cases = manifest.table.drop_duplicates("patient").set_index("patient")
    assert set(cases.index) == {"prostate_01", "prostate_03"} and set(cases["split"]) == {""}, (
        "an unlabelled test case trains"
    )
    assert cases.loc["prostate_03", "label"] == ""
    notes = " ".join(manifest.notes)
    assert (
        "2 images of imagesTr are not listed in dataset.json and are skipped "
        "(imagesTr/prostate_02_0000.nii.gz, " in notes
    )
    assert "1 label maps have no image (labelsTr/prostate_02.nii.gz)" in notes


def test_labelled_test_cases_with_a_training_list_are_the_test_split(
    raw: Path, write_nifti: Callable[..., Path]
) -> None:
    write_nifti("raw/labelsTs/prostate_03.nii.gz", (RAMP > 50).astype(np.uint8))
    write_dataset(raw, dataset=listed("prostate_01", "prostate_02"))
    assert nnunet(raw).table.set_index("patient")["split"].to_dict() == {
        "prostate_01": "train",
        "prostate_02": "train",
        "prostate_03": "test",
    }
    assert not [note for note in nnunet(raw).notes if "skipped" in note or "have no image" in note]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"channel_names": None}, "channel_names"),
        (
            {"channel_names": None, "modality": {"0": "MRI"}},
            r"case prostate_01 has the channels \[0, 1\], channel_names \[0\]",
        ),
        (
            {"channel_names": None, "modality": {"0": "MRI"}, "training": [{"image": "imagesTr/x.nii.gz"}]},
            "source decathlon",
        ),
        (
            {
                "channel_names": None,
                "modality": {"0": "MRI"},
                "training": [{"image": "imagesTr/prostate_01.nii.gz"}],
            },
            r"training\[0\]: image and label are needed",
        ),
        ({"channel_names": {"0": "T2"}}, r"case prostate_01 has the channels \[0, 1\], channel_names \[0\]"),
        ({"file_ending": ".mha"}, "'.mha': only .nii.gz and .nii are read; convert"),
        ({"labels": {"PZ": "one"}}, "not nnU-Net's layout"),
        ({"dataset": {"a": {"images": []}}}, r"dataset\.a: images: \[\.\.\.\] and label are needed"),
        (
            {"dataset": {"a": {"images": "imagesTr/a", "label": "b"}}},
            r"dataset\.a: images: \[\.\.\.\] and label are needed",
        ),
        ({"dataset": {"a": None}}, r"dataset\.a: images: \[\.\.\.\] and label are needed"),
        ({"dataset": ["a"]}, "dataset: an object of cases, or none, is needed"),
        (
            {"labels": {"background": 0, "PZ": 1.5}},
            "labels: PZ = 1.5: an integer or a list of integers is needed",
        ),
        ({"labels": ["background", "PZ"]}, "labels is not an object"),
        ({"channel_names": ["T2", "ADC"]}, "channel_names is not an object"),
        (
            {"channel_names": {"0": "T2", "2": "ADC"}},
            r"case prostate_01 has the channels \[0, 1\], channel_names \[0, 2\]",
        ),
    ],
)
def test_another_layout_is_refused(raw: Path, changed: dict[str, Any], message: str) -> None:
    write_dataset(raw, **changed)
    with pytest.raises(DataError, match=message) as caught:
        nnunet(raw)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("listed", [True, False])
def test_version_1_is_read_like_version_2(raw: Path, listed: bool) -> None:
    """Its `dataset.json` lists cases, its files have channel numbers: decathlon refers to nnunet."""
    expected = nnunet(raw)
    cases = [
        {"image": f"./imagesTr/prostate_{n}.nii.gz", "label": f"./labelsTr/prostate_{n}.nii.gz"}
        for n in ("01", "02")
    ]
    of_version_1 = {
        "modality": {"0": "T2", "1": "ADC"},
        "labels": {"0": "background", "1": "PZ"},
        "training": cases,
    }
    if not listed:
        del of_version_1["training"]
    write_dataset(raw, **(dict.fromkeys(DATASET, None) | of_version_1))
    made = nnunet(raw)
    assert (
        made.table.equals(expected.table)
        and made.label_names == expected.label_names
        and made.missing() == []
    )
    assert made.notes == expected.notes
    if listed:
        with pytest.raises(DataError, match="use the source nnunet"):
            decathlon(raw)


def test_channels_are_identified_by_number_not_by_order(raw: Path) -> None:
    for case in ("01", "02"):
        (raw / f"imagesTr/prostate_{case}_0001.nii.gz").rename(raw / f"imagesTr/prostate_{case}_0002.nii.gz")
    with pytest.raises(
        DataError, match=r"prostate_01 has the channels \[0, 2\], channel_names \[0, 1\]; rename files"
    ):
        nnunet(raw)


@pytest.mark.parametrize("dataset", [None, [], {}])
def test_an_empty_list_of_cases_is_ignored(raw: Path, dataset: Any) -> None:
    write_dataset(raw)
    content = json.loads((raw / "dataset.json").read_text()) | {"dataset": dataset}
    (raw / "dataset.json").write_text(json.dumps(content))
    assert len(nnunet(raw)) == 6


def test_regions_are_prepared_value_by_value(raw: Path, write_nifti: Callable[..., Path]) -> None:
    """BraTS in nnU-Net's format: each region contains the next."""
    for case in ("01", "02"):
        write_nifti(f"raw/labelsTr/prostate_{case}.nii.gz", (RAMP % 4).astype(np.uint8))
    write_dataset(
        raw,
        labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]},
        regions_class_order=[1, 2, 3],
    )
    manifest = nnunet(raw)
    assert manifest.label_names == {0: "background", 1: "whole", 2: "whole+core", 3: "enhancing"}
    assert any("labels whole, core are regions" in note and "2 whole+core" in note for note in manifest.notes)
    prepare("nnunet", raw, raw.parent / "out", options=PrepareOptions(workers=1, test_fraction=0.5))
    store = Store.open(raw.parent / "out")
    assert store.label_names[2] == "whole+core" and set(np.unique(store.read_label(0))) == {0, 1, 2, 3}
    write_dataset(raw, labels={"background": 0, "whole": [1, 2, 3], "core": [3]})
    assert nnunet(raw).label_names == {0: "background", 1: "whole 1", 2: "whole 2", 3: "core"}


def test_skipped_files_are_counted(raw: Path, write_nifti: Callable[..., Path]) -> None:
    write_nifti("raw/labelsTr/prostate_09.nii.gz", RAMP)
    write_nifti("raw/imagesTr/prostate_09_0000.nii", RAMP)
    (raw / "imagesTr" / "prostate_10_0000.mha").write_bytes(b"x")
    (raw / "imagesTr" / "._prostate_01_0000.nii.gz").write_bytes(b"resource fork of macOS")
    notes = " ".join(nnunet(raw).notes)
    assert (
        "1 images are not *.nii.gz files of imagesTr and are skipped (imagesTr/prostate_09_0000.nii)" in notes
    )
    assert (
        "1 label maps have no image (labelsTr/prostate_09.nii.gz)" in notes
        and "1 files *.mha are not read" in notes
    )


def test_a_file_without_a_channel_number_is_refused(raw: Path, write_nifti: Callable[..., Path]) -> None:
    write_nifti("raw/imagesTr/prostate_04.nii.gz", RAMP)
    with pytest.raises(DataError, match=r"prostate_04\.nii\.gz: the name of a channel's file is CASE_0000"):
        nnunet(raw)


def test_the_hippocampus_set_in_nnunet_format(real: Path, tmp_path: Path) -> None:
    root = tmp_path / "Dataset004_Hippocampus"
    for name in ("imagesTr", "labelsTr"):
        (root / name).mkdir(parents=True)
    for case in ("hippocampus_001", "hippocampus_004", "hippocampus_006"):
        (root / "imagesTr" / f"{case}_0000.nii.gz").symlink_to(
            real / "hippocampus/imagesTr" / f"{case}.nii.gz"
        )
        (root / "labelsTr" / f"{case}.nii.gz").symlink_to(real / "hippocampus/labelsTr" / f"{case}.nii.gz")
    write_dataset(root, channel_names={"0": "MRI"}, labels={"background": 0, "Anterior": 1, "Posterior": 2})
    prepare(
        "nnunet", root, tmp_path / "out", fields={"allow_outside": True}, options=PrepareOptions(workers=1)
    )
    store = Store.open(tmp_path / "out")
    assert store.label_names == {0: "background", 1: "Anterior", 2: "Posterior"}
    assert store.collection.table["scan"].tolist() == [
        "hippocampus_001",
        "hippocampus_004",
        "hippocampus_006",
    ]
    assert all(set(np.unique(store.read_label(scan))) == {0, 1, 2} for scan in range(3))
