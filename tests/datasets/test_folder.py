from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medcl3d.core.errors import ConfigError, DataError
from medcl3d.datasets.sources.folder import folder
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.prepare import prepare
from medcl3d.store.store import Store

RAMP = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)


@pytest.fixture
def tree(tmp_path: Path, write_nifti: Callable[..., Path]) -> Path:
    """Two patients, two sessions, two modalities; label maps of T1 only, one of them without an image."""
    for patient in ("001", "b"):
        for session in ("1", "2"):
            for modality in ("T1", "FLAIR"):
                write_nifti(f"tree/{patient}/{session}_{modality}.nii.gz", RAMP)
            write_nifti(f"tree/{patient}/{session}_T1_seg.nii.gz", (RAMP > 50).astype(np.uint8))
    write_nifti("tree/b/3_T1_seg.nii.gz", RAMP)
    write_nifti("tree/notes/other.nii.gz", RAMP)
    (tmp_path / "tree" / "read.me").write_text("text")
    (tmp_path / "tree" / "loop").symlink_to(tmp_path / "tree")
    return tmp_path / "tree"


def test_paths_become_columns(tree: Path) -> None:
    manifest = folder(
        tree,
        pattern="{patient}/{session}_{modality}.nii.gz",
        label="{patient}/{session}_{modality}_seg.nii.gz",
    )
    table = manifest.table.set_index("scan")
    assert len(table) == 8 and set(table["patient"]) == {"001", "b"} and set(table["session"]) == {"1", "2"}
    assert table.loc["001_2_T1", ["patient", "session", "modality", "label"]].tolist() == [
        "001",
        "2",
        "T1",
        "001/2_T1_seg.nii.gz",
    ]
    assert table.loc["001_2_FLAIR", "label"] == ""
    notes = " ".join(manifest.notes)
    assert "1 NIfTI files match no pattern (notes/other.nii.gz)" in notes
    assert "1 label maps have no image (b/3_T1_seg.nii.gz)" in notes


def test_a_label_of_a_session_and_repeated_names_in_a_pattern(tmp_path: Path, write_nifti) -> None:
    for path in ("p1/p1_v1/a.nii", "p1/p1_v1/b.nii", "p1/p1_v1/mask/m.nii", "p1/p2_v1/a.nii"):
        write_nifti(path, RAMP)
    manifest = folder(
        tmp_path,
        pattern="{patient}/{patient}_{session}/{modality}.nii",
        label="{patient}/{patient}_{session}/mask/*.nii",
    )
    assert manifest.table["label"].tolist() == ["p1/p1_v1/mask/m.nii"] * 2
    assert manifest.table["path"].tolist() == ["p1/p1_v1/a.nii", "p1/p1_v1/b.nii"]
    assert len(folder(tmp_path, pattern="**/{modality}.nii").table) == 4


