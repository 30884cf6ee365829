from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medcl3d.benchmarks.collection import make_tree
from medcl3d.data.bids.tables import sessions
from medcl3d.data.options import PrepareOptions
from medcl3d.data.prepare import prepare
from medcl3d.data.sources.bids import bids
from medcl3d.data.store import Store
from medcl3d.errors import ConfigError, DataError

Write = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path, write_nifti: Write) -> Path:
    """Two subjects with two sessions of two modalities, one without a row, one row without a folder, labels of T1w."""
    rng, root = np.random.default_rng(0), tmp_path / "bids"
    for subject in ("001", "NA", "3"):
        for session in ("a", "b"):
            stem = f"sub-{subject}_ses-{session}"
            for suffix in ("T1w", "FLAIR"):
                image = rng.normal(100, 20, (10, 9, 8)).astype(np.float32)
                write_nifti(f"bids/sub-{subject}/ses-{session}/anat/{stem}_{suffix}.nii.gz", image)
            label = rng.integers(0, 2, (10, 9, 8)).astype(np.uint8)
            write_nifti(f"bids/derivatives/hand/sub-{subject}/ses-{session}/anat/{stem}_space-orig_desc-a_T1w_dseg.nii.gz", label)
        sessions = root / f"sub-{subject}" / f"sub-{subject}_sessions.tsv"
        sessions.write_text("session_id\tacq_time\tscore\nses-a\t2001-02-27T23:00:00\t1\nses-b\t2001-03-02T01:00:00\t2\n")
    write_nifti("bids/sub-001/ses-a/func/sub-001_ses-a_task-rest_bold.nii.gz", np.zeros((4, 4, 4, 2), np.float32))
    (root / "participants.tsv").write_text("participant_id\tage\tsite\nsub-001\t40\tNA\nNA\tn/a\tX\nsub-9\t50\tX\n")
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
        "2",
        "2",
        "40",
        "NA",
    )
    assert row["label"] == "" and table.loc["sub-001_ses-b_T1w", "label"].endswith("sub-001_ses-b_space-orig_desc-a_T1w_dseg.nii.gz")
    assert table.loc["sub-NA_ses-a_T1w", "age"] == "n/a" and manifest.label_names == {0: "background", 1: "lesion"}
    assert table["frame"].is_unique
    notes = " ".join(manifest.notes)
    assert "1 files *_bold are not taken" in notes and "have no row" in notes and "sub-3" in notes and "have no folder (sub-9)" in notes


def test_days_are_whole_days_from_the_first_visit(tree: Path) -> None:
    """In any order, with and without a zone, and where a date is missing."""
    times = {"a": "2001-02-27T23:00:00Z", "b": "2000-12-24", "c": "n/a", "d": "2001-02-28T23:00:00.5+01:00"}
    rows = "".join(f"ses-{name}\t{time}\n" for name, time in times.items())
    (tree / "sub-3" / "sub-3_sessions.tsv").write_text(f"session_id\tacq_time\n{rows}")
    assert {name: row["session_days"] for name, row in sessions(tree / "sub-3" / "sub-3_sessions.tsv").items()} == {
        "a": "65",
        "b": "0",
        "c": "",
        "d": "66",
    }
    (tree / "sub-3" / "sub-3_sessions.tsv").write_text("session_id\tdays\tacq_time\nses-a\t7\tspring\n")
    assert sessions(tree / "sub-3" / "sub-3_sessions.tsv") == {"a": {"session_days": "7"}}


def test_a_link_out_of_the_root_is_refused_and_one_inside_is_not(tree: Path, tmp_path: Path) -> None:
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
    """How many functions, Python's own among them, indexing calls and checking for missing files call."""
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


def test_indexing_grows_with_the_scans_alone(tmp_path: Path) -> None:
    made = {num: tmp_path / str(num) for num in (4, 100, 400)}
    for num, root in made.items():
        make_tree(root, num)
    _, few, many = (calls_to_index(root) for root in made.values())  # the first also imports
    assert many < 6 * few, "four times the scans are four times the work; all with all would be sixteen times"
    assert (many - few) / 300 < 600, "a scan costs some hundred calls"


