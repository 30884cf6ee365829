"""Dice and surface distance against slow reference implementations, and means over patients."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from medcl3d.evaluation.metrics.segmentation import overlap_of
from medcl3d.evaluation.statistics.over_patients import over_patients, summary


def surface(mask: np.ndarray) -> np.ndarray:
    """Voxels of a mask with one of six neighbours outside it (outside the image counts as outside)."""
    padded = np.pad(mask, 1)
    found = []
    for d, h, w in np.argwhere(mask):
        neighbours = [
            (d, h + 1, w + 1),
            (d + 2, h + 1, w + 1),
            (d + 1, h, w + 1),
            (d + 1, h + 2, w + 1),
            (d + 1, h + 1, w),
            (d + 1, h + 1, w + 2),
        ]
        if not all(padded[n] for n in neighbours):
            found.append((d, h, w))
    return np.array(found, dtype=np.float64)


def slow_overlap(a: np.ndarray, b: np.ndarray, to_mm: np.ndarray) -> tuple[float, float, float]:
    """Dice by counting; HD95 and surface Dice at 2 mm by all pairs of surface voxels."""
    dice = 2 * (a & b).sum() / (a.sum() + b.sum())
    p, q = surface(a) @ to_mm.T, surface(b) @ to_mm.T
    distance = np.sqrt(((p[:, None] - q[None]) ** 2).sum(-1))
    nearest = np.concatenate([distance.min(1), distance.min(0)])
    return (
        float(dice),
        float(max(np.quantile(distance.min(1), 0.95), np.quantile(distance.min(0), 0.95))),
        float((nearest <= 2).mean()),
    )


@pytest.mark.parametrize("shear_degrees", [0, 25])
@pytest.mark.parametrize("seed", range(6))
def test_overlap_equals_its_slow_definition(seed: int, shear_degrees: int) -> None:
    rng = np.random.default_rng(seed)
    shape, spacing = (9, 12, 7), (0.8, 1.5, 4.0)
    grid = np.indices(shape)
    masks = []
    for _ in range(2):
        centre, radius = rng.uniform(2, 6, 3), rng.uniform(2, 5)
        masks.append(
            (((grid - centre[:, None, None, None]) ** 2).sum(0) < radius**2) | (rng.random(shape) < 0.01)
        )
    lean = np.eye(3)
    lean[1:, 2] = np.sin(np.radians(shear_degrees)), np.cos(np.radians(shear_degrees))
    to_mm = lean * spacing
    found = overlap_of(masks[0], masks[1], to_mm if shear_degrees else spacing)
    dice, distance, near = slow_overlap(masks[0], masks[1], to_mm)
    assert found.dice == pytest.approx(dice, abs=1e-6) and found.hd95_mm == pytest.approx(distance, rel=1e-5)
    assert found.nsd_2mm == pytest.approx(near, abs=1e-6) and 0.1 < near < 0.99
    volumes = [float(mask.sum()) * 0.8 * 1.5 * 4 * np.cos(np.radians(shear_degrees)) / 1000 for mask in masks]
    assert found.volume_error_ml == pytest.approx(abs(volumes[0] - volumes[1]))


def test_a_shift_by_slices_is_measured_in_mm() -> None:
    mask = np.zeros((10, 10, 10), dtype=bool)
    mask[3:6, 3:6, 2:5] = True
    for axis, expected in ((0, 1.0), (2, 5.0)):
        assert overlap_of(mask, np.roll(mask, 1, axis), (1.0, 1.0, 5.0)).hd95_mm == pytest.approx(expected)
    assert (
        overlap_of(mask, mask, (1.0, 1.0, 5.0)).dice == 1
        and overlap_of(mask, mask, (1.0, 1.0, 5.0)).hd95_mm == 0
    )


def test_a_surface_at_exactly_2_mm_is_near_whatever_the_orientation() -> None:
    mask = np.zeros((16, 16, 16), dtype=bool)
    mask[5, 4:9, 4:9] = True
    for degrees in range(0, 90, 7):
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turned = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) * (0.4, 0.9, 1.1)
        assert overlap_of(mask, np.roll(mask, 5, 0), turned).nsd_2mm == 1, "5 planes of 0.4 mm"


def test_missed_falsely_predicted_and_absent_structures() -> None:
    empty, full = np.zeros((3, 4, 5), dtype=bool), np.ones((3, 4, 5), dtype=bool)
    diagonal = np.sqrt(6.0**2 + 4.0**2 + 2.5**2)
    for prediction, truth in ((empty, full), (full, empty)):
        found = overlap_of(prediction, truth, (2.0, 1.0, 0.5))
        assert found.dice == 0 and found.hd95_mm == pytest.approx(diagonal)
    leaning = np.array([[2, 0, 0], [0, 1, 0.3], [0, 0, 0.4]])
    assert overlap_of(full, empty, leaning).hd95_mm == pytest.approx(np.sqrt(6**2 + 5.5**2 + 2**2)), (
        "the longest diagonal"
    )
    neither = overlap_of(empty, empty, (2.0, 1.0, 0.5))
    assert np.isnan(neither.dice) and np.isnan(neither.hd95_mm)
    with pytest.raises(ValueError, match="shape"):
        overlap_of(empty, np.zeros((3, 4, 6), dtype=bool), (1, 1, 1))


def test_patients_are_resampled_not_scans() -> None:
    values = [0.2, 0.4, 0.9, np.nan, 0.5]
    one = over_patients(values, ["a", "a", "b", "c", "d"], seed=0)
    assert one is not None and one.n == 3
    assert one.mean == pytest.approx((0.3 + 0.9 + 0.5) / 3) and one.low < one.mean < one.high
    assert one == over_patients(values, ["a", "a", "b", "c", "d"], seed=0)
    # Copies of the scans of a patient do not shorten the interval.
    many = over_patients(np.repeat(values, 50), list(np.repeat(["a", "a", "b", "c", "d"], 50)), seed=0)
    assert many is not None and many.high - many.low == pytest.approx(one.high - one.low, rel=1e-6)


def test_intervals_of_constant_and_missing_values() -> None:
    assert over_patients([np.nan], ["a"], 0) is None
    single = over_patients([0.5, 0.7], ["a", "a"], 0)
    assert single is not None and single.mean == pytest.approx(0.6) and not single.known and single.n == 1
    same = over_patients([0.5, 0.5], ["a", "b"], 0)
    assert same is not None and (same.low, same.mean, same.high) == (0.5, 0.5, 0.5)


def test_the_interval_has_about_its_nominal_coverage() -> None:
    rng = np.random.default_rng(0)
    patients = [str(i) for i in range(25)]
    draws = [over_patients(rng.normal(0.7, 0.1, 25), patients, seed=0) for _ in range(60)]
    covered = sum(d.low <= 0.7 <= d.high for d in draws if d is not None)
    assert 51 <= covered <= 60


def test_summary_counts_each_scan_once_and_skips_absent_structures() -> None:
    rows = [
        ("s1", "p1", "liver", 0.8, 2.0),
        ("s1", "p1", "spleen", None, None),
        ("s2", "p2", "liver", 0.6, 4.0),
        ("s2", "p2", "spleen", 0.0, 8.0),
    ]
    cases = [dict(zip(("scan", "patient", "class", "dice", "hd95_mm"), row, strict=True)) for row in rows]
    found = summary(cases, ("dice", "hd95_mm"), seed=0)
    assert list(found) == ["dice", "hd95_mm", "dice/liver", "dice/spleen", "hd95_mm/liver", "hd95_mm/spleen"]
    assert found["dice"].mean == pytest.approx((0.8 + 0.3) / 2) and found["hd95_mm"].mean == pytest.approx(
        (2 + 6) / 2
    )
    assert found["dice/spleen"].n == 1 and found["dice/liver"].mean == pytest.approx(0.7)
    for case, measure in itertools.product(cases, ("dice", "hd95_mm")):
        case[measure] = None if case["class"] == "spleen" else case[measure]
    assert "dice/spleen" not in summary(cases, ("dice", "hd95_mm"), seed=0)
