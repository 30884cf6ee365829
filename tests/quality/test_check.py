"""`medcl3d check` on raw collections: named faults, valid files, and the report."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medcl3d.core.errors import ConfigError, DataError, MachineError
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.prepare import prepare
from medcl3d.quality.check import audit

RAMP = np.arange(6 * 5 * 7, dtype=np.int16).reshape(6, 5, 7)


def faults_of(target: Path, tmp_path: Path, **given: Any) -> dict[str, tuple[str, str]]:
    """Scan -> fault and warnings."""
    audit(target, report=tmp_path / "r.csv", given={"max_bad_fraction": 1.0, "workers": 1, **given})
    table = pd.read_csv(tmp_path / "r.csv", dtype=str, keep_default_na=False)
    return {row.scan: (row.fault, row.warnings) for row in table.itertuples()}


def test_every_real_bad_file_is_reported_with_its_fault(real: Path, tmp_path: Path) -> None:
    found = faults_of(real / "bad_input", tmp_path)
    expected = {
        "empty_0_bytes": "the file is empty",
        "git_lfs_pointer": "Git-LFS pointer",
        "rgb_dtype": "RGB",
        "truncated_half_of_hippocampus_001": "truncated",
    }
    assert {scan for scan, (fault, _) in found.items() if fault} == set(expected)
    for scan, text in expected.items():
        assert text in found[scan][0]
    for scan in ("label_without_image_hippocampus_010", "label_without_image_hippocampus_281"):
        assert re.search(
            r"contains only \d whole numbers, .*: a label map.*name label maps in a table", found[scan][1]
        ), scan
    assert found["image_without_label_hippocampus_118"] == ("", "")
    with pytest.raises(DataError, match="4 of 7 scans"):
        audit(real / "bad_input", given={"workers": 1})


def test_images_and_labels_that_do_not_match_are_reported(real: Path, tmp_path: Path) -> None:
    bad = real / "bad_input"
    image, other = (
        bad / "image_without_label_hippocampus_118.nii.gz",
        bad / "label_without_image_hippocampus_281.nii.gz",
    )
    rows = [
        "scan,patient,path,label",
        f"a,a,{image},{bad}/gone.nii.gz",
        f"b,b,{bad}/gone2.nii.gz,{other}",
        f"c,c,{image}.gz,{other}",
    ]
    rows[3] = f"c,c,{real}/hippocampus/imagesTr/hippocampus_001.nii.gz,{other}"
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    found = faults_of(tmp_path / "manifest.csv", tmp_path, allow_outside=True)
    assert (
        "gone.nii.gz: there is no such file" in found["a"][0]
        and "gone2.nii.gz: there is no such file" in found["b"][0]
    )
    assert "512x512x94 voxels cannot belong" in found["c"][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["hippocampus", "ixi40", "ms_longitudinal", "sarcoma", "sunnybrook", "ct/images"]
)
def test_every_good_real_file_passes(real: Path, tmp_path: Path, name: str) -> None:
    findings = audit(real / name, report=tmp_path / "report", given={"workers": 1})
    assert findings and not [f.fault for f in findings if f.fault]


def test_a_report_has_a_page_and_a_cache_for_the_next_check(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, said = tmp_path / "report", list[str]()
    audit(cohort, report=report, given={"workers": 1})
    page = (report / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 6 and "6 scans of 3 patients: 0 with a fault" in page
    assert page.count("<span>sagittal</span><span>coronal</span><span>axial</span>") == 6
    for text in ("voxel size along", "sessions per patient", "intensity, median", "Missing values"):
        assert text in page
    assert not re.search(r"(src|href)=[\"']?(http|/)", page)
    table = pd.read_csv(report / "report.csv", dtype=str)
    assert table["shape"].iloc[0] == "12x11x10" and table["spacing_mm"].iloc[0] == "1x1x2"

    seen: list[str] = []
    import medcl3d.quality.check as module

    real_examine = module.examine
    monkeypatch.setattr(module, "examine", lambda look: (seen.append(look.scan), real_examine(look))[1])
    audit(cohort, report=report, given={"workers": 1}, say=said.append)
    assert not seen and "6 scans are unchanged since the last check" in said
    os.utime(cohort / "images/3.nii.gz", (0, 0))
    (cohort / "labels/1.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 6 scans .*1\.nii\.gz: the file is empty"):
        audit(cohort, report=report, given={"workers": 1})
    assert seen == ["001", "003"] and "the file is empty" in (report / "report.html").read_text()
    (report / "checked.jsonl").write_text("{")
    audit(cohort, report=report, given={"workers": 1, "max_bad_fraction": 0.5})
    assert len(seen) == 8, "a damaged cache is ignored"


def test_a_page_of_many_scans_is_limited_and_states_what_it_omits(
    tmp_path: Path, write_nifti: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("check", "page"):
        monkeypatch.setattr(f"medcl3d.quality.{module}.MAX_PICTURES", 3)
    monkeypatch.setattr("medcl3d.quality.page.NUM_SHOWN", 2)
    for number in range(5):
        # A few whole numbers: a warning.
        write_nifti(f"in/s{number}.nii.gz", RAMP % 3 if number else RAMP, np.diag([1, 1, 2.0, 1]))
    audit(tmp_path / "in", report=tmp_path / "report", given={"workers": 1})
    page = (tmp_path / "report/report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3 and "Scans, the first 3 of 5" in page
    assert page.count("a label map or a shape") == 1 and "4 of 5 scans, as s1" in page, "grouped"
    folded = page[page.index("<summary>1 more scans") :]
    assert folded.count("data:image/jpeg;base64,") == 1
    assert "<b>s0</b>" in folded, "scans with warnings are first"
    assert (tmp_path / "report/report.csv").read_text().count("a label map or a shape") == 4
    assert (tmp_path / "report/checked.jsonl").read_text().count("\n") == 6, "one line per scan"


def test_scan_names_are_escaped_in_the_page(tmp_path: Path, write_nifti: Callable[..., Path]) -> None:
    write_nifti("in/a.nii.gz", RAMP)
    (tmp_path / "in/manifest.csv").write_text("scan,patient,path\n<script>alert(1)</script>,p,a.nii.gz\n")
    audit(tmp_path / "in", report=tmp_path / "report", given={"workers": 1})
    assert "<script>" not in (tmp_path / "report/report.html").read_text()


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_processes(cohort: Path, tmp_path: Path) -> None:
    (cohort / "images/2.nii.gz").write_bytes(b"")
    for workers in (1, 2):
        audit(cohort, report=tmp_path / f"{workers}.csv", given={"workers": workers, "max_bad_fraction": 0.5})
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()


def test_the_same_content_or_patient_on_both_sides_is_a_leak(cohort: Path, tmp_path: Path) -> None:
    shutil.copy(cohort / "images/0.nii.gz", cohort / "images/2.nii.gz")
    shutil.copy(cohort / "labels/0.nii.gz", cohort / "labels/2.nii.gz")
    said: list[str] = []
    audit(cohort, given={"workers": 1}, say=said.append)
    assert "the same content: 000 of 000, 002 of 001" in said
    table = pd.read_csv(cohort / "manifest.csv", dtype=str, keep_default_na=False)
    table["split"] = ["train", "train", "test", "test", "train", "train"]
    table.to_csv(cohort / "manifest.csv", index=False)
    with pytest.raises(DataError, match="the same content is in train and in test: 000, 002"):
        audit(cohort, given={"workers": 1})
    table["split"] = ["train", "test", "train", "train", "train", "train"]
    table.to_csv(cohort / "manifest.csv", index=False)
    with pytest.raises(DataError, match="1 patients are in train and in test: 000"):
        audit(cohort, given={"workers": 1})


def test_the_source_of_a_folder_is_detected_or_given(
    tmp_path: Path, write_nifti: Callable[..., Path]
) -> None:
    for path in (
        "bids/sub-1/anat/sub-1_T1w.nii.gz",
        "raw/imagesTr/c_0000.nii.gz",
        "raw/labelsTr/c.nii.gz",
        "mine/p1/T1.nii.gz",
    ):
        write_nifti(path, RAMP + 1 if "labelsTr" in path else RAMP)
    content = {"channel_names": {"0": "T1"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
    (tmp_path / "raw/dataset.json").write_text(json.dumps(content))
    assert [f.scan for f in audit(tmp_path / "bids", given={"workers": 1})] == ["sub-1_T1w"]
    with pytest.raises(DataError, match=r"classes .* are not declared"):
        audit(tmp_path / "raw", given={"workers": 1})
    assert [f.patient for f in audit(tmp_path / "mine", given={"workers": 1})] == ["p1_T1"]
    as_folder = {"source": "folder", "pattern": "{patient}/{modality}.nii.gz", "workers": 1}
    assert [f.patient for f in audit(tmp_path / "mine", given=as_folder)] == ["p1"]
    assert len(audit(tmp_path / "mine/p1/T1.nii.gz", given={"workers": 1})) == 1
    for given, message in (
        ({"patern": "x"}, "patern: unknown option"),
        ({"source": "folder", "patern": "x"}, "of folder: pattern, label"),
        ({"source": "foldr"}, "did you mean 'folder'"),
        ({"source": "medmnist"}, "prepare it"),
        ({"max_bad_fraction": 2}, "max_bad_fraction = 2"),
    ):
        with pytest.raises(ConfigError, match=message):
            audit(tmp_path / "mine", given=given)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="not a store, without a manifest or NIfTI files; use source=dicom"):
        audit(tmp_path / "empty")
    with pytest.raises(DataError, match="no such file"):
        audit(tmp_path / "nowhere")


def test_one_volume_in_two_files_is_the_same_content(
    tmp_path: Path, write_nifti: Callable[..., Path]
) -> None:
    """Anonymised, and reoriented with its affine: another file with the same voxels at the same positions."""
    affine, flipped = np.diag([1, 1, 2.0, 1]), np.diag([-1, 1, 2.0, 1])
    flipped[0, 3] = len(RAMP) - 1
    write_nifti("in/a.nii.gz", RAMP, affine, lambda header: header.__setitem__("descrip", b"a name"))
    write_nifti("in/b.nii.gz", RAMP[::-1], flipped)
    write_nifti("in/c.nii.gz", RAMP + 1, affine)
    said: list[str] = []
    (tmp_path / "in/manifest.csv").write_text("scan,patient,path\na,p,a.nii.gz\nb,q,b.nii.gz\nc,r,c.nii.gz\n")
    audit(tmp_path / "in", given={"workers": 1}, say=said.append)
    assert "the same content: a of p, b of q" in said
    (tmp_path / "in/manifest.csv").write_text(
        "scan,patient,path,split\na,p,a.nii.gz,train\nb,q,b.nii.gz,test\nc,r,c.nii.gz,train\n"
    )
    with pytest.raises(DataError, match="the same content is in train and in test: a, b"):
        audit(tmp_path / "in", given={"workers": 1})


def test_an_image_without_a_label_map_is_reported_if_others_have_one(
    tmp_path: Path, write_nifti: Callable[..., Path]
) -> None:
    """Images without any label map are valid, since pretraining needs none."""
    for name in "ab":
        write_nifti(f"in/{name}.nii.gz", RAMP + ord(name))
    write_nifti("in/l.nii.gz", (RAMP > 50).astype(np.uint8))
    said: list[str] = []
    for label, expected in (("l.nii.gz", ["1 of 2 scans have no label map, as b"]), ("", [])):
        (tmp_path / "in/manifest.csv").write_text(
            f"scan,patient,path,label\na,p,a.nii.gz,{label}\nb,q,b.nii.gz,\n"
        )
        said.clear()
        audit(tmp_path / "in", given={"workers": 1}, say=said.append)
        assert [line for line in said if "label map" in line] == expected


def test_links_out_of_a_folder_are_refused_unless_allowed(
    tmp_path: Path, write_nifti: Callable[..., Path]
) -> None:
    write_nifti("in/a.nii.gz", RAMP)
    write_nifti("elsewhere/b.nii.gz", RAMP + 1)
    (tmp_path / "in/b.nii.gz").symlink_to(tmp_path / "elsewhere/b.nii.gz")
    (tmp_path / "in/c").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        DataError, match=r"2 of 3 scans .*b\.nii\.gz.* is a link out of the root, .*or set allow_outside"
    ):
        audit(tmp_path / "in", given={"workers": 1})
    assert len(audit(tmp_path / "in", given={"workers": 1, "allow_outside": True})) == 3


def test_the_path_of_a_report_is_tested_before_the_check(
    tmp_path: Path, write_nifti: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nifti("in/a.nii.gz", RAMP)
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "folder.csv").mkdir()
    monkeypatch.setattr(
        "medcl3d.quality.check.examine",
        lambda look: pytest.fail("a scan was read before the report's path was tested"),
    )
    for place in ("taken", "taken/look", "taken/r.csv", "folder.csv"):
        with pytest.raises(MachineError, match=f"--report .*{place}: .*; choose a"):
            audit(tmp_path / "in", report=tmp_path / place, given={"workers": 1})


def test_files_of_a_prepared_folder_are_not_overwritten(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare("csv", cohort, out, options=PrepareOptions(workers=1))
    for place in (out, out / "report.csv", out / "manifest.csv"):
        with pytest.raises(ConfigError, match=r"was written by `medcl3d prepare`; choose another path"):
            audit(out, report=place, given={"workers": 1})
    audit(out, report=out / "look", given={"workers": 1})
    assert (out / "look" / "report.html").is_file() and (out / "report.csv").is_file()


def test_an_unforeseen_exception_is_a_fault_of_its_scan(
    tmp_path: Path, write_nifti: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        write_nifti(f"in/{name}.nii.gz", RAMP + ord(name))
    import medcl3d.quality.examine as module

    read = module.read_image

    def fail(path: Path, **how: Any) -> Any:
        if path.name == "a.nii.gz":
            raise RuntimeError("odd")
        return read(path, **how)

    monkeypatch.setattr(module, "read_image", fail)
    with pytest.raises(DataError, match=r"1 of 2 scans .*a\.nii\.gz: cannot be used: RuntimeError: odd"):
        audit(tmp_path / "in", given={"workers": 1})


def test_a_store_is_checked_in_parallel_and_missing_sources_are_counted(cohort: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "out", list[str]()
    prepare("csv", cohort, out, options=PrepareOptions(workers=1))
    for place in (cohort / "images/1.nii.gz", cohort / "images/3.nii.gz"):
        place.unlink()
    stored = out / "store/002.npy"
    content = bytearray(stored.read_bytes())
    content[-1] ^= 1
    stored.write_bytes(content)
    findings = [
        audit(out, given={"workers": workers, "max_bad_fraction": 0.5}, say=said.append) for workers in (1, 2)
    ]
    assert findings[0] == findings[1] and [f.scan for f in findings[0]] == [f"00{n}" for n in range(6)]
    assert [f.scan for f in findings[0] if f.fault] == [
        "002"
    ] and "the voxels changed after preparing" in findings[0][2].fault
    missing = f"the source files of 2 of 6 scans are missing, as {cohort}/images/1.nii.gz"
    assert said.count(f"{missing}; whether they changed was not checked") == 2


def test_ninety_scans_with_the_same_warning_are_one_line(real: Path) -> None:
    said: list[str] = []
    audit(real / "sunnybrook", given={"workers": 1}, say=said.append)
    lost = (
        "the affine is the identity (1 mm voxels, origin 0): the voxel size may be lost; "
        "if it is known, prepare with assume_spacing_mm"
    )
    assert said[0] == f"warning: 90 of 90 scans, as SC-HF-I-01_ED: {lost}"
    assert said[1:] == [f"90 scans of {real}/sunnybrook are valid, 90 with warnings"]