@pytest.mark.slow
def test_twenty_thousand_scans_are_indexed_in_seconds(tmp_path: Path) -> None:
    make_tree(tmp_path / "raw", 20_000)
    start = time.process_time()
    table = bids(tmp_path / "raw").table
    assert time.process_time() - start < 60
    assert len(table) == 20_000 and table["patient"].nunique() == 5_000 and set(table["session_days"]) == {"0", "365"}


def test_modalities_can_be_chosen(tree: Path) -> None:
    assert set(bids(tree, modalities=("FLAIR",)).table["modality"]) == {"FLAIR"}
    with pytest.raises(DataError, match=r"no image is left.*T1w"):
        bids(tree, modalities=("T2w",))


def test_a_file_of_one_subject_or_session_in_a_folder_of_another_is_refused(tree: Path, write_nifti: Write) -> None:
    for path, message in (
        ("sub-001/ses-a/anat/sub-3_ses-a_T2w", "sub-3 in the folder sub-001"),
        ("sub-001/ses-a/anat/sub-001_ses-b_T2w", "ses-b in the folder ses-a"),
        ("derivatives/hand/sub-001/ses-a/anat/sub-3_ses-a_T2w_dseg", "sub-3 in the folder sub-001"),
    ):
        file = write_nifti(f"bids/{path}.nii.gz", np.zeros((4, 4, 4), np.uint8))
        with pytest.raises(DataError, match=f"{path}.nii.gz: {message}: whose is it"):
            bids(tree)
        file.unlink()
    write_nifti("bids/sub-001/ses-a/anat/sub-001_T2w.nii.gz", np.zeros((4, 4, 4), np.uint8))
    write_nifti("bids/sub-001/ses-b/anat/sub-001_T2w.nii.gz", np.zeros((4, 4, 4), np.uint8))
    table = bids(tree).table
    assert table[table["modality"] == "T2w"]["session"].tolist() == ["a", "b"], "where a name says nothing, the folder does"


def test_blanks_in_a_table_lose_nobody(tree: Path) -> None:
    (tree / "participants.tsv").write_text("participant_id \tage\nsub-001 \t40\n NA\t41\nsub-3\t 42\n")
    manifest = bids(tree)
    assert set(manifest.table["age"]) == {"40", "41", "42"} and not any("participants.tsv" in note for note in manifest.notes)


def test_what_is_no_image_is_left_out_unless_named(tree: Path, write_nifti: Write) -> None:
    zeros = np.zeros((4, 4, 4), np.uint8)
    left_out = ("fmap/sub-3_magnitude1", "fmap/sub-3_TB1map", "anat/sub-3_defacemask", "perf/sub-3_m0scan", "anat/sub-3_part-phase_T1w")
    strays = ("T1w", "anat/sub3_T2w", "anat/deep/sub-3_T2w")
    for name in (*left_out, *strays, "anat/sub-3_part-mag_T1w"):
        write_nifti(f"bids/sub-3/{name}.nii.gz", zeros)
    (tree / "sub-3" / "anat" / "sub-3_T2w.nrrd").write_bytes(b"NRRD")
    manifest = bids(tree)
    assert len(manifest) == 13 and "sub-3_part-mag_T1w" in set(manifest.table["scan"])
    notes = " ".join(manifest.notes)
    for text in ("_magnitude1", "_TB1map", "_defacemask", "_m0scan", "_part-phase_T1w"):
        assert f"1 files *{text} are not taken" in notes
    assert "3 NIfTI files are not named or placed as BIDS has it and not taken (sub-3/" in notes
    assert "1 files *.nrrd are not read; convert them to .nii.gz (sub-3/anat/sub-3_T2w.nrrd)" in notes
    assert bids(tree, modalities=("magnitude1",)).table["scan"].tolist() == ["sub-3_magnitude1"]


