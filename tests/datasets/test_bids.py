from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.collection import make_tree
from medcl3d.core.errors import ConfigError, DataError
from medcl3d.datasets.bids.tables import sessions
from medcl3d.datasets.sources.bids import bids
from medcl3d.io.nifti import read_header
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.prepare import prepare
from medcl3d.store.store import Store

Write = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path, write_nifti: Write) -> Path:
    """Three subjects (one without a row), a row without a folder, two sessions, labels of T1w."""
    rng, root = np.random.default_rng(0), tmp_path / "bids"
    for subject in ("001", "NA", "3"):
        for session in ("a", "b"):
            stem = f"sub-{subject}_ses-{session}"
            for suffix in ("T1w", "FLAIR"):
                image = rng.normal(100, 20, (10, 9, 8)).astype(np.float32)
                write_nifti(f"bids/sub-{subject}/ses-{session}/anat/{stem}_{suffix}.nii.gz", image)
            label = rng.integers(0, 2, (10, 9, 8)).astype(np.uint8)
            write_nifti(
                f"bids/derivatives/hand/sub-{subject}/ses-{session}/anat/"
                f"{stem}_space-orig_desc-a_T1w_dseg.nii.gz",
                label,
            )
        sessions = root / f"sub-{subject}" / f"sub-{subject}_sessions.tsv"
        sessions.write_text(
            "session_id\tacq_time\tscore\nses-a\t2001-02-27T23:00:00\t1\nses-b\t2001-03-02T01:00:00\t2\n"
        )
    write_nifti(
        "bids/sub-001/ses-a/func/sub-001_ses-a_task-rest_bold.nii.gz", np.zeros((4, 4, 4, 2), np.float32)
    )
    (root / "participants.tsv").write_text(
        "participant_id\tage\tsite\nsub-001\t40\tNA\nNA\tn/a\tX\nsub-9\t50\tX\n"
    )
    (root / "derivatives" / "hand" / "dseg.tsv").write_text("index\tname\n1\tlesion\n")
    return root


def test_names_and_tables_become_a_manifest(tree: Path) -> None:
    manifest = bids(tree)
    table = manifest.table.set_index("scan")
    assert len(table) == 12 and set(table["patient"]) == {"sub-001", "sub-NA", "sub-3"}
    row = table.loc["sub-001_ses-b_FLAIR"]
    assert (row["session"], row["modality"], row["session_days"], row["score"], row["age"], row["site"]) == (
        "b",
        "FLAIR",
        "3",
        "2",
        "40",
        "NA",
    )
    assert row["label"] == "" and table.loc["sub-001_ses-b_T1w", "label"].endswith(
        "sub-001_ses-b_space-orig_desc-a_T1w_dseg.nii.gz"
    )
    assert table.loc["sub-NA_ses-a_T1w", "age"] == "n/a" and manifest.label_names == {
        0: "background",
        1: "lesion",
    }
    assert table["frame"].is_unique
    notes = " ".join(manifest.notes)
    assert (
        "1 files *_bold are skipped" in notes
        and "have no row" in notes
        and "sub-3" in notes
        and "have no folder (sub-9)" in notes
    )


def test_days_are_calendar_days_from_the_first_visit(tree: Path) -> None:
    """For any time of day and any order, with and without a time zone, and if a date is missing."""
    times = {
        "a": "2001-02-27T09:00:00Z",
        "b": "2000-12-24 15:00",
        "c": "n/a",
        "d": "2001-02-28T23:00:00.5+01:00",
    }
    rows = "".join(f"ses-{name}\t{time}\n" for name, time in times.items())
    (tree / "sub-3" / "sub-3_sessions.tsv").write_text(f"session_id\tacq_time\n{rows}")
    assert {
        name: line.row["session_days"]
        for name, line in sessions(tree / "sub-3" / "sub-3_sessions.tsv").items()
    } == {
        "a": "65",
        "b": "0",
        "c": "",
        "d": "66",
    }
    (tree / "sub-3" / "sub-3_sessions.tsv").write_text("session_id\tdays\tacq_time\nses-a\t7\tspring\n")
    table = tree / "sub-3" / "sub-3_sessions.tsv"
    assert sessions(table) == {"a": ({"session_days": "7"}, f"{table}:2")}


def test_sessions_without_images_are_counted(tree: Path) -> None:
    """ses-01 in the table is not ses-1 of a folder: without the note, its days would be lost silently."""
    table = tree / "sub-3" / "sub-3_sessions.tsv"
    table.write_text("session_id\tdays\nses-a\t0\nses-B\t7\n")
    assert f"1 sessions of ..._sessions.tsv have no image (B in {table}:3)" in bids(tree).notes


