"""Content hashes identify copies of a scan by file, values and stored voxels."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from medcl3d.core.errors import DataError
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.prepare import prepare
from medcl3d.quality.check import audit
from medcl3d.store.content_hashes import DIGITS, HASHES, contents, duplicate_groups, scans_with_content
from medcl3d.store.store import Store

ONE = PrepareOptions(workers=1)
AFFINE = np.array([[-1.0, 0, 0, 30], [0, -1, 0, 20], [0, 0, 2, -10], [0, 0, 0, 1]])


def write(
    path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE, text: str = "", level: int = 9
) -> None:
    image = nibabel.Nifti1Image(voxels, affine)
    image.header["descrip"] = text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=level, mtime=0))


def prepared(folder: Path, options: PrepareOptions = ONE) -> dict[str, Any]:
    """The description of the one scan of a folder."""
    (folder / "manifest.csv").write_text("scan,patient,path\na,p,a.nii.gz\n")
    prepare("csv", folder, folder / "out", options=options)
    found: dict[str, Any] = json.loads((folder / "out/store/a.json").read_text())
    return found


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 900, (9, 10, 11)).astype(np.int16)


def recompressed(path: Path, voxels: np.ndarray) -> None:
    write(path, voxels, level=1)


def anonymised(path: Path, voxels: np.ndarray) -> None:
    write(path, voxels, text="gone")


def of_another_type(path: Path, voxels: np.ndarray) -> None:
    write(path, voxels.astype(">f8"))


def reoriented(path: Path, voxels: np.ndarray) -> None:
    """Axes in another order and direction, with the corresponding affine."""
    image = nibabel.Nifti1Image(voxels, AFFINE)
    other = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(AFFINE), nibabel.orientations.axcodes2ornt("SPR")
    )
    moved = image.as_reoriented(other)
    write(path, np.asarray(moved.dataobj), moved.affine)


def moved_in_space(path: Path, voxels: np.ndarray) -> None:
    write(path, voxels, AFFINE + np.array([[0, 0, 0, 5.0], [0, 0, 0, -3.0], [0, 0, 0, 1.0], [0, 0, 0, 0]]))


COPIES: dict[str, tuple[Callable[[Path, np.ndarray], None], set[str]]] = {
    "recompressed": (recompressed, {"sha256", "voxels_sha256", "stored_sha256"}),
    "anonymised": (anonymised, {"voxels_sha256", "stored_sha256"}),
    "of another type": (of_another_type, {"voxels_sha256", "stored_sha256"}),
    "reoriented": (reoriented, {"voxels_sha256", "stored_sha256"}),
    "moved in space": (moved_in_space, {"voxels_sha256", "stored_sha256"}),
}


@pytest.mark.parametrize("name", COPIES)
def test_which_hash_survives_which_copy(name: str, voxels: np.ndarray, tmp_path: Path) -> None:
    change, same = COPIES[name]
    write(tmp_path / "one/a.nii.gz", voxels)
    change(tmp_path / "two/a.nii.gz", voxels)
    one, two = prepared(tmp_path / "one"), prepared(tmp_path / "two")
    assert {hash for hash in HASHES if one[hash] == two[hash]} == same
    otherwise = prepared(
        tmp_path / "two", PrepareOptions(workers=1, spacing_mm=(2, 2, 2), intensity="none", store_as="int16")
    )
    assert {hash for hash in HASHES if one[hash] == otherwise[hash]} == same - {"stored_sha256"}, (
        "by other options"
    )


def test_a_different_value_is_different_content(voxels: np.ndarray, tmp_path: Path) -> None:
    write(tmp_path / "one/a.nii.gz", voxels)
    voxels[4, 4, 4] += 1
    write(tmp_path / "two/a.nii.gz", voxels)
    # Mirrored without its affine: left and right are swapped.
    write(tmp_path / "three/a.nii.gz", voxels[::-1])
    found = [prepared(tmp_path / name) for name in ("one", "two", "three")]
    assert all(len({about[hash] for about in found}) == 3 for hash in HASHES)
    assert scans_with_content(found[1:], contents(found[:1])) == {}


def test_older_scans_are_identified_by_the_hashes_that_they_have() -> None:
    new = {"scan": "new", "sha256": "1" * 64, "voxels_sha256": "2" * 64, "stored_sha256": "3" * 64}
    old = {"scan": "old", "sha256": "4" * 64, "stored_sha256": "3" * 64}
    other = {"scan": "other", "sha256": "5" * 64, "stored_sha256": "6" * 64}
    assert contents([new, old]) == [
        " ".join(digit * DIGITS for digit in "123"),
        " ".join(digit * DIGITS for digit in "43"),
    ]
    assert scans_with_content([old, other], contents([new])) == {"old": "the same stored volume"}
    assert scans_with_content([new, other], contents([old])) == {"new": "the same stored volume"}
    assert scans_with_content([old, other], []) == {}
    assert duplicate_groups([new, other, old]) == [], (
        "a phantom in two scales may have the same stored voxels"
    )
    assert duplicate_groups([new, other, {**new, "scan": "twin"}]) == [("the same file", [0, 2])], (
        "reported once"
    )


def test_an_older_store_without_voxel_hashes_opens_and_is_not_prepared_again(
    cohort: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    prepare("csv", cohort, out, options=ONE)
    before = Store.open(out).fingerprint()
    for path in (out / "store").glob("*.json"):
        about = json.loads(path.read_text())
        assert len(about.pop("voxels_sha256")) == 64
        path.write_text(json.dumps(about))
    store = Store.open(out)
    assert store.fingerprint() == before and len(contents(store.scans)[0].split()) == 2
    assert prepare("csv", cohort, out, options=ONE).num_unchanged == 6


def test_one_volume_under_another_header_is_refused_on_two_sides(cohort: Path, tmp_path: Path) -> None:
    image = nibabel.load(cohort / "images/0.nii.gz")
    write(cohort / "images/4.nii.gz", np.asarray(image.dataobj), image.affine, text="anonymised")
    (cohort / "labels/4.nii.gz").write_bytes((cohort / "labels/0.nii.gz").read_bytes())
    table = (cohort / "manifest.csv").read_text().splitlines()
    for split, fault in ((("train",) * 6, ""), (("train",) * 4 + ("test",) * 2, "is in train and in test")):
        rows = [f"{table[0]},split", *(f"{row},{side}" for row, side in zip(table[1:], split, strict=True))]
        (cohort / "manifest.csv").write_text("\n".join(rows) + "\n")
        if fault:
            with pytest.raises(
                DataError, match=f"the same volume in another file {fault}: 000 of 000, 004 of 002"
            ):
                prepare("csv", cohort, tmp_path / "out", options=ONE)
        else:
            found = prepare("csv", cohort, tmp_path / "out", options=ONE)
            assert (
                "the same volume in another file under two patients: 000 of 000, 004 of 002" in found.warnings
            )
            said: list[str] = []
            audit(tmp_path / "out", say=said.append)
            assert "the same content: 000 of 000, 004 of 002" in said
