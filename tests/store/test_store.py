from __future__ import annotations

import gc
import os
import pickle
import random
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medcl3d.core.errors import DataError, MachineError
from medcl3d.core.geometry import Box
from medcl3d.io.array_file import write_array
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.prepare import prepare
from medcl3d.store.store import Store
from medcl3d.store.stored_scan import stored_path, verify_stored


@pytest.fixture
def store(cohort: Path, tmp_path: Path, container: str) -> Store:
    options = PrepareOptions(workers=1, store=container)  # type: ignore[arg-type]
    prepare("csv", cohort, tmp_path / "out", options=options)
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


def test_a_crop_is_read_into_an_array_of_its_shape_and_type(store: Store) -> None:
    box, wide = Box((-2, 3, 4), (6, 5, 4)), np.full((2, 1, 6, 5, 4), 7, dtype=np.float32)
    assert store.read_crop(1, box, wide[1]) is not wide and (wide[0] == 7).all()
    np.testing.assert_array_equal(wide[1], store.read_crop(1, box))
    for wrong in (wide, wide[0].astype(np.float64), wide[0, :, :, :, :1]):
        with pytest.raises(ValueError, match=r"float32\[1, 6, 5, 4\]"):
            store.read_crop(1, box, wrong)


def test_a_crop_is_a_copy(store) -> None:
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


def test_a_store_is_pickled_into_other_processes(store) -> None:
    here = _read(store)  # opens a memory map, which must not be pickled
    assert len(pickle.dumps(store)) < 40_000
    for method in ("fork", "spawn"):
        with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
            np.testing.assert_array_equal(pool.submit(_read, store).result(), here)


def test_the_fingerprint_depends_on_the_content_only(store, cohort, tmp_path) -> None:
    shutil.copytree(store.root, tmp_path / "moved")
    assert Store.open(tmp_path / "moved").fingerprint() == store.fingerprint()
    prepare("csv", cohort, tmp_path / "same", options=PrepareOptions(workers=1))
    assert Store.open(tmp_path / "same").fingerprint() == store.fingerprint(), "for any container"
    prepare("csv", cohort, tmp_path / "other", options=PrepareOptions(workers=1, percentiles=(5, 95)))
    assert Store.open(tmp_path / "other").fingerprint() != store.fingerprint()


def test_damage_is_detected(store) -> None:
    path = store.path(1)
    content = path.read_bytes()
    changed = np.array(store._map(1, is_label=False)[...])
    changed[0, 3, 3, 3] += 1
    write_array(path, changed)
    with pytest.raises(
        DataError,
        match=rf"{path.name}: the voxels changed .*delete it and run the same prepare command again",
    ):
        verify_stored(store.root, Store.open(store.root).scans[1])
    write_array(path, changed.astype(np.float32))
    with pytest.raises(DataError, match=rf"{path.name}: contains float32 .* has float16"):
        Store.open(store.root, sizes=False).read_volume(1)
    path.write_bytes(content)
    verify_stored(store.root, Store.open(store.root).scans[1])
    path.unlink()
    with pytest.raises(
        DataError,
        match=rf"{path.name}: cannot be read .No such file or directory.; run the same prepare command again",
    ):
        Store.open(store.root).read_volume(1)
    (store.root / "store" / "002.json").unlink()
    with pytest.raises(DataError, match="description of scan '002'"):
        Store.open(store.root)


