"""Guessed patients, sessions, modalities and label maps, from names alone."""

from __future__ import annotations

import numpy as np
import pytest

from medcl3d.datasets.label_pairs import Grid, pair_label_maps
from medcl3d.datasets.name_words import kind_of_name, names_label_maps
from medcl3d.datasets.path_roles import guess_roles, named_as_label_maps

TREES = {
    "cohorts of several kinds": {
        "CT Bäuche/abdomen_ct.nii.gz": ("abdomen", "", "CT"),
        "CT Bäuche/spleen_ct.nii.gz": ("spleen", "", "CT"),
        "Gehirne/Müller, Hans/2019-01-02/T1.nii.gz": ("Müller, Hans", "2019-01-02", "T1"),
        "Gehirne/Müller, Hans/20190702/T1.nii.gz": ("Müller, Hans", "2019-07-02", "T1"),
        "Gehirne/Schmidt Eva/2020-01-01/FLAIR.nii.gz": ("Schmidt Eva", "2020-01-01", "FLAIR"),
        "Herzen/images/SC-HF-I-01_ED.nii.gz": ("SC-HF-I-01", "", ""),
        "Herzen/images/SC-HF-I-01_ES.nii.gz": ("SC-HF-I-01", "", ""),
        "Herzen/images/SC-N-02_ED.nii.gz": ("SC-N-02", "", ""),
    },
    "numbered files": {
        "imagesTr/hippocampus_001.nii.gz": ("hippocampus_001", "", ""),
        "imagesTr/hippocampus_003.nii.gz": ("hippocampus_003", "", ""),
    },
    "a constant number first": {
        "BraTS2021_00000_t1.nii.gz": ("BraTS2021_00000", "", "T1"),
        "BraTS2021_00000_t1ce.nii.gz": ("BraTS2021_00000", "", "T1CE"),
        "BraTS2021_00002_t1.nii.gz": ("BraTS2021_00002", "", "T1"),
    },
    "a number that does not belong to the id": {
        "IXI132-Guys-0123-T1.nii.gz": ("IXI132", "", "T1"),
        "IXI162-HH-0003-T1.nii.gz": ("IXI162", "", "T1"),
    },
    "modalities in names": {
        "STS_001_CT.nii.gz": ("STS_001", "", "CT"),
        "STS_001_PET.nii.gz": ("STS_001", "", "PET"),
        "STS_002_CT.nii.gz": ("STS_002", "", "CT"),
    },
    "sessions in folders": {
        "Patient 1/V1/ct.nii.gz": ("Patient 1", "V1", "CT"),
        "Patient 1/V2/ct.nii.gz": ("Patient 1", "V2", "CT"),
        "Patient 2/V1/ct.nii.gz": ("Patient 2", "V1", "CT"),
    },
    "sites with patients": {
        "Site1/P01/T1.nii.gz": ("P01", "", "T1"),
        "Site1/P02/T1.nii.gz": ("P02", "", "T1"),
        "Site2/P03/T1.nii.gz": ("P03", "", "T1"),
    },
    "numbered scans of one patient": {
        "001/IM1.nii.gz": ("001", "", ""),
        "001/IM2.nii.gz": ("001", "", ""),
        "002/IM3.nii.gz": ("002", "", ""),
    },
    "people whose scans have the same names": {
        "Mueller/thorax.nii.gz": ("Mueller", "", ""),
        "Mueller/kopf.nii.gz": ("Mueller", "", ""),
        "Schmidt/thorax.nii.gz": ("Schmidt", "", ""),
    },
}


@pytest.mark.parametrize("name", TREES)
def test_columns_of_a_tree(name: str) -> None:
    roles = guess_roles(list(TREES[name]))
    assert {path: (one.patient, one.session, one.modality) for path, one in roles.items()} == TREES[name]


@pytest.mark.parametrize(
    "text", ["seg", "mask", "Masken", "labels", "labelsTr", "Segmentierung", "seg 2", "tumormask"]
)
def test_names_of_label_maps(text: str) -> None:
    assert names_label_maps(text) and kind_of_name(text) == "label"


@pytest.mark.parametrize("text", ["segovia", "P01_seg", "images", "Patient 3", "Maskenball", "sub-01", "T1"])
def test_other_names_are_not_of_label_maps_alone(text: str) -> None:
    assert not names_label_maps(text)


def test_a_word_that_all_folders_share_does_not_mean_label_maps() -> None:
    paths = ["segmentation study/P01/ct.nii.gz", "segmentation study/P01/ct_seg.nii.gz"]
    assert named_as_label_maps(paths) == {paths[1]}


def pairs(images: list[str], labels: list[str], grids: dict[str, Grid] | None = None) -> dict[str, str]:
    return dict(pair_label_maps(images, labels, guess_roles([*images, *labels]), grids or {}).label_of)


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("images/a_01.nii.gz", "labels/a_01.nii.gz"),
        ("P1/scan.nii.gz", "P1/Maske.nii.gz"),
        ("P1/V2/ct.nii.gz", "P1/V2/ct_seg.nii.gz"),
        ("Serie/dicom_series", "CT/Masken/dicom_series.nii.gz"),
    ],
)
def test_a_label_map_finds_its_image(image: str, label: str) -> None:
    others = ["images/a_02.nii.gz", "P2/scan.nii.gz", "P1/V1/ct.nii.gz"]
    assert pairs([image, *others], [label]) == {image: label}


def test_grids_decide_between_equal_names() -> None:
    eye = Grid((9, 9, 9), np.eye(4))
    moved = Grid((9, 9, 9), np.diag([1.0, 1.0, 2.0, 1.0]))
    images, labels = ["p1/t1.nii.gz", "p1/t2.nii.gz"], ["p1/seg.nii.gz"]
    assert pairs(images, labels) == {}
    assert pairs(images, labels, {images[0]: eye, images[1]: moved, labels[0]: eye}) == {images[0]: labels[0]}
    both = dict.fromkeys([*images, *labels], eye)
    assert pairs(images, labels, both) == dict.fromkeys(images, labels[0])


def test_several_label_maps_of_an_image_and_label_maps_without_one_are_reported() -> None:
    images = ["p1/ct.nii.gz", "p2/ct.nii.gz"]
    labels = ["p1/liver_mask.nii.gz", "p1/spleen_mask.nii.gz", "p3/seg.nii.gz"]
    found = pair_label_maps(images, labels, guess_roles([*images, *labels]), {})
    assert (
        dict(found.label_of) == {}
        and found.ambiguous == tuple(labels[:2])
        and found.unmatched == (labels[2],)
    )
