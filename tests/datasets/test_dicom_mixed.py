from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medcl3d.datasets.manifest import Manifest
from medcl3d.datasets.sources.dicom import dicom
from tests.datasets.dicoms import VOXELS, fault_of, item, the_only, write_frames, write_series

NINE = np.arange(9 * 7 * 6, dtype=np.int16).reshape(9, 7, 6)


def write_mixed(
    folder: Path, places: Sequence[float], fields: Sequence[dict[str, Any]], **others: Any
) -> Path:
    """A series whose slices have given depths (mm) and given fields, with voxel values from their number."""
    voxels = np.stack([np.full((7, 6), number, dtype=np.int16) + VOXELS[0] for number in range(len(places))])

    def change(n: int) -> dict[str, Any]:
        return {"ImagePositionPatient": [10.0, 20.0, float(places[n])], **fields[n]}

    return write_series(folder, voxels, change=change, **{"RescaleSlope": 1, "RescaleIntercept": 0, **others})


def of_each(manifest: Manifest) -> dict[str, list[int]]:
    """The part of each scan and the numbers of its slices."""
    assert not manifest.faults, manifest.faults
    found = {}
    for row in manifest.table.to_dict("records"):
        voxels = np.asarray(nibabel.load(manifest.locate(row["path"])).dataobj)
        found[row.get("part", "")] = voxels[0, 0].tolist()
    return found