@pytest.mark.parametrize("is_label", [False, True])
def test_a_truncated_file_is_never_read(store, is_label) -> None:
    path = stored_path(store.root, store.scans[1], is_label=is_label)
    content, message = (
        path.read_bytes(),
        rf"{path.name}: cannot be read .*; delete it and run the same prepare command again",
    )
    for size in (0, 1, 15, 60, 127, 200, len(content) // 2, len(content) - 60, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=rf"{path.name}: has {size} bytes, {len(content)} were written"):
            Store.open(store.root)
        truncated = Store.open(store.root, sizes=False)
        with pytest.raises(DataError, match=message) as error:
            truncated.read_label(1) if is_label else truncated.read_crop(1, Box((2, 2, 2), (4, 4, 4)))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("is_label", [False, True])
def test_a_file_that_is_truncated_while_it_is_read_ends_with_its_name(store, is_label) -> None:
    """Instead of a signal that ends the process without a message."""
    path = stored_path(store.root, store.scans[1], is_label=is_label)
    box = Box((2, 2, 2), (4, 4, 4))

    def read(opened) -> None:
        opened.read_label(1, box) if is_label else opened.read_crop(1, box)

    opened, size = Store.open(store.root), path.stat().st_size
    read(opened)
    os.truncate(path, 100)
    with pytest.raises(DataError, match=rf"{path.name}: has 100 bytes, {size} were written"):
        read(opened)
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name}: cannot be read .No such file"):
        read(opened)


def test_flipped_bits_are_detected_without_a_crash(store) -> None:
    """For any byte: a DataError in one line, or correct voxels."""
    path, rng, found = store.path(1), random.Random(0), 0
    content, whole = path.read_bytes(), store.read_volume(1)
    for place in (
        *range(0, 280),
        *(rng.randrange(280, len(content)) for _ in range(120)),
        *range(len(content) - 80, len(content)),
    ):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            opened = Store.open(store.root)
            verify_stored(opened.root, opened.scans[1])
            np.testing.assert_array_equal(opened.read_volume(1), whole)
        except DataError as error:
            found += 1
            assert (
                str(path) in str(error)
                and "run the same prepare command again" in str(error)
                and "\n" not in str(error)
            )
    assert found > 120


def test_the_number_of_open_files_is_limited(store, monkeypatch) -> None:
    """Six scans with their labels, at most three open files; none stays open after the store is deleted."""
    open_files = Path("/proc/self/fd")
    if not open_files.is_dir():
        pytest.skip("this system does not list the open files of a process")

    def of_store() -> int:
        return sum(str(store.root) in str(path.resolve()) for path in open_files.iterdir())

    monkeypatch.setattr("medcl3d.store.store._max_open", lambda: 3)
    for _ in range(2):
        for scan in range(6):
            store.read_crop(scan, Box((0, 0, 0), (4, 4, 4)))
            if store.has_label(scan):
                store.read_label(scan)
            assert 1 <= of_store() <= 3
    store._maps.clear()
    gc.collect()
    assert of_store() == 0


def test_the_error_of_a_missing_store_is_one_line(tmp_path) -> None:
    with pytest.raises(DataError, match="contains no finished store"):
        Store.open(tmp_path)


def test_the_time_of_a_crop_does_not_depend_on_the_scan(store, tmp_path) -> None:
    """A small crop of scans of 2 MB and 268 MB: the times differ by less than a factor of ten."""
    times = []
    for n in (64, 512):
        values = np.zeros((1, n, n, n), dtype=np.float16)
        values[:, :40, :40, :40] = 1
        _, store.scans[0]["stored_bytes"] = write_array(store.path(0), values)
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
def test_int16_is_more_precise_than_float16_and_all_readers_agree(
    cohort: Path, tmp_path: Path, kind: str
) -> None:
    import torchio as tio

    from medcl3d.preprocessing.ready_scan import ready_scan
    from medcl3d.preprocessing.scan_task import ScanTask
    from medcl3d.sampling.torchio_queue import subject_of

    stores = {}
    for store_as in ("float16", "int16"):
        options = PrepareOptions(workers=1, store_as=store_as, intensity=kind)  # type: ignore[arg-type]
        prepare("csv", cohort, tmp_path / store_as, options=options)
        stores[store_as] = Store.open(tmp_path / store_as)
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
    verify_stored(fine.root, fine.scans[1])