def test_scans_of_other_formats_are_counted(tree: Path) -> None:
    (tree / "001" / "1_T1.mha").write_bytes(b"x")
    manifest = folder(tree, pattern="{patient}/1_T1.nii.gz")
    assert "1 files *.mha are not read; convert them to .nii.gz (001/1_T1.mha)" in manifest.notes
    with pytest.raises(
        DataError, match=r"no file matches.*14 NIfTI files match no pattern \(.*1 files \*\.mha are not read"
    ):
        folder(tree, pattern="{patient}.nii.gz")


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"pattern": "{patient}/{session}.nii"}, DataError, "no file matches"),
        ({"pattern": "images/*.nii.gz"}, ConfigError, "has no name in braces"),
        ({"pattern": "/data/{patient}.nii.gz"}, ConfigError, "leaves the root"),
        ({"pattern": "{patient}/../{session}.nii.gz"}, ConfigError, "leaves the root"),
        ({"pattern": "{the patient}/x.nii.gz"}, ConfigError, "a name in braces"),
        ({"pattern": "{path}.nii.gz"}, ConfigError, r"\{path\} is a column of paths"),
        (
            {"pattern": "{patient}/1_{modality}.nii.gz", "label": "{visit}.nii.gz"},
            ConfigError,
            r"\{visit\} is not in pattern",
        ),
        (
            {"pattern": "{patient}/{session}_{modality}.nii.gz", "label": "{patient}/*_seg.nii.gz"},
            DataError,
            "of the same images",
        ),
        ({"pattern": "{patient}/{session}_{modality}.nii.gz"}, DataError, "in two ways"),
        (
            {"pattern": "{patient}/{session}_T1.nii.gz", "label": "lables/{patient}.nii.gz"},
            DataError,
            "no file matches label = 'lables/.*; 10 NIfTI",
        ),
        (
            {"pattern": "{patient}/1_T1.nii.gz", "label": "{patient}/1_T1.nii.gz"},
            ConfigError,
            "is also the pattern of the images",
        ),
        (
            {"pattern": "{subject}/{session}_T1.nii.gz"},
            ConfigError,
            r"\{subject\}: may be the patient id.*rename subject to patient",
        ),
        ({"pattern": "{Patient}/{session}_T1.nii.gz"}, ConfigError, "rename Patient to patient"),
    ],
)
def test_invalid_patterns_are_refused(tree: Path, fields: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        folder(tree, **fields)
    assert "\n" not in str(caught.value)


def test_real_scans_by_their_names(real: Path, tmp_path: Path) -> None:
    """Two phases of each heart: file names have the patient and the phase, another folder has the labels."""
    for kind in ("images", "labels"):
        (tmp_path / "raw" / kind).mkdir(parents=True)
        for patient in ("SC-HYP-01", "SC-N-07"):
            for phase in ("ED", "ES"):
                name = f"{patient}_{phase}.nii.gz"
                (tmp_path / "raw" / kind / name).symlink_to(real / "sunnybrook" / kind / name)
    fields = {
        "pattern": "images/{patient}_{session}.nii.gz",
        "label": "labels/{patient}_{session}.nii.gz",
        "allow_outside": True,
    }
    prepare(
        "folder",
        tmp_path / "raw",
        tmp_path / "out",
        fields=fields,
        options=PrepareOptions(workers=1, test_fraction=0.5),
    )
    store = Store.open(tmp_path / "out")
    assert sorted(set(store.collection.table["patient"])) == ["SC-HYP-01", "SC-N-07"]
    assert len(store) == 4 and all(
        store.has_label(scan) and store.read_label(scan).any() for scan in range(4)
    )


def test_links_written_by_prepare_are_not_read_as_scans(
    tmp_path: Path, write_nifti: Callable[..., Path]
) -> None:
    for number in range(4):
        write_nifti(f"mine/p{number}/T1.nii.gz", RAMP + number)
    options = PrepareOptions(workers=1, hash_ids=True)
    for num_existing in (0, 4):
        found = prepare(
            "folder",
            tmp_path / "mine",
            tmp_path / "mine/out",
            fields={"pattern": "**/{patient}/*.nii.gz"},
            options=options,
        )
        assert (found.num_ok, found.num_unchanged) == (4, num_existing)


@pytest.mark.parametrize(
    ("paths", "proposed"),
    [
        (
            ["P {n}/scan.nii.gz", "P {n}/Maske.nii.gz"],
            "'pattern={patient}/scan.nii.gz' 'label={patient}/Maske.nii.gz' matches 3 scans and 3 label maps "
            "of 6 NIfTI files: P 1/scan.nii.gz as patient 'P 1'; ",
        ),
        (
            ["img/S_{n}_CT.nii.gz", "img/S_{n}_T1.nii.gz", "seg/S_{n}_CT.nii.gz"],
            "'pattern=img/S_{patient}_{modality}.nii.gz' 'label=seg/S_{patient}_{modality}.nii.gz' matches "
            "6 scans and 3 label maps of 9 NIfTI files: img/S_1_CT.nii.gz as patient '1', modality 'CT'; ",
        ),
        (["a.nii.gz"], "'pattern={patient}.nii.gz' matches 1 scans"),
        (["readme.txt"], "write {patient} in place of the patient's id"),
    ],
)
def test_without_a_pattern_the_error_proposes_one(tmp_path: Path, write_nifti, paths, proposed) -> None:
    for path in paths:
        for number in range(1, 4 if "{n}" in path else 2):
            name = tmp_path / path.format(n=number)
            name.parent.mkdir(parents=True, exist_ok=True)
            name.touch()
    with pytest.raises(ConfigError, match="pattern: is missing") as error:
        folder(tmp_path)
    assert error.value.remedy.startswith(proposed)
    assert f"`medcl3d init {tmp_path}`" in error.value.remedy


def test_a_proposed_pattern_reads_what_it_says(tmp_path: Path, write_nifti) -> None:
    for patient in ("001", "b"):
        for path in ("ses-1/T1.nii.gz", "ses-2/T1.nii.gz", "ses-2/T1_seg.nii.gz"):
            write_nifti(f"{patient}/{path}", RAMP)
    with pytest.raises(ConfigError) as error:
        folder(tmp_path)
    words = dict(word.split("=", 1) for word in re.findall(r"'((?:pattern|label)=.*?)'", error.value.remedy))
    table = folder(tmp_path, **words).table
    assert "matches 4 scans and 2 label maps of 6 NIfTI files" in error.value.remedy
    assert table["patient"].tolist() == ["001", "001", "b", "b"]
    assert table["session"].tolist() == ["ses-1", "ses-2"] * 2 and (table["label"] != "").sum() == 2


def test_a_folder_of_label_maps_is_not_a_patient(tmp_path: Path, write_nifti) -> None:
    for path in ("p1/a.nii.gz", "Masken/p1.nii.gz"):
        write_nifti(path, RAMP)
    with pytest.raises(DataError, match="patient = 'Masken': the name means label maps, not a patient"):
        folder(tmp_path, pattern="{patient}/*.nii.gz")
    assert len(folder(tmp_path, pattern="{patient}/a.nii.gz", label="Masken/{patient}.nii.gz")) == 1