def test_label_maps_outside_the_folder_of_a_derivative_are_counted(
    tree: Path, write_nifti: Callable[..., Path]
) -> None:
    paths = ["derivatives/sub-3/anat/sub-3_dseg.nii.gz", "derivatives/masks/all/sub-3_dseg.nii.gz"]
    before = bids(tree).table["label"].tolist()
    for path in paths:
        write_nifti(f"{tree.name}/{path}", np.zeros((4, 4, 4), np.uint8))
    manifest = bids(tree)
    found = [
        note
        for note in manifest.notes
        if "under derivatives are not in a folder NAME/sub-ID and are skipped" in note
    ]
    assert (
        len(found) == 1 and found[0].startswith("2 NIfTI files") and all(path in found[0] for path in paths)
    )
    assert manifest.table["label"].tolist() == before


def test_shifted_dates_of_any_century_are_read(tree: Path) -> None:
    (tree / "sub-3" / "sub-3_sessions.tsv").write_text(
        "session_id\tacq_time\nses-a\t1605-12-31T23:59:59\nses-b\t1606-01-01T00:00:01\n"
    )
    assert bids(tree).table.set_index("scan").loc[
        ["sub-3_ses-a_T1w", "sub-3_ses-b_T1w"], "session_days"
    ].tolist() == ["0", "1"]


@pytest.mark.parametrize(
    ("age", "read"), [("89+", "89"), ("> 89", "89"), (">=90", "90"), ("90 and over", "90"), ("89.5+", "89.5")]
)
def test_an_age_above_a_limit_becomes_the_limit_with_a_note(tree: Path, age: str, read: str) -> None:
    (tree / "participants.tsv").write_text(
        f"participant_id\tage\tage_at_scan\nsub-001\t40\t41\nNA\tn/a\tn/a\nsub-3\t{age}\t{age}\n"
    )
    manifest = bids(tree)
    assert manifest.table.set_index("scan").loc["sub-3_ses-a_T1w", ["age", "age_at_scan"]].tolist() == [
        read,
        read,
    ]
    for name in ("age", "age_at_scan"):
        noted = [
            note
            for note in manifest.notes
            if note.startswith(f"column {name}: 4 ages above a limit were replaced by the limit")
        ]
        assert len(noted) == 1 and f"{age!r} in {tree}/participants.tsv:4" in noted[0]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "participants.tsv",
            "participant_id\tage\nsub-001\t40\n\nsub-3\tabout 40\n",
            "participants.tsv:4: age = 'about 40'",
        ),
        (
            "sub-3/sub-3_sessions.tsv",
            "session_id\tage\nses-a\t40\nses-b\t430\n",
            "sub-3_sessions.tsv:3: age = '430'",
        ),
        (
            "sub-3/sub-3_sessions.tsv",
            "session_id\tdays\nses-a\t0\nses-b\tsoon\n",
            "sub-3_sessions.tsv:3: session_days = 'soon'",
        ),
        (
            "sub-3/ses-b/sub-3_ses-b_scans.tsv",
            "filename\tage\nanat/sub-3_ses-b_T2w.nii.gz\t7\nanat/sub-3_ses-b_T1w.nii.gz\told\n",
            "sub-3_ses-b_scans.tsv:3: age = 'old'",
        ),
        ("participants.tsv", "participant_id\tsex\nsub-001\tF\nsub-3\tM\n", ""),
    ],
)
def test_the_place_of_an_error_is_the_line_of_the_table(
    tree: Path, file: str, content: str, message: str
) -> None:
    (tree / file).write_text(content)
    if not message:
        (tree / "sub-3/sub-3_sessions.tsv").write_text("session_id\tsex\nses-a\tM\nses-b\tF\n")
        message = "sub-3_sessions.tsv:3: sex = 'F': patient 'sub-3' has 'M' in "
    with pytest.raises(DataError, match=message) as caught:
        bids(tree)
    assert str(caught.value).startswith(
        str(tree / ("sub-3/sub-3_sessions.tsv" if "sex" in message else file))
    )


