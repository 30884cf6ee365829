from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medcl3d.core.errors import DataError
from medcl3d.quality.check import audit
from tests.datasets.dicoms import VOXELS, shifted, spoil, write_series

NOISE = np.random.default_rng(0).integers(0, 1000, (5, 7, 6)).astype(np.int16)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def given(**fields: object) -> dict[str, object]:
    return {"source": "dicom", "workers": 1, "max_bad_fraction": 1.0, **fields}


def test_series_are_validated_and_temporary_files_are_removed(tmp_path: Path, scratch: Path) -> None:
    root = tmp_path / "in"
    write_series(root / "p1", NOISE, uid="1.2.1", SeriesNumber=1)
    write_series(root / "p2" / "gap", VOXELS, uid="1.2.2", SeriesNumber=7, change=shifted(3, 3))
    write_series(root / "p3", np.full_like(VOXELS, 7), uid="1.2.3", SeriesNumber=3)
    spoil(write_series(root / "p4", uid="1.2.4") / "IM4_124", "RescaleSlope", "DS", b"abc ")
    write_series(root / "p5", NOISE, uid="1.2.5", PatientID="008")
    shutil.copy(root / "p1" / "IM4_121", root / "p1" / "copy")
    before = sorted(root.rglob("*"))
    lines: list[str] = []
    findings = audit(root, report=tmp_path / "report.csv", given=given(), say=lines.append)
    assert sorted(root.rglob("*")) == before and not list(scratch.iterdir())
    faults = sorted(finding.fault for finding in findings if finding.fault)
    assert len(faults) == 3
    assert f"{root}/p2/gap: series 7 (1.2.2): 1 slices are missing between" in faults[0]
    assert faults[1].startswith(f"{root}/p3: series 3 (1.2.3): constant: every voxel of channel 0 is -86")
    assert f"{root}/p4: series 1.2.4: IM4_124: RescaleSlope is 'abc'" in faults[2]
    report = pd.read_csv(tmp_path / "report.csv", keep_default_na=False)
    good = report[report["fault"] == ""]
    assert (
        good["shape"].tolist() == ["6x7x5"] * 2 and (good["min"].astype(float) == NOISE.min() * 2 - 100).all()
    )
    assert "duplicate slices, one copy skipped" in " ".join(good["warnings"])
    assert any(line.startswith("the same content: ") for line in lines)


def test_unchanged_series_are_not_decoded_again(tmp_path: Path, scratch: Path) -> None:
    for number in range(2):
        write_series(
            tmp_path / "in" / f"p{number}", NOISE + number, uid=f"1.2.{number}", PatientID=f"{number}"
        )
    report, lines = tmp_path / "report", list[str]()
    audit(tmp_path / "in", report=report, given=given(), say=lines.append)
    assert "thumbnail" in (report / "checked.jsonl").read_text() and not any(
        "as they were" in line for line in lines
    )
    audit(tmp_path / "in", report=report, given=given(), say=lines.append)
    assert "2 scans are unchanged since the last check" in lines
    path = next((tmp_path / "in" / "p0").iterdir())
    spoil(path, "RescaleIntercept", "DS", b"-200")
    (finding, _) = audit(tmp_path / "in", report=report, given=given(), say=lines.append)
    assert "1 scans are unchanged since the last check" in lines and finding.facts["min"] < -100
    assert not list(scratch.iterdir())


def test_a_check_with_hashed_ids_has_no_names(tmp_path: Path, scratch: Path) -> None:
    write_series(
        tmp_path / "in" / "DOE",
        np.full_like(VOXELS, 7),
        uid="1.2.3",
        PatientID="DOE",
        SeriesDescription="DOE",
    )
    write_series(tmp_path / "in" / "DOE2", NOISE, uid="1.2.4", PatientID="DOE2", change=shifted(3, 3))
    findings = audit(tmp_path / "in", given=given(hash_ids=True))
    assert "DOE" not in json.dumps([vars(finding) for finding in findings]) and all(
        finding.fault for finding in findings
    )
    assert not list((tmp_path / "in").rglob(".hash_key"))
    with pytest.raises(DataError, match=r"2 of 2 scans of .* are invalid"):
        audit(tmp_path / "in", given=given(max_bad_fraction=0.5))


def test_a_real_series_is_valid(real: Path, scratch: Path) -> None:
    (finding,) = audit(real / "ct" / "dicom_series", given=given())
    assert not finding.fault and finding.facts["shape"] == [512, 512, 20] and finding.facts["min"] >= -1024
