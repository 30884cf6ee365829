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
from medcl3d.data.options import PrepareOptions
from medcl3d.data.prepare import prepare
from medcl3d.data.sources.bids import _sessions, bids
from medcl3d.data.store import Store
from medcl3d.errors import DataError

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
    assert "1 files *_bold are not taken" in notes and "have no row" in notes and "sub-3" in notes and "have no folder: sub-9" in notes


def test_days_are_whole_days_from_the_first_visit(tree: Path) -> None:
    """In any order, with and without a zone, and where a date is missing."""
    times = {"a": "2001-02-27T23:00:00Z", "b": "2000-12-24", "c": "n/a", "d": "2001-02-28T23:00:00.5+01:00"}
    rows = "".join(f"ses-{name}\t{time}\n" for name, time in times.items())
    (tree / "sub-3" / "sub-3_sessions.tsv").write_text(f"session_id\tacq_time\n{rows}")
    assert {name: row["session_days"] for name, row in _sessions(tree / "sub-3").items()} == {"a": "65", "b": "0", "c": "", "d": "66"}
    (tree / "sub-3" / "sub-3_sessions.tsv").write_text("session_id\tdays\tacq_time\nses-a\t7\tspring\n")
    assert _sessions(tree / "sub-3") == {"a": {"session_days": "7"}}


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
        ("sub-3/sub-3_sessions.tsv", "session_id\tacq_time\nses-a\tspring\n", "acq_time 'spring' is no date"),
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
