from __future__ import annotations

import hashlib
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medcl3d.core.errors import ConfigError
from medcl3d.datasets.manifest import Manifest
from medcl3d.datasets.phantom import LABELS, Patient, simulate_scan
from medcl3d.datasets.sources import SOURCES
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.prepare import prepare
from medcl3d.store.store import Store

simulated = SOURCES.get("simulated")


def content(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return simulated(tmp_path_factory.mktemp("cohort"), num_patients=16, shape=(48, 48, 48), seed=3)


def load(manifest: Manifest, row: object, column: str) -> nibabel.Nifti1Image:
    return nibabel.as_closest_canonical(nibabel.load(manifest.locate(row[column])))  # type: ignore[index]


def volumes_mm3(manifest: Manifest, structure: int) -> np.ndarray:
    found = []
    for row in manifest.table.to_dict("records"):
        image = load(manifest, row, "label")
        found.append(
            (np.asarray(image.dataobj) == structure).sum() * abs(np.linalg.det(image.affine[:3, :3]))
        )
    return np.array(found)


def test_one_seed_gives_the_same_bytes_and_another_does_not(tmp_path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulated(tmp_path / name, num_patients=2, shape=(20, 20, 20), seed=seed)
    assert content(tmp_path / "a") == content(tmp_path / "b") != content(tmp_path / "c")


def test_an_existing_cohort_is_read_and_another_is_refused(tmp_path) -> None:
    made = simulated(tmp_path, num_patients=2, shape=(20, 20, 20))
    before = content(tmp_path)
    assert (
        simulated(tmp_path, num_patients=2, shape=(20, 20, 20)).table.equals(made.table)
        and content(tmp_path) == before
    )
    with pytest.raises(ConfigError, match="holds a cohort with"):
        simulated(tmp_path, num_patients=3, shape=(20, 20, 20))
    with pytest.raises(ConfigError, match="16 voxels"):
        simulated(tmp_path / "small", shape=(8, 20, 20))


def test_the_folder_of_a_cohort_is_reported_and_other_folders_are_refused(tmp_path) -> None:
    fields = {"num_patients": 2, "shape": (16, 16, 16)}
    assert (
        f"the cohort was simulated and written to {tmp_path / 'new'}"
        in simulated(tmp_path / "new", **fields).notes
    )
    assert (
        f"an existing cohort was read from {tmp_path / 'new'}" in simulated(tmp_path / "new", **fields).notes
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "scan.nii.gz").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"mine: contains scan\.nii\.gz, not a simulated cohort"):
        simulated(tmp_path / "mine", **fields)


def test_the_manifest_has_the_factors(cohort) -> None:
    table = cohort.table
    assert cohort.label_names == LABELS and len(LABELS) >= 5
    assert (
        set(table["modality"]) == {"T1", "T2"}
        and table["site"].nunique() == 3
        and set(table["sex"]) == {"F", "M"}
    )
    visits = table.groupby("patient")["session"].nunique()
    assert visits.min() == 1 and visits.max() == 2
    # The two modalities of a visit share a frame.
    assert (table.groupby("frame")["modality"].nunique() == 2).all()
    assert (table.groupby("patient")[["sex", "site", "class"]].nunique() == 1).all(axis=None)
    assert (table[table["session"] == "1"]["session_days"] == "0").all()


def test_age_correlates_with_the_ventricle_and_not_the_gland(cohort) -> None:
    first = (cohort.table["session"] == "1") & (cohort.table["modality"] == "T1")
    age = cohort.table["age"].astype(float)[first]
    assert np.corrcoef(age, volumes_mm3(cohort, 3)[first])[0, 1] > 0.85
    assert abs(np.corrcoef(age, volumes_mm3(cohort, 4)[first])[0, 1]) < 0.6


def test_the_ventricle_grows_over_time(cohort) -> None:
    table = cohort.table[cohort.table["modality"] == "T1"].assign(
        volume=volumes_mm3(cohort, 3)[cohort.table["modality"] == "T1"]
    )
    pairs = table.pivot(index="patient", columns="session", values="volume").dropna()
    assert len(pairs) >= 3 and (pairs["2"] > pairs["1"]).all()


def test_the_geometry_depends_on_the_scanner_and_both_modalities_align(cohort) -> None:
    codes = {"site1": "RAS", "site2": "LPS", "site3": "PSR"}
    shapes = set()
    for row in cohort.table.to_dict("records"):
        image = nibabel.load(cohort.locate(row["path"]))
        assert "".join(nibabel.aff2axcodes(image.affine)) == codes[row["site"]]
        shapes.add(image.shape)
    assert len(shapes) == 3  # one grid per scanner
    for _, pair in cohort.table.groupby("frame"):
        lobes = []
        for row in pair.to_dict("records"):
            image = load(cohort, row, "label")
            index = np.argwhere(np.isin(np.asarray(image.dataobj), [1, 2, 3])).mean(0)
            lobes.append(image.affine[:3, :3] @ index + image.affine[:3, 3])
        assert np.linalg.norm(lobes[0] - lobes[1]) < 1.5  # mm; the fields of view differ


def test_all_structures_exist_and_left_is_left(cohort) -> None:
    for row in cohort.table.to_dict("records"):
        image = load(cohort, row, "label")
        labels = np.asarray(image.dataobj)
        assert set(np.unique(labels)) == set(LABELS), row["scan"]
        left, right = (np.argwhere(labels == n).mean(0)[0] for n in (1, 2))
        assert left < right  # the first axis runs to the patient's right


def dice(truth: np.ndarray, guess: np.ndarray) -> float:
    return 2 * (truth & guess).sum() / max(truth.sum() + guess.sum(), 1)


def test_neither_grey_values_nor_positions_alone_give_the_segmentation(tmp_path) -> None:
    """The best guesses from a voxel's grey value and from its position both fail; every patient differs."""
    store = Store.open(_prepared(tmp_path))
    table = store.collection.table
    t1 = [i for i in range(len(store)) if table["modality"][i] == "T1" and table["session"][i] == "1"]
    train, test = t1[:9], t1[9:]
    num, bins = len(LABELS), np.linspace(-4, 4, 33)
    by_grey, by_position = np.zeros((34, num)), np.zeros((24, 24, 24, num))

    def positions(scan: int) -> tuple[np.ndarray, ...]:
        shape = store.collection.shapes[scan]
        index = np.indices(tuple(shape)).reshape(3, -1).T
        world = index @ store.collection.affines[scan][:3, :3].T + store.collection.affines[scan][:3, 3]
        return tuple(np.clip((world / 5 + 12).astype(int), 0, 23).T)

    for scan in train:
        labels = store.read_label(scan).ravel()
        np.add.at(by_grey, (np.digitize(store.read_volume(scan)[0].ravel(), bins), labels), 1)
        np.add.at(by_position, (*positions(scan), labels), 1)
    for counts, limit in ((by_grey, 0.2), (by_position, 0.4)):
        # Also with balanced classes: otherwise the background would always win.
        for weight in (np.ones(num), (1 / counts.reshape(-1, num).sum(0)) ** 0.5):
            guesses = (counts * weight).argmax(-1)
            scores = []
            for scan in test:
                key = (
                    (np.digitize(store.read_volume(scan)[0].ravel(), bins),)
                    if counts is by_grey
                    else positions(scan)
                )
                guess, truth = guesses[key], store.read_label(scan).ravel()
                scores.append(np.mean([dice(truth == n, guess == n) for n in range(1, num)]))
            assert np.mean(scores) < limit


def _prepared(tmp_path: Path) -> Path:
    fields = {"num_patients": 14, "shape": (40, 40, 40), "num_modalities": 1, "max_visits": 1}
    prepare("simulated", None, tmp_path / "out", fields=fields, options=PrepareOptions(workers=1))
    assert (tmp_path / "out/raw/manifest.csv").exists()
    return tmp_path / "out"


def test_the_body_is_found_in_every_scan(tmp_path) -> None:
    store = Store.open(_prepared(tmp_path))
    assert all("largest component" in scan["body"]["method"] for scan in store.scans)
    assert len(store) == 14 and store.label_names == LABELS


def test_a_patient_is_the_same_in_any_cohort() -> None:
    few, many = (Patient(1, 0, 1.0, 0.4, 3) for _ in range(2))
    scans = (simulate_scan(patient, (20, 20, 20), 1, 0.0, "T1") for patient in (few, many))
    for a, b in zip(*scans, strict=True):
        np.testing.assert_array_equal(np.asarray(a.dataobj), np.asarray(b.dataobj))
