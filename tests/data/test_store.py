from __future__ import annotations

import pickle
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medcl3d.data.prepare import PrepareOptions, prepare
from medcl3d.data.store import Store
from medcl3d.errors import DataError
from medcl3d.types import Box


@pytest.fixture
def store(cohort: Path, tmp_path: Path) -> Store:
    prepare("csv", cohort, tmp_path / "out", options=PrepareOptions(workers=1))
    return Store.open(tmp_path / "out")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    scan=st.integers(0, 5),
    start=st.tuples(*[st.integers(-25, 25)] * 3),
    size=st.tuples(*[st.integers(1, 20)] * 3),
)
def test_a_box_is_a_slice_of_the_padded_volume(store, scan, start, size) -> None:
    margin = 60
    fill = store.scans[scan]["normalisation"]["fill"][0]
    padded = np.pad(store.read_volume(scan)[0], margin, constant_values=fill)
    where = tuple(slice(margin + a, margin + a + n) for a, n in zip(start, size, strict=True))
    crop = store.read_crop(scan, Box(start, size))
    assert crop.dtype == np.float32 and crop.shape == (1, *size)
    np.testing.assert_array_equal(crop[0], padded[where].astype(np.float32))
    if store.has_label(scan):
        label = np.pad(store.read_label(scan), margin)
        np.testing.assert_array_equal(store.read_label(scan, Box(start, size)), label[where])


def test_a_crop_is_its_own_memory(store) -> None:
    before = store.read_volume(0).copy()
    for values in (store.read_crop(0, Box((0, 0, 0), (4, 4, 4))), store.read_volume(0), store.read_label(0)):
        values[:] = 7
    np.testing.assert_array_equal(store.read_volume(0), before)


def test_columns_and_labels(store) -> None:
    assert store.collection.table["scan"].tolist() == [f"00{i}" for i in range(6)]
    assert store.collection.table["patient"].tolist() == ["000", "000", "001", "001", "002", "002"]
    assert store.collection.table["site"].tolist()[:2] == ["NA", "NA"]
    assert store.collection.columns["age"].tolist() == [40, 40, 41, 41, 42, 42]
    assert store.label_names == {0: "background", 1: "class 1"} and store.num_channels == 1
    assert [store.has_label(i) for i in range(6)] == [True] * 5 + [False]
    with pytest.raises(DataError, match="scan '005' has no label"):
        store.read_label(5)


def _read(store: Store) -> np.ndarray:
    return store.read_crop(2, Box((1, 2, 3), (4, 4, 4)))


def test_it_travels_into_other_processes(store) -> None:
    here = _read(store)  # a map is open now, and must not travel
    assert len(pickle.dumps(store)) < 40_000
    for method in ("fork", "spawn"):
        with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
            np.testing.assert_array_equal(pool.submit(_read, store).result(), here)


def test_the_fingerprint_is_of_the_content(store, cohort, tmp_path) -> None:
    shutil.copytree(store.root, tmp_path / "moved")
    assert Store.open(tmp_path / "moved").fingerprint() == store.fingerprint()
    prepare("csv", cohort, tmp_path / "other", options=PrepareOptions(workers=1, percentiles=(5, 95)))
    assert Store.open(tmp_path / "other").fingerprint() != store.fingerprint()


def test_damage_is_found(store) -> None:
    path = store.root / "store" / "001.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"001\.npy: the voxels changed"):
        store.verify(1)
    path.write_bytes(content[:300])
    with pytest.raises(DataError, match=r"001\.npy: cannot be read"):
        Store.open(store.root).read_volume(1)
    (store.root / "store" / "002.json").unlink()
    with pytest.raises(DataError, match="description of scan '002'"):
        Store.open(store.root)


def test_an_absent_store_is_one_line(tmp_path) -> None:
    with pytest.raises(DataError, match="holds no finished store"):
        Store.open(tmp_path)


def test_a_crop_costs_a_slice_and_not_the_scan(store, tmp_path) -> None:
    """The time of a small crop does not grow with the scan: 2 MB and 268 MB differ by less than a factor of ten."""
    times = []
    for n in (64, 512):
        path = store.root / "store" / "000.npy"
        values = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(1, n, n, n))
        values[:, :40, :40, :40] = 1
        del values
        store.scans[0]["shape"] = [1, n, n, n]
        store._maps.clear()
        box = Box((4, 4, 4), (32, 32, 32))
        assert store.read_crop(0, box).min() == 1
        times.append(min(_seconds(store, box) for _ in range(20)))
    assert times[1] < 10 * times[0]


def _seconds(store: Store, box: Box) -> float:
    began = time.perf_counter()
    store.read_crop(0, box)
    return time.perf_counter() - began


@pytest.mark.parametrize("kind", ["mri", "none"])
def test_int16_keeps_more_than_float16_and_is_read_the_same_way_everywhere(cohort: Path, tmp_path: Path, kind: str) -> None:
    import torchio as tio

    from medcl3d.data.scan import ScanTask, ready_scan
    from medcl3d.data.torchio_bridge import subject_of

    stores = {}
    for way in ("float16", "int16"):
        prepare("csv", cohort, tmp_path / way, options=PrepareOptions(workers=1, store_as=way, intensity=kind))  # type: ignore[arg-type]
        stores[way] = Store.open(tmp_path / way)
    fine, coarse = stores["int16"], stores["float16"]
    wide = fine.read_volume(1)
    assert np.abs(wide - coarse.read_volume(1)).max() <= np.abs(wide).max() * 2.0**-11 + 1e-3
    factor = fine.scaling(1)[0]
    assert 0 < factor <= np.ptp(wide) / 65000
    box = Box((-2, 3, 1), (9, 5, 30))
    image: tio.ScalarImage = subject_of(fine, {0: 1})["001"]
    np.testing.assert_array_equal(image.data.numpy(), wide)
    np.testing.assert_array_equal(fine.read_crop(1, box)[:, 2:, :, :9], wide[:, :7, 3:8, 1:])
    ready = ready_scan(ScanTask.like(fine.intensity(), "x", cohort / "images/1.nii.gz"))
    np.testing.assert_array_equal(ready.voxels, wide)
    fine.verify(1)


def test_whole_numbers_stay_whole_in_int16_and_rounding_is_said(tmp_path: Path, write_nifti) -> None:
    voxels = np.random.default_rng(0).integers(-3000, 3000, (6, 7, 8)).astype(np.int16)
    write_nifti("raw/a.nii.gz", voxels)
    (tmp_path / "raw/manifest.csv").write_text("scan,patient,path\na,a,a.nii.gz\n")
    for way, is_exact in (("int16", True), ("float16", False)):
        prepare("csv", tmp_path / "raw", tmp_path / way, options=PrepareOptions(workers=1, store_as=way, intensity="none"))  # type: ignore[arg-type]
        assert np.array_equal(Store.open(tmp_path / way).read_volume(0)[0], voxels) == is_exact
        assert ("rounded by float16" in (tmp_path / way / "report.csv").read_text()) != is_exact