def numbered(name: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    return [{name: value} for value in values]


LOW, HIGH = [0, 3, 6, 9], [60, 63, 66, 69]


def by(name: str, texts: Sequence[Any], numbers: Sequence[Sequence[int]]) -> dict[str, list[int]]:
    return {f"{name} {text}": list(which) for text, which in zip(texts, numbers, strict=True)}


ECHOES_OF_TIMES = [
    {"EchoNumbers": 1 + n // 3 % 2, "TemporalPositionIdentifier": 1 + n // 6} for n in range(12)
]
EACH = [f"EchoNumbers {echo}, TemporalPositionIdentifier {time}" for echo in (1, 2) for time in (1, 2)]
FAT_AND_WATER = [["DERIVED", "PRIMARY", "W"], ["DERIVED", "PRIMARY", "F"]] * 3


@pytest.mark.parametrize(
    ("places", "fields", "parts"),
    [
        (
            LOW + LOW,
            numbered("AcquisitionNumber", [1] * 4 + [2] * 4),
            by("AcquisitionNumber", (1, 2), (range(4), range(4, 8))),
        ),
        (
            LOW + HIGH,
            numbered("AcquisitionNumber", [1] * 4 + [2] * 4),
            by("AcquisitionNumber", (1, 2), (range(4), range(4, 8))),
        ),
        (
            [0, 0, 3, 3, 6, 6],
            numbered("EchoNumbers", [2, 1] * 3),
            by("EchoNumbers", (1, 2), ([1, 3, 5], [0, 2, 4])),
        ),
        (
            LOW * 3,
            numbered("TemporalPositionIdentifier", [1] * 4 + [10] * 4 + [2] * 4),
            by("TemporalPositionIdentifier", (1, 2, 10), (range(4), range(8, 12), range(4, 8))),
        ),
        (
            [0, 0, 3, 3, 6, 6],
            numbered("ImageType", FAT_AND_WATER),
            by("ImageType", ("DERIVED/PRIMARY/F", "DERIVED/PRIMARY/W"), ([1, 3, 5], [0, 2, 4])),
        ),
        # Two phases on two grids: together they look like one grid of half the gap.
        (
            [0, 1.5, 3, 4.5, 6, 7.5],
            numbered("AcquisitionNumber", [1, 2] * 3),
            by("AcquisitionNumber", (1, 2), ([0, 2, 4], [1, 3, 5])),
        ),
        # One volume in several acquisitions: the table moved in between.
        ([0, 3, 6, 9, 12, 15], numbered("AcquisitionNumber", [1, 1, 1, 2, 2, 2]), {"": list(range(6))}),
        ([0, 3, 6, 9, 12, 15], numbered("AcquisitionNumber", [1, 2, 3, 4, 5, 6]), {"": list(range(6))}),
        # Both marks are needed.
        (
            [0, 3, 6] * 4,
            ECHOES_OF_TIMES,
            dict(zip(EACH, ([0, 1, 2], [6, 7, 8], [3, 4, 5], [9, 10, 11]), strict=True)),
        ),
    ],
)
def test_volumes_under_one_uid_are_split_by_unambiguous_headers(
    tmp_path: Path, places: list[float], fields: list[dict[str, Any]], parts: dict[str, list[int]]
) -> None:
    manifest = dicom(write_mixed(tmp_path / "in", places, fields), tmp_path / "raw")
    assert of_each(manifest) == parts
    assert manifest.table["path"].is_unique and manifest.table["session"].nunique() == 1
    notes = " ".join(manifest.notes)
    assert (
        f"in: series 1.2.9: holds {len(parts)} volumes under one SeriesInstanceUID, split by" in notes
    ) == (len(parts) > 1)


@pytest.mark.parametrize(
    ("places", "fields", "fault"),
    [
        # Blocks of one volume with a missing slice: no block may become a volume.
        (
            [0, 3, 6, 9, 12, 15, 21, 24],
            numbered("AcquisitionNumber", [1] * 4 + [2] * 4),
            "1 slices are missing between",
        ),
        (
            [0, 3, 6, 12, 15, 18],
            numbered("AcquisitionNumber", [1] * 3 + [2] * 3),
            "(its slices differ in AcquisitionNumber",
        ),
        ([0, 3, 6, 9, 12, 18], numbered("AcquisitionNumber", range(6)), "1 slices are missing between"),
        # Half of a second volume.
        ([0, 3, 6, 9, 0, 3], numbered("AcquisitionNumber", [1] * 4 + [2] * 2), "have one position"),
        # One of two volumes has a gap.
        (
            [0, 3, 6, 9, 0, 3, 9],
            numbered("EchoNumbers", [1] * 4 + [2] * 3),
            "its slices differ in EchoNumbers",
        ),
        (
            LOW + HIGH,
            [{}] * 8,
            "16 slices are missing between IM1_129 and IM8_129: 51 mm, elsewhere 3 mm; "
            "fetch the series again, or move",
        ),
        (LOW * 2, numbered("EchoNumbers", [2, 1] * 4), "does not split them into whole volumes"),
    ],
)
def test_a_volume_that_may_lack_slices_is_not_split(
    tmp_path: Path, places: list[float], fields: list[dict[str, Any]], fault: str
) -> None:
    assert fault in fault_of(dicom(write_mixed(tmp_path / "in", places, fields), tmp_path / "raw"))


def test_a_scout_within_a_series_is_skipped_with_a_note(tmp_path: Path) -> None:
    places, turned = (
        [3 * n for n in range(9)],
        {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1], "ImagePositionPatient": [0, 0, 99]},
    )
    axial = numbered("ImageType", [["ORIGINAL", "PRIMARY", "AXIAL"]] * 8)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "SCOUT"], **turned}
    manifest = dicom(write_mixed(tmp_path / "in", places, [*axial, scout]), tmp_path / "raw")
    assert the_only(manifest)[0].shape == (6, 7, 8)
    note = "holds one volume and others under one SeriesInstanceUID, split by ImageType"
    assert f"{note}; 1 other slices were skipped" in " ".join(manifest.notes)
    localizer = {**scout, "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}
    manifest = dicom(write_mixed(tmp_path / "two", places, [*axial, localizer]), tmp_path / "raw")
    assert the_only(manifest)[0].shape == (6, 7, 8) and "1 localizers were skipped (IM" in " ".join(
        manifest.notes
    )


def test_echoes_that_share_one_uid_are_not_duplicates(tmp_path: Path) -> None:
    fields = {"SOPInstanceUID": "1.2.3"}
    folder = write_mixed(tmp_path / "in", LOW * 2, [{**fields, "EchoNumbers": 1 + n // 4} for n in range(8)])
    assert of_each(dicom(folder, tmp_path / "raw")) == by("EchoNumbers", (1, 2), (range(4), range(4, 8)))
    unmarked = write_mixed(tmp_path / "two", LOW * 2, [fields] * 8)
    assert "have one position" in fault_of(dicom(unmarked, tmp_path / "raw"))


def test_mixed_error_refuses_and_hash_ids_hides_texts(tmp_path: Path) -> None:
    folder = write_mixed(
        tmp_path / "DOE", LOW * 2, numbered("ImageType", [["A", "B", "DOE"]] * 4 + [["A", "B", "ROE"]] * 4)
    )
    fault = fault_of(dicom(folder, tmp_path / "raw", mixed="error"))
    assert "holds 2 volumes under one SeriesInstanceUID, split by ImageType; set mixed=split" in fault
    hidden = dicom(folder, tmp_path / "hidden", hash_ids=True)
    assert set(of_each(hidden)) == {"1 of 2 by ImageType", "2 of 2 by ImageType"}
    assert "OE" not in hidden.table.to_csv() + str(hidden.notes)


def test_a_series_beside_one_that_was_split_is_whole(tmp_path: Path) -> None:
    write_mixed(tmp_path / "in" / "a", LOW * 2, numbered("EchoNumbers", [1] * 4 + [2] * 4), uid="1.2.5")
    write_series(tmp_path / "in" / "b")
    assert sorted(dicom(tmp_path / "in", tmp_path / "raw").table["part"]) == [
        "EchoNumbers 1",
        "EchoNumbers 2",
        "whole",
    ]


def test_ct_and_mr_under_one_uid_are_two_series(tmp_path: Path) -> None:
    write_series(tmp_path / "in" / "a")
    write_series(
        tmp_path / "in" / "b", NINE[:5], Modality="MR", change=lambda n: {"SOPInstanceUID": f"1.2.5.{n}"}
    )
    manifest = dicom(tmp_path / "in", tmp_path / "raw")
    assert (
        sorted(manifest.table["modality"]) == ["CT", "MR"]
        and not manifest.faults
        and manifest.table["scan"].is_unique
    )


def frames(count: int, of: Callable[[int], dict[str, Any]]) -> list[Any]:
    return [
        item(PlanePositionSequence=[item(ImagePositionPatient=[1.0, 2.0, 4.0 * (n % 3)])], **of(n))
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("of", "name", "texts"),
    [
        (
            lambda n: {"FrameContentSequence": [item(TemporalPositionIndex=1 + n // 3)]},
            "TemporalPositionIdentifier",
            "123",
        ),
        (
            lambda n: {"FrameContentSequence": [item(FrameAcquisitionNumber=1 + n // 3)]},
            "AcquisitionNumber",
            "123",
        ),
        (lambda n: {"FrameContentSequence": [item(StackID=str(1 + n // 3))]}, "StackID", "123"),
        (lambda n: {"MREchoSequence": [item(EffectiveEchoTime=float(4 + n // 3))]}, "EchoTime", "456"),
        (
            lambda n: {"MRImageFrameTypeSequence": [item(FrameType=["A", "B", "C", "XYZ"[n // 3]])]},
            "ImageType",
            "XYZ",
        ),
    ],
)
def test_frames_of_several_volumes_are_split(
    tmp_path: Path, of: Callable[[int], dict[str, Any]], name: str, texts: str
) -> None:
    write_frames(tmp_path / "in" / "a", NINE, frames(9, of))
    manifest = dicom(tmp_path / "in", tmp_path / "raw")
    parts = sorted(manifest.table["part"])
    assert len(parts) == 3 and all(
        part.startswith(name) and text in part for part, text in zip(parts, texts, strict=True)
    )
    first = manifest.table.set_index("part").loc[parts[0], "path"]
    np.testing.assert_array_equal(
        np.asarray(nibabel.load(manifest.locate(first)).dataobj), NINE[:3].transpose(2, 1, 0)
    )
