from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medcl3d.datasets.dicom.suv import NUCLIDES, read_time
from medcl3d.datasets.sources.dicom import dicom
from tests.datasets.dicoms import VOXELS, fault_of, item, the_only, write_series

PET: dict[str, Any] = {
    "Modality": "PT", "Units": "BQML", "CorrectedImage": ["ATTN", "DECY"], "DecayCorrection": "START",
    "PatientWeight": 80, "SeriesDate": "20200131", "SeriesTime": "100000.0", "AcquisitionDate": "20200131",
    "AcquisitionTime": "100010",
}  # fmt: skip


def injection(**fields: Any) -> list[Any]:
    given = {
        "RadionuclideTotalDose": 4e7,
        "RadionuclideHalfLife": 6586.2,
        "RadiopharmaceuticalStartTime": "090000",
        **fields,
    }
    return [item(**{name: value for name, value in given.items() if value is not None})]


def write_pet(
    folder: Path, dose: dict[str, Any] | None = None, voxels: np.ndarray = VOXELS, **fields: Any
) -> Path:
    return write_series(
        folder,
        voxels,
        **{"RadiopharmaceuticalInformationSequence": injection(**(dose or {})), **PET, **fields},
    )


def expected(elapsed: float, half_life: float = 6586.2) -> np.ndarray:
    """SUV by its definition, of the fixture's voxels."""
    return (VOXELS.transpose(2, 1, 0) * 2.0 - 100) * 80_000 / (4e7 * 0.5 ** (elapsed / half_life))


def test_pet_is_in_suv_if_the_headers_allow_it(tmp_path: Path) -> None:
    folder = write_pet(tmp_path / "in")
    voxels, _ = the_only(dicom(folder, tmp_path / "raw"))
    np.testing.assert_allclose(voxels, expected(3600), rtol=1e-6)
    manifest = dicom(folder, tmp_path / "raw", pet="raw")
    np.testing.assert_array_equal(the_only(manifest)[0], VOXELS.transpose(2, 1, 0) * 2 - 100)
    assert "stored units" in " ".join(manifest.notes) and manifest.table["modality"].tolist() == ["PET"]


@pytest.mark.parametrize(
    ("fields", "dose", "elapsed"),
    [
        ({"SeriesTime": "1000"}, {}, 3600),
        ({"SeriesTime": "100000.5", "AcquisitionTime": "100000"}, {}, 3600.5),
        ({"SeriesTime": "10"}, {"RadiopharmaceuticalStartTime": "0915"}, 2700),
        ({}, {"RadiopharmaceuticalStartTime": "093000.500000"}, 1799.5),
        ({"SeriesTime": "0010", "AcquisitionTime": "001000"}, {"RadiopharmaceuticalStartTime": "2350"}, 1200),
        (
            {},
            {
                "RadiopharmaceuticalStartDateTime": "20200131084500.00+0100",
                "RadiopharmaceuticalStartTime": None,
            },
            4500,
        ),
    ],
)
def test_times_are_read_by_their_length(
    tmp_path: Path, fields: dict[str, Any], dose: dict[str, Any], elapsed: float
) -> None:
    voxels, _ = the_only(dicom(write_pet(tmp_path / "in", dose, **fields), tmp_path / "raw"))
    np.testing.assert_allclose(voxels, expected(elapsed), rtol=1e-6)


def test_dicom_times() -> None:
    """Lengths of PS3.5: HH, HHMM, HHMMSS and fractions."""
    assert read_time("20200101", "11") == datetime(2020, 1, 1, 11)
    assert read_time("20200101", "1145") == datetime(2020, 1, 1, 11, 45)
    assert read_time("20200101", "114506") == datetime(2020, 1, 1, 11, 45, 6)
    assert read_time("20200101", "114506.25") == datetime(2020, 1, 1, 11, 45, 6, 250_000)
    for date, time in (
        ("20200101", ""),
        ("20200101", "1"),
        ("20200101", "114"),
        ("20200101", "11450"),
        ("20200101", "2545"),
        ("2020", "11"),
    ):
        with pytest.raises(ValueError):
            read_time(date, time)