def test_int16_keeps_whole_numbers_and_rounding_gives_a_warning(tmp_path: Path, write_nifti) -> None:
    voxels = np.random.default_rng(0).integers(-3000, 3000, (6, 7, 8)).astype(np.int16)
    write_nifti("raw/a.nii.gz", voxels)
    (tmp_path / "raw/manifest.csv").write_text("scan,patient,path\na,a,a.nii.gz\n")
    for store_as, is_exact in (("int16", True), ("float16", False)):
        options = PrepareOptions(workers=1, store_as=store_as, intensity="none")  # type: ignore[arg-type]
        prepare("csv", tmp_path / "raw", tmp_path / store_as, options=options)
        assert np.array_equal(Store.open(tmp_path / store_as).read_volume(0)[0], voxels) == is_exact
        assert ("rounded by float16" in (tmp_path / store_as / "report.csv").read_text()) != is_exact


def test_real_scans_are_equal_in_both_containers(shared_data: Path, tmp_path: Path) -> None:
    """CT of 3 mm and slabs with many classes: crops and labels are bitwise equal, in fewer bytes."""
    pytest.importorskip("blosc2")
    names = ("abdomen_ct", "abdomen_ct_slab", "abdomen_mr_slab", "spleen_ct")
    folder = shared_data / "ct"
    rows = [
        f"{n},{n},{'MR' if '_mr_' in n else 'CT'},{folder}/images/{n}.nii.gz,{folder}/labels/{n}.nii.gz"
        for n in names
    ]
    (tmp_path / "manifest.csv").write_text("\n".join(["scan,patient,modality,path,label", *rows]))
    stores = {}
    for kind in ("npy", "blosc2"):
        options = PrepareOptions(workers=1, store=kind)  # type: ignore[arg-type]
        prepare("csv", tmp_path, tmp_path / kind, fields={"allow_outside": True}, options=options)
        stores[kind] = Store.open(tmp_path / kind)
    plain, packed = stores.values()
    rng = np.random.default_rng(0)
    for scan in range(len(names)):
        verify_stored(packed.root, packed.scans[scan])
        shape = plain.collection.shapes[scan]
        for _ in range(20):
            size = rng.integers(1, np.minimum(shape, 96) + 1)
            box = Box(tuple(rng.integers(-8, shape - size + 9)), tuple(size))
            np.testing.assert_array_equal(packed.read_crop(scan, box), plain.read_crop(scan, box))
            np.testing.assert_array_equal(packed.read_label(scan, box), plain.read_label(scan, box))
    sizes = [sum(s["stored_bytes"] + s["label_bytes"] for s in one.scans) for one in (plain, packed)]
    assert sizes[1] < 0.6 * sizes[0]
    assert packed.fingerprint() == plain.fingerprint()


def test_a_missing_package_is_reported_before_any_work(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("blosc2")
    options, out = PrepareOptions(workers=1, store="blosc2"), tmp_path / "out"
    prepare("csv", cohort, out, options=options)
    monkeypatch.setitem(sys.modules, "blosc2", None)
    with pytest.raises(
        MachineError, match=r"out: needs blosc2, which is not installed; pip install 'medcl3d\[blosc2\]'"
    ):
        Store.open(out)
    with pytest.raises(MachineError, match=r"store=blosc2: needs blosc2, which is not installed"):
        prepare("csv", cohort, tmp_path / "new", options=options)
    assert not (tmp_path / "new").exists()


def test_reading_starts_no_threads(cohort: Path, tmp_path: Path) -> None:
    pytest.importorskip("blosc2")
    threads = Path("/proc/self/task")
    if not threads.is_dir():
        pytest.skip("this system does not list the threads of a process")
    prepare("csv", cohort, tmp_path / "out", options=PrepareOptions(workers=1, store="blosc2"))
    store = Store.open(tmp_path / "out")
    write_array(store.path(0), np.random.default_rng(0).normal(size=(1, 150, 150, 150)).astype(np.float16))
    store.scans[0]["shape"] = [1, 150, 150, 150]
    before = len(list(threads.iterdir()))
    store.read_volume(0)
    assert len(list(threads.iterdir())) == before
