from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medcl3d.data.check import read_image
from medcl3d.data.intensity import Body, find_body, normalise

WINDOW = {"percentiles": (0.5, 99.5), "window_hu": (-1000.0, 1000.0)}


def head(gain: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A noisy ball with a hole in it, in air; and the ball."""
    index = np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij"), -1) - np.array([20, 18, 22])
    radius = np.linalg.norm(index, axis=-1)
    scan = np.where(radius < 13, 100.0, 0.0) - np.where(radius < 4, 95, 0)
    rng = np.random.default_rng(seed)
    return (gain * np.hypot(scan + rng.normal(0, 4, scan.shape), rng.normal(0, 4, scan.shape)))[None].astype(np.float32), radius < 13


@pytest.mark.parametrize("gain", [1e-3, 1.0, 1e5])
def test_a_body_in_air_is_found_whatever_the_unit(gain) -> None:
    scan, truth = head(gain)
    body = find_body(scan, "mri")
    assert body.mask is not None and "Otsu" in body.method
    assert 2 * (body.mask & truth).sum() / (body.mask.sum() + truth.sum()) > 0.97
    np.testing.assert_allclose(body.box, ((8, 6, 10), (33, 31, 35)), atol=1)


def test_a_crop_inside_the_body_counts_as_body_throughout() -> None:
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


def test_mr_of_any_unit_comes_to_the_same_range() -> None:
    results = []
    for gain in (0.01, 1.0, 3e4):
        scan, _ = head(gain)
        body = find_body(scan, "mri")
        out, normalisation = normalise(scan, "mri", body, **WINDOW)
        inside = out[0][body.mask]
        assert abs(inside.mean()) < 1e-3 and abs(inside.std() - 1) < 1e-3
        assert abs(normalisation.fill[0] - np.median(out[0][~body.mask])) < 0.3  # what stands past the border looks like air
        results.append(out)
    np.testing.assert_allclose(results[0], results[2], atol=1e-3)


def test_a_few_wild_voxels_change_little() -> None:
    scan, _ = head()
    wild = scan.copy()
    wild[0, 20, 20, :3] = 1e7
    plain, spoilt = (normalise(s, "mri", find_body(s, "mri"), **WINDOW)[0] for s in (scan, wild))
    assert np.abs(plain - spoilt)[0][scan[0] != wild[0]].max() < 10
    assert np.median(np.abs(plain - spoilt)) < 0.05


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


def test_channels_are_normalised_one_by_one() -> None:
    scan, _ = head()
    two = np.concatenate([scan, 500 - 3 * scan])
    out, normalisation = normalise(two, "mri", find_body(scan, "mri"), **WINDOW)
    assert len(normalisation.low) == 2
    np.testing.assert_allclose(out.std(axis=(1, 2, 3)), out[0].std(), rtol=0.05)