def test_a_long_lived_nuclide_needs_the_injection_date_and_the_half_life_must_match_the_name(
    tmp_path: Path,
) -> None:
    half_life, codes = NUCLIDES["Zr-89"]
    zirconium = {"RadionuclideHalfLife": half_life, "RadionuclideCodeSequence": [item(CodeValue=codes[0])]}
    days = {**zirconium, "RadiopharmaceuticalStartDateTime": "20200128100000"}
    voxels, _ = the_only(dicom(write_pet(tmp_path / "in", days), tmp_path / "raw"))
    np.testing.assert_allclose(voxels, expected(3 * 86400, half_life), rtol=1e-6)
    assert "may be on another day" in fault_of(
        dicom(write_pet(tmp_path / "no_date", zirconium), tmp_path / "raw")
    )
    other = {"RadionuclideCodeSequence": [item(CodeValue="C-105A1")]}
    assert "RadionuclideHalfLife is 6586.2 s, the nuclide is C-11" in fault_of(
        dicom(write_pet(tmp_path / "c11", other), tmp_path / "raw")
    )


@pytest.mark.parametrize(
    ("fields", "dose", "what"),
    [
        ({"Units": "CNTS"}, {}, "Units is 'CNTS'"),
        ({"Units": "GML", "SUVType": "LBM"}, {}, "Units is 'GML'"),
        ({"PatientWeight": None}, {}, "PatientWeight is 0 kg"),
        ({"PatientWeight": 80_000}, {}, "PatientWeight is 80000 kg"),
        ({"CorrectedImage": ["DECY"]}, {}, "CorrectedImage lacks ATTN"),
        ({"DecayCorrection": "NONE"}, {}, "DecayCorrection is 'NONE'"),
        ({"SeriesTime": "100500"}, {}, "SeriesTime is later"),
        ({"SeriesTime": None}, {}, "the times of injection"),
        ({}, {"RadiopharmaceuticalStartTime": "9:00"}, "the times of injection"),
        ({}, {"RadiopharmaceuticalStartTime": "1030"}, "the scan starts 84600 s after the injection"),
        ({}, {"RadionuclideTotalDose": 0}, "RadionuclideTotalDose is 0"),
        (
            {},
            {"RadionuclideTotalDose": 370},
            "RadionuclideTotalDose is 370 Bq, outside 1e+06 to 1e+10, perhaps in MBq",
        ),
        ({}, {"RadionuclideTotalDose": 10}, "perhaps in MBq or mCi"),
        (
            {},
            {"RadionuclideHalfLife": 109.77},
            "RadionuclideHalfLife is 109.77 s, which matches no PET nuclide",
        ),
        ({}, {"RadionuclideHalfLife": 7200}, "RadionuclideHalfLife is 7200 s"),
        (
            {"RadiopharmaceuticalInformationSequence": [*injection(), *injection()]},
            {},
            "the series has several injections",
        ),
        ({"change": lambda n: {"PatientWeight": 80 + n}}, {}, "PatientWeight differs among its files"),
        (
            {"RescaleSlope": 20_000, "RescaleIntercept": 0},
            {},
            "its maximum would be 1.22e+04, outside 0.2 to 1000",
        ),
        ({"RescaleSlope": 0.01, "RescaleIntercept": 0}, {}, "its maximum would be 0.0061"),
    ],
)
def test_an_uncertain_suv_is_refused(
    tmp_path: Path, fields: dict[str, Any], dose: dict[str, Any], what: str
) -> None:
    fault = fault_of(dicom(write_pet(tmp_path / "in", dose, **fields), tmp_path / "raw"))
    assert what in fault and "pet=raw" in fault


def test_all_beds_are_corrected_to_the_start_of_the_series(tmp_path: Path) -> None:
    """The first slice by position may be of the last bed."""
    folder = write_pet(tmp_path / "in", change=lambda n: {"AcquisitionTime": f"10{10 - 2 * n:02d}00"})
    np.testing.assert_allclose(the_only(dicom(folder, tmp_path / "raw"))[0], expected(3600), rtol=1e-6)
    late = write_pet(
        tmp_path / "late", change=lambda n: {"AcquisitionTime": f"10{10 - 2 * n:02d}00"}, SeriesTime="100500"
    )
    assert "SeriesTime is later" in fault_of(dicom(late, tmp_path / "raw"))