def test_scans_tsv_says_what_is_known_of_each_image(tree: Path) -> None:
    for name in ("sub-3/ses-a/sub-3_ses-a_scans.tsv", "sub-3/ses-b/sub-3_ses-b_scans.tsv"):
        stem = name.rpartition("/")[2].removesuffix("_scans.tsv")
        day = "2001-03-01" if "ses-a" in stem else "2001-03-11T10:00:00"
        rows = f"anat/{stem}_T1w.nii.gz\t{day}\tgood\nanat/{stem}_T2w.nii.gz\tnoon\tbad\n"
        (tree / name).write_text(f"filename\tacq_time\tquality\n{rows}")
    manifest = bids(tree)
    table = manifest.table.set_index("scan")
    assert table.loc["sub-3_ses-a_T1w", "quality"] == "good" and table.loc["sub-3_ses-a_FLAIR", "quality"] == ""
    assert table.loc["sub-3_ses-b_T1w", "session_days"] == "2" and "acq_time" not in table, "the table of sessions goes first"
    assert "2 files of ..._scans.tsv are not there" in " ".join(manifest.notes) and "'noon' of sub-3/ses-a/anat" in " ".join(manifest.notes)
    (tree / "sub-3/sub-3_sessions.tsv").unlink()
    assert bids(tree).table.set_index("scan").loc[["sub-3_ses-a_FLAIR", "sub-3_ses-b_T1w"], "session_days"].tolist() == ["0", "10"]


def test_sidecars_pass_on_to_what_lies_below(tree: Path) -> None:
    subject = tree / "sub-001"
    (tree / "T1w.json").write_text('{"Manufacturer": "A", "MagneticFieldStrength": 3, "EchoTime": 0.00250}')
    (subject / "sub-001_T1w.json").write_text('{"Manufacturer": "B", "ImageType": ["ORIGINAL", "M"]}')
    (subject / "ses-b/anat/sub-001_ses-b_T1w.json").write_text('{"EchoTime": null, "MagneticFieldStrength": 7}')
    (tree / "sub-3/ses-a/anat/sub-3_ses-a_T1w.json").write_text("{")
    manifest = bids(tree)
    table = manifest.table.set_index("scan")
    known = ["Manufacturer", "MagneticFieldStrength", "EchoTime"]
    assert table.loc["sub-001_ses-a_T1w", known].tolist() == ["B", "3", "0.00250"], "numbers as they are written"
    assert table.loc["sub-001_ses-b_T1w", known].tolist() == ["B", "7", ""]
    assert table.loc["sub-3_ses-a_T1w", known].tolist() == ["A", "3", "0.00250"] and "ImageType" not in table
    assert table.loc["sub-001_ses-a_FLAIR", known].tolist() == ["", "", ""]
    assert any("1 sidecars cannot be read as JSON" in note and "sub-3_ses-a_T1w.json" in note for note in manifest.notes)
    assert set(bids(tree, sidecar=("ImageType",)).table["ImageType"]) == {"ORIGINAL+M", ""}
    assert not set(known) & set(bids(tree, sidecar=()).table)


@pytest.fixture
def derived(tmp_path: Path, write_nifti: Write) -> Path:
    """Two subjects with T1w, one with FLAIR too; label maps as fMRIPrep and lesion segmentations have them."""
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
    return {scan: Path(label).name.removesuffix(".nii.gz") for scan, label in zip(table["scan"], table["label"], strict=True) if label}


def test_one_of_several_label_maps_is_chosen_by_its_name(derived: Path) -> None:
    with pytest.raises(
        DataError, match=r"sub-1_T1w.*3 label maps in fmriprep: \[desc-aseg, dseg\], \[desc-brain, mask\], \[dseg\]; say which"
    ):
        bids(derived, derivative="fmriprep")
    assert labels(derived, derivative="fmriprep", label=("dseg",)) == {"sub-1_T1w": "sub-1_dseg"}
    assert labels(derived, derivative="fmriprep", label=("desc-brain", "mask")) == {"sub-1_T1w": "sub-1_desc-brain_mask"}
    assert labels(derived, label=("desc-aseg",)) == {"sub-1_T1w": "sub-1_desc-aseg_dseg"}, "the only folder that has one"
    assert labels(derived, derivative="none") == {}
    with pytest.raises(DataError, match=r"no label map has \[desc-x\]; there are \[desc-aseg, dseg\]"):
        bids(derived, derivative="fmriprep", label=("desc-x",))
    with pytest.raises(ConfigError, match="'acq-x' tells no label map from another"):
        bids(derived, label=("acq-x",))


def test_classes_are_named_by_the_table_of_the_label_maps_used(derived: Path) -> None:
    assert bids(derived, label=("desc-aseg",)).label_names == {0: "background", 3: "cortex"}
    manifest = bids(derived, derivative="fmriprep", label=("dseg",))
    assert manifest.label_names == {} and any("classes have no names" in note for note in manifest.notes)
    assert bids(derived, derivative="fmriprep", label=("desc-brain", "mask")).label_names == {}