def test_an_annex_clone_without_content_is_reported(tree: Path, tmp_path: Path) -> None:
    for file in sorted(tree.glob("sub-*/ses-*/anat/*.nii.gz")):
        file.unlink()
        file.symlink_to(f"../../../.git/annex/objects/x/SHA256E-s9--{file.name}")
    with pytest.raises(
        DataError, match=r"^12 files of the manifest are links to missing files, under .*bids: sub-001/"
    ) as e:
        prepare(
            "bids", tree, tmp_path / "out", fields={"derivative": "none"}, options=PrepareOptions(workers=1)
        )
    assert str(e.value).endswith(
        "; fetch the content with `datalad get .` in that folder, or raise max_bad_fraction"
    )
    first = tree / "sub-001/ses-a/anat/sub-001_ses-a_FLAIR.nii.gz"
    with pytest.raises(
        DataError,
        match=r"FLAIR\.nii\.gz: is a link to a missing file; fetch the content with `datalad get \.`",
    ):
        read_header(first)
    (tree / "participants.tsv").unlink()
    (tree / "participants.tsv").symlink_to(".git/annex/objects/y/MD5E-s9--x.tsv")
    with pytest.raises(DataError, match=r"participants\.tsv: is a link to a missing file; fetch the content"):
        bids(tree)


def test_an_annex_outside_the_root_and_pointer_files(tree: Path) -> None:
    first = tree / "sub-001/ses-a/anat/sub-001_ses-a_T1w.nii.gz"
    first.unlink()
    first.symlink_to("../../../../.git/annex/objects/x/SHA256E-s9--a.nii.gz")
    manifest = bids(tree)
    (missing,) = manifest.missing()
    assert manifest.describe_missing([missing, "other.nii.gz"]).endswith(
        "(1 of them are links to missing files: fetch the content with `datalad get .` in that folder)"
    )
    first.unlink()
    first.write_text("/annex/objects/SHA256E-s9--a.nii.gz\n")
    with pytest.raises(DataError, match="is a pointer of git-annex, not the file itself; run `datalad get"):
        read_header(first)


def test_only_links_out_of_the_root_are_refused(tree: Path, tmp_path: Path) -> None:
    first = tree / "sub-001/ses-a/anat/sub-001_ses-a_T1w.nii.gz"
    manifest = bids(tree)
    (tree / "sub-001/ses-c").symlink_to(tree / "sub-001/ses-a")
    assert manifest.locate("sub-001/ses-c/anat/" + first.name).exists()
    (tree / "sub-001/ses-c").unlink()
    (tree / "sub-3/ses-a").rename(tmp_path / "elsewhere")
    (tree / "sub-3/ses-a").symlink_to(tmp_path / "elsewhere")
    first.rename(tmp_path / "alone.nii.gz")
    first.symlink_to(tmp_path / "alone.nii.gz")
    manifest = bids(tree)
    for path in ("sub-3/ses-a/anat/sub-3_ses-a_T1w.nii.gz", str(first.relative_to(tree))):
        with pytest.raises(DataError, match="is a link out of the root"):
            manifest.locate(path)


