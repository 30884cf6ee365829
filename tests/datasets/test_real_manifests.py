"""The csv source on real collections: frames, modalities, a lost voxel size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.prepare import prepare
from medcl3d.store.store import Store


def head(real: Path, out: Path, rows: int) -> Path:
    """The first rows of a manifest, beside links to its folders."""
    out.mkdir()
    lines = (real / "manifest.csv").read_text().splitlines()
    (out / "manifest.csv").write_text("\n".join(lines[: rows + 1]) + "\n")
    for name in ("images", "labels"):
        (out / name).symlink_to(real / name)
    return out


def test_ct_and_pet_share_a_frame_and_mr_has_its_own(real: Path, tmp_path: Path) -> None:
    root = head(real / "sarcoma", tmp_path / "sarcoma", 6)
    options = PrepareOptions(workers=1, spacing_mm=(4, 4, 4), test_fraction=0.5)
    prepare("csv", root, tmp_path / "out", fields={"allow_outside": True}, options=options)
    store = Store.open(tmp_path / "out")
    table, frame = store.collection.table, store.collection.columns["frame"]
    for _, scans in table.groupby("patient"):
        row = {modality: int(scan) for modality, scan in zip(scans["modality"], scans.index, strict=True)}
        assert frame[row["CT"]] == frame[row["PET"]] != frame[row["MR"]]
        middle = [np.argwhere(store.read_label(row[m]) > 0).mean(0) for m in ("CT", "PET")]
        ct, pet = (
            store.collection.world(np.array([row[m]]), v[None])[0]
            for m, v in zip(("CT", "PET"), middle, strict=True)
        )
        assert np.linalg.norm(ct - pet) < 4, "in one frame the tumour has one position"
        assert (
            store.scans[row["CT"]]["options"]["kind"] == "ct"
            and store.scans[row["PET"]]["options"]["kind"] == "mri"
        )
    assert store.intensity()["kind"] == "ct+mri" and "lung_metastasis" in store.collection.columns


def test_a_lost_voxel_size_can_be_given(real: Path, tmp_path: Path) -> None:
    root = head(real / "sunnybrook", tmp_path / "sunnybrook", 4)
    options = PrepareOptions(workers=1, assume_spacing_mm=(2.6, 2.6, 9.0), test_fraction=0.5)
    prepare("csv", root, tmp_path / "out", fields={"allow_outside": True}, options=options)
    store = Store.open(tmp_path / "out")
    np.testing.assert_allclose(store.collection.spacings, [[2.6, 2.6, 9.0]] * 4)
    assert set(store.collection.table["phase"]) == {"ED", "ES"} and all(
        store.has_label(scan) for scan in range(4)
    )


@pytest.mark.parametrize("spacing", ["keep", "median", (1.0, 1.0, 1.0)])
def test_the_assumed_spacing_is_applied_before_resampling(
    cohort: Path, tmp_path: Path, spacing: object
) -> None:
    options = PrepareOptions(
        workers=1,
        assume_spacing_mm=(2.0, 2.0, 4.0),
        spacing_mm=spacing,  # type: ignore[arg-type]
    )
    prepare("csv", cohort, tmp_path / "out", options=options)
    store = Store.open(tmp_path / "out")
    expected = [1, 1, 1] if isinstance(spacing, tuple) else [2, 2, 4]
    np.testing.assert_allclose(store.collection.spacings, [expected] * 6, rtol=1e-5)
    if isinstance(spacing, tuple):
        assert (store.collection.shapes >= [24, 22, 40]).all()
