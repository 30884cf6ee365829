from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medcl3d.core.errors import ConfigError, DataError
from medcl3d.datasets.pseudonymise import pseudonymised
from medcl3d.datasets.sources import SOURCES
from medcl3d.datasets.sources.folder import folder
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.prepare import prepare
from medcl3d.quality.check import audit
from medcl3d.store.store import Store

PATTERN = {
    "pattern": "{patient}/{session}/{modality}.nii.gz",
    "label": "{patient}/{session}/{modality}_SECRETseg.nii.gz",
}
HIDE = PrepareOptions(workers=1, test_fraction=0.5, hash_ids=True)


@pytest.fixture
def tree(tmp_path: Path, write_nifti: Callable[..., Path]) -> Path:
    """Two people with two visits each, named by dates; one label map, one file that matches no pattern."""
    rng = np.random.default_rng(0)
    for person in ("SECRET1", "SECRET2"):
        for day in ("20210131", "20200131"):
            write_nifti(f"tree/{person}/{day}/T1.nii.gz", rng.normal(100, 20, (6, 7, 8)).astype(np.float32))
    write_nifti("tree/SECRET1/20200131/T1_SECRETseg.nii.gz", np.ones((6, 7, 8), np.uint8))
    write_nifti("tree/SECRET3.nii.gz", np.ones((6, 7, 8), np.uint8))
    return tmp_path / "tree"


def test_only_the_raw_folder_of_a_store_identifies_people(tree: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    prepare("folder", tree, tmp_path / "out", fields=PATTERN, options=HIDE, say=lines.append)
    written = [path for path in (tmp_path / "out").rglob("*") if "raw" not in path.parts]
    for path in written:
        content = path.name.encode() + (path.read_bytes() if path.is_file() else b"")
        assert b"SECRET" not in content.replace(b"_SECRETseg", b""), path
        assert not re.search(rb"202[01]-?01-?31", content), path  # a random hash may hold 2020
    assert "SECRET" not in " ".join(lines) and "1 NIfTI files match no pattern" in lines
    store = Store.open(tmp_path / "out")
    table = store.collection.table
    assert (
        table.groupby("patient")["session"].agg(sorted).tolist() == [["1", "2"]] * 2
        and table["scan"].is_unique
    )
    first = table[table["session"] == "1"]["scan"]
    assert all("20200131" in os.readlink(tmp_path / "out" / "raw" / f"{scan}.nii.gz") for scan in first), (
        "sorted by name"
    )
    assert sum(store.has_label(scan) for scan in range(4)) == 1
    assert (tmp_path / "out" / "raw" / ".hash_key").stat().st_mode & 0o777 == 0o600
    audit(tmp_path / "out")
    again = prepare("folder", tree, tmp_path / "out", fields=PATTERN, options=HIDE)
    assert again.num_unchanged == 4
    with pytest.raises(ConfigError, match="choose another folder"):
        prepare(
            "folder",
            tree,
            tmp_path / "out",
            fields=PATTERN,
            options=PrepareOptions(workers=1, test_fraction=0.5),
        )


def test_a_changed_source_file_is_detected_through_its_link(
    tree: Path, tmp_path: Path, write_nifti: Callable[..., Path]
) -> None:
    prepare("folder", tree, tmp_path / "out", fields=PATTERN, options=HIDE)
    write_nifti("tree/SECRET1/20200131/T1.nii.gz", np.arange(6 * 7 * 8, dtype=np.float32).reshape(6, 7, 8))
    with pytest.raises(DataError, match=r"changed after preparing") as caught:
        audit(tmp_path / "out")
    assert "SECRET" not in str(caught.value)


def test_equal_ids_stay_equal_and_differ_between_keys(tree: Path, tmp_path: Path) -> None:
    found = folder(tree, **PATTERN)
    one, other = (pseudonymised(found, tmp_path / name).table for name in ("one", "other"))
    assert (one["frame"] == one["scan"]).all() and one["patient"].nunique() == 2
    assert not set(one["patient"]) & set(other["patient"])


def test_a_path_that_leaves_the_root_is_not_linked(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "manifest.csv").write_text("path,patient\n../secret.nii.gz,p\n")
    with pytest.raises(DataError, match="leaves the root"):
        pseudonymised(SOURCES.get("csv")(tmp_path / "in"), tmp_path / "raw")