def test_a_label_map_belongs_to_the_image_in_whose_space_it_lies(derived: Path) -> None:
    manifest = bids(derived, derivative="lesions")
    assert labels(derived, derivative="lesions") == {"sub-2_FLAIR": "sub-2_space-FLAIR_label-lesion_mask"}
    assert any("1 label maps of lesions do not say which of FLAIR, T1w they are of; say it with label_of" in n for n in manifest.notes)
    assert labels(derived, derivative="lesions", label_of=("T1w",)) == {
        "sub-2_FLAIR": "sub-2_space-FLAIR_label-lesion_mask",
        "sub-2_T1w": "sub-2_label-lesion_mask",
    }
    notes = bids(derived, derivative="fmriprep", label=("dseg",)).notes
    assert any("1 label maps of fmriprep lie in another space, MNI152" in note for note in notes)


def test_two_derivatives_have_to_be_told_apart(tree: Path, write_nifti: Write) -> None:
    write_nifti("bids/derivatives/net/sub-001/anat/sub-001_ses-a_T1w_dseg.nii.gz", np.zeros((10, 9, 8), np.uint8))
    with pytest.raises(DataError, match="labels lie in hand, net; say which"):
        bids(tree)
    assert (bids(tree, derivative="net").table["label"] != "").sum() == 1
    with pytest.raises(DataError, match="there are hand, net"):
        bids(tree, derivative="other")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("participants.tsv", "id\tage\n1\t2\n", "participant_id is missing"),
        ("participants.tsv", "participant_id\nsub-3\n3\n", "sub-3 stands there twice"),
        ("sub-3/sub-3_sessions.tsv", "session_id\tacq_time\nses-a\tspring\n", "sub-3_sessions.tsv:2: acq_time = 'spring': is no date"),
        ("derivatives/hand/dseg.tsv", "index\tname\nx\tlesion\n", "whole numbers"),
    ],
)
def test_one_line_for_a_bad_table(tree: Path, file: str, content: str, message: str) -> None:
    (tree / file).write_text(content)
    with pytest.raises(DataError, match=message) as error:
        bids(tree)
    assert "\n" not in str(error.value) and file.split("/")[-1] in str(error.value)


def test_a_folder_without_subjects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder sub-"):
        bids(tmp_path)


def test_real_brains_and_their_regions_stay_aligned(real: Path, tmp_path: Path) -> None:
    """Axes P, S, R on the disk: after preparing, ventricles are dark and lie in the middle, and labels with them."""
    root = tmp_path / "two"
    for subject in ("sub-IXI443", "sub-IXI334"):
        for part in ("", "derivatives/dlmuse/"):
            (root / part).mkdir(parents=True, exist_ok=True)
            (root / part / subject).symlink_to(real / "ixi40" / part / subject)
    (root / "participants.tsv").symlink_to(real / "ixi40" / "participants.tsv")
    options = PrepareOptions(workers=1, test_fraction=0.5)
    prepare("bids", root, tmp_path / "out", fields={"allow_outside": True}, options=options)
    store = Store.open(tmp_path / "out")
    assert set(store.collection.table["patient"]) == {"sub-IXI443", "sub-IXI334"} and "age" in store.collection.columns
    for scan in range(2):
        image, label = store.read_volume(scan)[0], store.read_label(scan)
        assert image.shape == label.shape and (label > 0).mean() > 0.05
        assert image[label > 0].mean() > image[label == 0].mean() + 0.5, "regions lie on the brain"
        box = np.array(store.scans[scan]["body"]["box"])
        middle = np.argwhere(label > 0).mean(0)
        assert (middle > box[0]).all() and (middle < box[1]).all()
    assert json.loads((tmp_path / "out" / "split.json").read_text())["test"]


def test_real_visits_carry_their_days(real: Path) -> None:
    manifest = bids(real / "ms_longitudinal")
    days = manifest.table.groupby("patient")["session_days"].agg(lambda values: max(int(v) for v in values))
    assert len(manifest) == 23 and sorted(days) == [0, 81, 203, 228, 671]  # of one, a single visit is there
    assert set(manifest.table["modality"]) == {"FLAIR", "T1w", "T2w"}
