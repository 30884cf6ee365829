from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from medcl3d.preprocessing.body_mask import Body, _filled, _opened, _otsu, _unit_range, find_body
from medcl3d.preprocessing.intensity_kind import kind_of, kind_warnings, mask_levels
from medcl3d.preprocessing.normalise import normalise
from medcl3d.preprocessing.read_scan import read_image

WINDOW = {"percentiles": (0.5, 99.5), "window_hu": (-1000.0, 1000.0)}


def head(gain: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A noisy ball with a hole, in air, and the mask of the ball."""
    index = np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij"), -1) - np.array([20, 18, 22])
    radius = np.linalg.norm(index, axis=-1)
    scan = np.where(radius < 13, 100.0, 0.0) - np.where(radius < 4, 95, 0)
    rng = np.random.default_rng(seed)
    noisy = gain * np.hypot(scan + rng.normal(0, 4, scan.shape), rng.normal(0, 4, scan.shape))
    return noisy[None].astype(np.float32), radius < 13


@pytest.mark.parametrize("gain", [1e-3, 1.0, 1e5])
def test_a_body_in_air_is_found_in_any_unit(gain) -> None:
    scan, truth = head(gain)
    body = find_body(scan, "mri")
    assert body.mask is not None and "Otsu" in body.method
    assert 2 * (body.mask & truth).sum() / (body.mask.sum() + truth.sum()) > 0.97
    np.testing.assert_allclose(body.box, ((8, 6, 10), (33, 31, 35)), atol=1)


def test_ct_of_several_channels_has_the_body_of_one() -> None:
    distance = np.linalg.norm(np.indices((24, 24, 24)) - 12, axis=0)
    ct = np.where(distance < 9, 40.0, -1000.0).astype(np.float32)[None]
    one, two = (find_body(np.repeat(ct, number, axis=0), "ct") for number in (1, 2))
    assert one.box == two.box == ((4, 4, 4), (21, 21, 21)) and one.method == two.method


def test_a_body_that_fills_its_box_has_no_air() -> None:
    scan = np.random.default_rng(0).normal(100, 10, (1, 6, 6, 6)).astype(np.float32)
    body = replace(find_body(scan, "none"), mask=np.ones((6, 6, 6), dtype=bool))
    out, made = normalise(scan, "mri", body, percentiles=(0.5, 99.5), window_hu=(-1000, 1000))
    assert np.isfinite(out).all() and made.fill[0] == pytest.approx(out.min())


def test_a_crop_inside_the_body_is_all_body() -> None:
    rng = np.random.default_rng(0)
    tissue = ndimage.gaussian_filter(rng.normal(size=(30, 40, 32)), 2)
    body = find_body((100 + 30 * tissue / tissue.std())[None].astype(np.float32), "mri")
    assert body.method == "whole scan" and body.box == ((0, 0, 0), (30, 40, 32)) and body.mask is None


def test_real_brains_have_a_body_and_hippocampus_crops_have_none(real) -> None:
    for path in sorted((real / "ixi40").glob("sub-*/anat/*.nii.gz"))[::10]:
        body = find_body(read_image(path).voxels, "mri")
        assert "largest component" in body.method and 0.25 < body.fraction < 0.5, path.name
    for path in sorted((real / "hippocampus/imagesTr").glob("*.nii.gz"))[::10]:
        assert find_body(read_image(path).voxels, "mri").method == "whole scan", path.name


@pytest.mark.parametrize("seed", range(4))
def test_opening_and_filled_holes_are_those_of_libraries(seed: int) -> None:
    """Also of masks that reach the border, and of thin scans."""
    from skimage.morphology import opening

    rng = np.random.default_rng(seed)
    shape = [(12, 9, 15), (30, 2, 8), (1, 20, 20), (16, 16, 16)][seed]
    noise = ndimage.uniform_filter(rng.normal(size=shape), 3)
    mask = noise > np.quantile(noise, 0.3)
    cross = ndimage.generate_binary_structure(3, 1)
    assert np.array_equal(_opened(mask), opening(mask, cross))
    parts, _ = ndimage.label(mask)
    body = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    box = ndimage.find_objects(body.astype(int))[0]
    filled = ndimage.binary_fill_holes(body)
    assert np.array_equal(_filled(body[box]), filled[box])


@pytest.mark.parametrize("name", ["ixi40/sub-IXI132", "ms_longitudinal/sub-01"])
def test_the_body_of_a_real_scan_is_that_of_libraries(real, name, monkeypatch) -> None:
    from skimage.morphology import opening

    voxels = read_image(sorted((real / name).glob("**/*_T1w.nii.gz"))[0]).voxels
    found = find_body(voxels, "mri")
    cross = ndimage.generate_binary_structure(3, 1)
    monkeypatch.setattr("medcl3d.preprocessing.body_mask._opened", lambda mask: opening(mask, cross))
    monkeypatch.setattr("medcl3d.preprocessing.body_mask._filled", ndimage.binary_fill_holes)
    expected = find_body(voxels, "mri")
    assert found.mask is not None and np.array_equal(found.mask, expected.mask) and found.box == expected.box


@pytest.mark.parametrize("name", ["ixi40/sub-IXI132", "ms_longitudinal/sub-01"])
def test_the_threshold_is_that_of_otsu(real, name) -> None:
    from skimage.filters import threshold_otsu

    unit = _unit_range(read_image(sorted((real / name).glob("**/*_T1w.nii.gz"))[0]).voxels[0])
    assert _otsu(unit) == threshold_otsu(unit.ravel())


def test_mr_of_any_unit_is_normalised_to_the_same_range() -> None:
    results = []
    for gain in (0.01, 1.0, 3e4):
        scan, _ = head(gain)
        body = find_body(scan, "mri")
        out, normalisation = normalise(scan, "mri", body, **WINDOW)
        inside = out[0][body.mask]
        assert abs(inside.mean()) < 1e-3 and abs(inside.std() - 1) < 1e-3
        # The value outside the scan is that of air.
        assert abs(normalisation.fill[0] - np.median(out[0][~body.mask])) < 0.3
        results.append(out)
    np.testing.assert_allclose(results[0], results[2], atol=1e-3)


def test_a_few_extreme_voxels_change_little() -> None:
    scan, _ = head()
    extreme = scan.copy()
    extreme[0, 20, 20, :3] = 1e7
    plain, with_extreme = (normalise(s, "mri", find_body(s, "mri"), **WINDOW)[0] for s in (scan, extreme))
    assert np.abs(plain - with_extreme)[0][scan[0] != extreme[0]].max() < 10
    assert np.median(np.abs(plain - with_extreme)) < 0.05


def test_ct_is_a_window() -> None:
    scan = np.array([-2000, -1000, 0, 500, 3000], np.float32).reshape(1, 5, 1, 1)
    body = Body(((0, 0, 0), (5, 1, 1)), "whole scan", None)
    out, normalisation = normalise(scan, "ct", body, **WINDOW)
    np.testing.assert_allclose(out.ravel(), [-1, -1, 0, 0.5, 1], atol=1e-6)
    assert normalisation.fill == (-1.0,)


def test_none_changes_nothing() -> None:
    scan, _ = head()
    body = find_body(scan, "none")
    out, _ = normalise(scan, "none", body, **WINDOW)
    np.testing.assert_array_equal(out, scan)
    assert body.method == "whole scan"


def test_channels_are_normalised_separately() -> None:
    scan, _ = head()
    two = np.concatenate([scan, 500 - 3 * scan])
    out, normalisation = normalise(two, "mri", find_body(scan, "mri"), **WINDOW)
    assert len(normalisation.low) == 2
    np.testing.assert_allclose(out.std(axis=(1, 2, 3)), out[0].std(), rtol=0.05)


@pytest.mark.parametrize("modality", ["CT", "ct", "CTA", "CTP", "ct_abdomen", "CE-CT", "cbct", "CT+CT"])
def test_a_modality_is_ct_by_its_name(modality) -> None:
    assert kind_of(modality) == "ct"


@pytest.mark.parametrize(
    "modality", ["OCT", "octa", "T1w", "CT1", "PET", "PET/CT", "CT_PET", "CT+MR", "contrast", "unknown", ""]
)
def test_other_modalities_are_not_ct(modality) -> None:
    assert kind_of(modality) == "mri"


def test_values_unlike_the_kind_give_a_warning() -> None:
    rng = np.random.default_rng(0)
    tissue = np.where(rng.random((1, 20, 20, 20)) < 0.3, -1000, rng.normal(40, 60, (1, 20, 20, 20))).astype(
        np.float32
    )
    assert kind_warnings(tissue, "ct") == [] and kind_warnings(tissue, "none") == []
    assert "look like CT in HU" in kind_warnings(tissue, "mri")[0]
    for wrong in (
        tissue + 1024,
        (tissue + 1000) / 1000,
        (tissue - tissue.mean()) / tissue.std(),
        tissue - 10000,
    ):
        assert "do not look like HU" in kind_warnings(wrong, "ct")[0]
        assert kind_warnings(wrong, "mri") == []


def test_real_scans_match_their_kind(real) -> None:
    for folder, glob in (
        ("ixi40", "sub-*/anat/*.nii.gz"),
        ("sarcoma/images", "*_CT.nii.gz"),
        ("sarcoma/images", "*_PET.nii.gz"),
    ):
        for path in sorted((real / folder).glob(glob))[::8]:
            voxels, is_ct = read_image(path).voxels, "_CT" in path.name
            assert kind_warnings(voxels, "ct" if is_ct else "mri") == []
            assert kind_warnings(voxels, "mri" if is_ct else "ct") != [], path.name


@pytest.mark.filterwarnings("error")
def test_a_scan_of_three_planes_is_not_taken_for_a_colour_image() -> None:
    scan, _ = head()
    find_body(scan[..., 20:23], "mri")


@pytest.mark.parametrize("kind", ["mri", "ct", "none"])
def test_a_constant_scan_does_not_crash(kind) -> None:
    scan = np.full((1, 3, 3, 3), 5, np.float32)
    out, normalisation = normalise(scan, kind, find_body(scan, kind), **WINDOW)
    assert np.isfinite(out).all() and np.isfinite(normalisation.fill).all()


@pytest.mark.parametrize("levels", [(0.0, 255.0), (0.0, 1.0), (3.0, 7.0), (-1.0, 1.0)])
def test_a_mask_becomes_0_and_1_for_any_size(levels) -> None:
    low, high = levels
    for num in (1, 500, 7999):
        scan = np.full(8000, low, np.float32)
        scan[np.random.default_rng(num).permutation(8000)[:num]] = high
        scan = scan.reshape(1, 20, 20, 20)
        found = [mask_levels(scan[0], "mri")]
        assert found == [levels] and mask_levels(scan[0], "none") is None
        assert mask_levels(scan[0], "ct") == (levels if low >= 0 else None), "a negative value may be HU"
        out, normalisation = normalise(scan, "mri", find_body(scan, "none"), **WINDOW, levels=found)
        np.testing.assert_array_equal(out, scan == high)
        assert normalisation.fill == (0.0,)
        assert kind_warnings(scan, "mri") == [
            f"only two values, {low:g} and {high:g}: it is a mask, and stored as 0 and 1"
        ]


def test_a_third_value_makes_it_an_image() -> None:
    scan = np.zeros((20, 20, 20), np.float32)
    scan[5:15] = 1
    scan[7, 3, 11] = 0.5
    assert (
        mask_levels(scan, "mri") is None and mask_levels(np.full((3, 3, 3), 5.0, np.float32), "mri") is None
    )


def test_a_body_of_one_value_stays_finite() -> None:
    scan = np.zeros((1, 24, 24, 24), np.float32)
    scan[:, 6:18, 6:18, 6:18] = 100
    scan[:, 0, 0, :3] = 50
    out, _ = normalise(scan, "mri", find_body(scan, "mri"), **WINDOW)
    assert np.abs(out).max() <= 1


def test_the_modality_shape_keeps_its_values() -> None:
    assert kind_of("shape") == kind_of("Shape") == "none" and kind_of("shapes of T1w") == "mri"