def calls_to_index(root: Path) -> int:
    """The number of function calls, including built-ins, for indexing and the check for missing files."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        missing = bids(root).missing()
    finally:
        sys.setprofile(None)
    assert missing == []
    return calls


def test_indexing_is_linear_in_the_number_of_scans(tmp_path: Path) -> None:
    made = {num: tmp_path / str(num) for num in (4, 100, 400)}
    for num, root in made.items():
        make_tree(root, num)
    _, few, many = (calls_to_index(root) for root in made.values())  # the first also imports
    assert many < 6 * few, "linear: four times the scans take four times the work"
    assert (many - few) / 300 < 600, "at most 600 calls per scan"


@pytest.mark.slow
def test_twenty_thousand_scans_are_indexed_in_seconds(tmp_path: Path) -> None:
    make_tree(tmp_path / "raw", 20_000)
    start = time.process_time()
    table = bids(tmp_path / "raw").table
    assert time.process_time() - start < 60
    assert (
        len(table) == 20_000
        and table["patient"].nunique() == 5_000
        and set(table["session_days"]) == {"0", "365"}
    )


def test_modalities_can_be_chosen(tree: Path) -> None:
    assert set(bids(tree, modalities=("FLAIR",)).table["modality"]) == {"FLAIR"}
    with pytest.raises(DataError, match=r"no image to read.*T1w"):
        bids(tree, modalities=("T2w",))


def test_a_file_of_one_subject_or_session_in_a_folder_of_another_is_refused(
    tree: Path, write_nifti: Write
) -> None:
    for path, message in (
        ("sub-001/ses-a/anat/sub-3_ses-a_T2w", "sub-3 in the folder sub-001"),
        ("sub-001/ses-a/anat/sub-001_ses-b_T2w", "ses-b in the folder ses-a"),
        ("derivatives/hand/sub-001/ses-a/anat/sub-3_ses-a_T2w_dseg", "sub-3 in the folder sub-001"),
    ):
        file = write_nifti(f"bids/{path}.nii.gz", np.zeros((4, 4, 4), np.uint8))
        with pytest.raises(DataError, match=f"{path}.nii.gz: {message}; rename the file"):
            bids(tree)
        file.unlink()
    write_nifti("bids/sub-001/ses-a/anat/sub-001_T2w.nii.gz", np.zeros((4, 4, 4), np.uint8))
    write_nifti("bids/sub-001/ses-b/anat/sub-001_T2w.nii.gz", np.zeros((4, 4, 4), np.uint8))
    table = bids(tree).table
    assert table[table["modality"] == "T2w"]["session"].tolist() == ["a", "b"], (
        "a name without a session takes that of the folder"
    )


def test_blanks_in_a_table_are_stripped(tree: Path) -> None:
    (tree / "participants.tsv").write_text("participant_id \tage\nsub-001 \t40\n NA\t41\nsub-3\t 42\n")
    manifest = bids(tree)
    assert set(manifest.table["age"]) == {"40", "41", "42"} and not any(
        "participants.tsv" in note for note in manifest.notes
    )


def test_other_images_are_skipped_unless_requested(tree: Path, write_nifti: Write) -> None:
    zeros = np.zeros((4, 4, 4), np.uint8)
    left_out = (
        "fmap/sub-3_magnitude1",
        "fmap/sub-3_TB1map",
        "anat/sub-3_defacemask",
        "perf/sub-3_m0scan",
        "anat/sub-3_part-phase_T1w",
    )
    strays = ("T1w", "anat/sub3_T2w", "anat/deep/sub-3_T2w")
    for name in (*left_out, *strays, "anat/sub-3_part-mag_T1w"):
        write_nifti(f"bids/sub-3/{name}.nii.gz", zeros)
    (tree / "sub-3" / "anat" / "sub-3_T2w.nrrd").write_bytes(b"NRRD")
    manifest = bids(tree)
    assert len(manifest) == 13 and "sub-3_part-mag_T1w" in set(manifest.table["scan"])
    notes = " ".join(manifest.notes)
    for text in ("_magnitude1", "_TB1map", "_defacemask", "_m0scan", "_part-phase_T1w"):
        assert f"1 files *{text} are skipped" in notes
    assert "3 NIfTI files do not follow the BIDS names and folders and are skipped (sub-3/" in notes
    assert "1 files *.nrrd are not read; convert them to .nii.gz (sub-3/anat/sub-3_T2w.nrrd)" in notes
    assert bids(tree, modalities=("magnitude1",)).table["scan"].tolist() == ["sub-3_magnitude1"]


def test_columns_of_scans_tsv_are_metadata_of_images(tree: Path) -> None:
    for name in ("sub-3/ses-a/sub-3_ses-a_scans.tsv", "sub-3/ses-b/sub-3_ses-b_scans.tsv"):
        stem = name.rpartition("/")[2].removesuffix("_scans.tsv")
        day = "2001-03-01" if "ses-a" in stem else "2001-03-11T10:00:00"
        rows = f"anat/{stem}_T1w.nii.gz\t{day}\tgood\nanat/{stem}_T2w.nii.gz\tnoon\tbad\n"
        (tree / name).write_text(f"filename\tacq_time\tquality\n{rows}")
    manifest = bids(tree)
    table = manifest.table.set_index("scan")
    assert (
        table.loc["sub-3_ses-a_T1w", "quality"] == "good" and table.loc["sub-3_ses-a_FLAIR", "quality"] == ""
    )
    assert table.loc["sub-3_ses-b_T1w", "session_days"] == "3" and "acq_time" not in table, (
        "the table of sessions takes precedence"
    )
    assert "2 files of ..._scans.tsv are missing" in " ".join(
        manifest.notes
    ) and "'noon' of sub-3/ses-a/anat" in " ".join(manifest.notes)
    assert f"in {tree}/sub-3/ses-a/sub-3_ses-a_scans.tsv:3" in " ".join(manifest.notes)
    (tree / "sub-3/sub-3_sessions.tsv").unlink()
    assert bids(tree).table.set_index("scan").loc[
        ["sub-3_ses-a_FLAIR", "sub-3_ses-b_T1w"], "session_days"
    ].tolist() == ["0", "10"]


def test_sidecars_are_inherited_by_the_folders_below(tree: Path) -> None:
    subject = tree / "sub-001"
    (tree / "T1w.json").write_text('{"Manufacturer": "A", "MagneticFieldStrength": 3, "EchoTime": 0.00250}')
    (subject / "sub-001_T1w.json").write_text('{"Manufacturer": "B", "ImageType": ["ORIGINAL", "M"]}')
    (subject / "ses-b/anat/sub-001_ses-b_T1w.json").write_text(
        '{"EchoTime": null, "MagneticFieldStrength": 7}'
    )
    (tree / "sub-3/ses-a/anat/sub-3_ses-a_T1w.json").write_text("{")
    manifest = bids(tree)
    table = manifest.table.set_index("scan")
    known = ["Manufacturer", "MagneticFieldStrength", "EchoTime"]
    assert table.loc["sub-001_ses-a_T1w", known].tolist() == ["B", "3", "0.00250"], (
        "numbers as they are written"
    )
    assert table.loc["sub-001_ses-b_T1w", known].tolist() == ["B", "7", ""]
    assert table.loc["sub-3_ses-a_T1w", known].tolist() == ["A", "3", "0.00250"] and "ImageType" not in table
    assert table.loc["sub-001_ses-a_FLAIR", known].tolist() == ["", "", ""]
    assert any(
        "1 sidecars cannot be read as JSON" in note and "sub-3_ses-a_T1w.json" in note
        for note in manifest.notes
    )
    assert set(bids(tree, sidecar=("ImageType",)).table["ImageType"]) == {"ORIGINAL+M", ""}
    assert not set(known) & set(bids(tree, sidecar=()).table)


@pytest.fixture
def derived(tmp_path: Path, write_nifti: Write) -> Path:
    """Two subjects with T1w, one with FLAIR; label maps as from fMRIPrep and lesion segmentation."""
    zeros = np.zeros((4, 4, 4), np.uint8)
    for name in ("sub-1/anat/sub-1_T1w", "sub-2/anat/sub-2_T1w", "sub-2/anat/sub-2_FLAIR"):
        write_nifti(f"derived/{name}.nii.gz", zeros)
    for name in ("dseg", "desc-aseg_dseg", "desc-brain_mask", "space-MNI152_dseg"):
        write_nifti(f"derived/derivatives/fmriprep/sub-1/anat/sub-1_{name}.nii.gz", zeros)
    for name in ("space-FLAIR_label-lesion_mask", "label-lesion_mask"):
        write_nifti(f"derived/derivatives/lesions/sub-2/anat/sub-2_{name}.nii.gz", zeros)
    (tmp_path / "derived/derivatives/fmriprep/desc-aseg_dseg.tsv").write_text("index\tname\n3\tcortex\n")
    (tmp_path / "derived/derivatives/fmriprep/desc-aparc_dseg.tsv").write_text("index\tname\n4\tgyrus\n")
    return tmp_path / "derived"


def labels(root: Path, **fields: Any) -> dict[str, str]:
    table = bids(root, **fields).table
    return {
        scan: Path(label).name.removesuffix(".nii.gz")
        for scan, label in zip(table["scan"], table["label"], strict=True)
        if label
    }


def test_one_of_several_label_maps_is_chosen_by_its_name(derived: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"sub-1_T1w.*3 label maps in fmriprep: \[desc-aseg, dseg\], \[desc-brain, mask\], \[dseg\]; "
        "choose one",
    ):
        bids(derived, derivative="fmriprep")
    assert labels(derived, derivative="fmriprep", label=("dseg",)) == {"sub-1_T1w": "sub-1_dseg"}
    assert labels(derived, derivative="fmriprep", label=("desc-brain", "mask")) == {
        "sub-1_T1w": "sub-1_desc-brain_mask"
    }
    assert labels(derived, label=("desc-aseg",)) == {"sub-1_T1w": "sub-1_desc-aseg_dseg"}, (
        "the only folder that has one"
    )
    assert labels(derived, derivative="none") == {}
    with pytest.raises(DataError, match=r"no label map has \[desc-x\]; found: \[desc-aseg, dseg\]"):
        bids(derived, derivative="fmriprep", label=("desc-x",))
    with pytest.raises(ConfigError, match="'acq-x' does not distinguish label maps"):
        bids(derived, label=("acq-x",))


def test_class_names_come_from_the_table_of_the_used_label_maps(derived: Path) -> None:
    assert bids(derived, label=("desc-aseg",)).label_names == {0: "background", 3: "cortex"}
    manifest = bids(derived, derivative="fmriprep", label=("dseg",))
    assert manifest.label_names == {} and any("classes have no names" in note for note in manifest.notes)
    assert bids(derived, derivative="fmriprep", label=("desc-brain", "mask")).label_names == {}


def test_a_label_map_belongs_to_the_image_in_the_same_space(derived: Path) -> None:
    manifest = bids(derived, derivative="lesions")
    assert labels(derived, derivative="lesions") == {"sub-2_FLAIR": "sub-2_space-FLAIR_label-lesion_mask"}
    assert any(
        "1 label maps of lesions may belong to any of FLAIR, T1w; choose with label_of" in n
        for n in manifest.notes
    )
    assert labels(derived, derivative="lesions", label_of=("T1w",)) == {
        "sub-2_FLAIR": "sub-2_space-FLAIR_label-lesion_mask",
        "sub-2_T1w": "sub-2_label-lesion_mask",
    }
    notes = bids(derived, derivative="fmriprep", label=("dseg",)).notes
    assert any("1 label maps of fmriprep are in another space, MNI152" in note for note in notes)


def test_one_of_several_derivatives_must_be_chosen(tree: Path, write_nifti: Write) -> None:
    write_nifti(
        "bids/derivatives/net/sub-001/anat/sub-001_ses-a_T1w_dseg.nii.gz", np.zeros((10, 9, 8), np.uint8)
    )
    with pytest.raises(DataError, match="labels are in hand, net; choose one"):
        bids(tree)
    assert (bids(tree, derivative="net").table["label"] != "").sum() == 1
    with pytest.raises(DataError, match="found in: hand, net"):
        bids(tree, derivative="other")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("participants.tsv", "id\tage\n1\t2\n", "participant_id is missing"),
        ("participants.tsv", "participant_id\nsub-3\n3\n", "sub-3 has two rows"),
        (
            "sub-3/sub-3_sessions.tsv",
            "session_id\tacq_time\nses-a\tspring\n",
            "sub-3_sessions.tsv:2: acq_time = 'spring': is not a date",
        ),
        ("derivatives/hand/dseg.tsv", "index\tname\nx\tlesion\n", "an integer is needed"),
    ],
)
def test_an_invalid_table_is_refused_in_one_line(tree: Path, file: str, content: str, message: str) -> None:
    (tree / file).write_text(content)
    with pytest.raises(DataError, match=message) as error:
        bids(tree)
    assert "\n" not in str(error.value) and file.split("/")[-1] in str(error.value)


def test_a_folder_without_subjects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder sub-"):
        bids(tmp_path)


def test_real_brains_and_their_regions_stay_aligned(real: Path, tmp_path: Path) -> None:
    """Files have axes P, S, R; after preparation, labels are in the brain and near the centre."""
    root = tmp_path / "two"
    for subject in ("sub-IXI443", "sub-IXI334"):
        for part in ("", "derivatives/dlmuse/"):
            (root / part).mkdir(parents=True, exist_ok=True)
            (root / part / subject).symlink_to(real / "ixi40" / part / subject)
    (root / "participants.tsv").symlink_to(real / "ixi40" / "participants.tsv")
    options = PrepareOptions(workers=1, test_fraction=0.5)
    prepare("bids", root, tmp_path / "out", fields={"allow_outside": True}, options=options)
    store = Store.open(tmp_path / "out")
    assert (
        set(store.collection.table["patient"]) == {"sub-IXI443", "sub-IXI334"}
        and "age" in store.collection.columns
    )
    for scan in range(2):
        image, label = store.read_volume(scan)[0], store.read_label(scan)
        assert image.shape == label.shape and (label > 0).mean() > 0.05
        assert image[label > 0].mean() > image[label == 0].mean() + 0.5, "regions are in the brain"
        box = np.array(store.scans[scan]["body"]["box"])
        middle = np.argwhere(label > 0).mean(0)
        assert (middle > box[0]).all() and (middle < box[1]).all()
    assert json.loads((tmp_path / "out" / "split.json").read_text())["test"]


def test_real_visits_have_their_days(real: Path) -> None:
    manifest = bids(real / "ms_longitudinal")
    days = manifest.table.groupby("patient")["session_days"].agg(lambda values: max(int(v) for v in values))
    assert len(manifest) == 23 and sorted(days) == [0, 81, 203, 228, 671]  # one patient has a single visit
    assert set(manifest.table["modality"]) == {"FLAIR", "T1w", "T2w"}
