"""A simulated patient with known ground truth, and a simulated scanner.

Grey values alone do not determine the segmentation: the two lobes, the duct and the bright distractors share
one intensity, the ventricle shares one with the dark distractors and the lesion, and the gland differs from
its surroundings only in texture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import nibabel
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

LABELS = {0: "background", 1: "left lobe", 2: "right lobe", 3: "ventricle", 4: "gland", 5: "duct"}
FIELD_OF_VIEW_MM = 128.0
MODALITIES = ("T1", "T2")
# Grey values per modality: tissue, fat of the skin, bright (lobes, duct), dark (ventricle, lesion).
_GREY = {"T1": (100.0, 150.0, 140.0, 45.0), "T2": (100.0, 80.0, 70.0, 165.0)}


@dataclass(frozen=True)
class Scanner:
    """Image effects of a site, constant for all of its patients."""

    bias: float
    noise: float
    gain: float
    gamma: float
    coarser: tuple[float, float, float]
    orientation: str
    tilt_degrees: float


# Three models; further sites repeat them with another gain.
_SCANNERS = (
    Scanner(0.15, 4.0, 1.0, 1.0, (1.0, 1.0, 1.0), "RAS", 0.0),
    Scanner(0.35, 7.0, 12.0, 0.85, (1.0, 1.0, 1.5), "LPS", 0.0),
    Scanner(0.25, 10.0, 4.0, 1.2, (1.25, 1.0, 1.25), "PSR", 8.0),
)


class Patient:
    """Constant properties of a patient: shape, texture, structures, age, sex, site, lesion."""

    def __init__(self, number: int, seed: int, difficulty: float, lesion_fraction: float, num_sites: int):
        rng = np.random.default_rng([seed, number, 0])
        self.number, self.seed, self.difficulty = number, seed, difficulty
        self.name = f"P{number + 1:03d}"
        self.age = round(float(rng.uniform(20, 80)), 1)
        self.sex = str(rng.choice(["F", "M"]))
        self.site = int(rng.integers(num_sites))
        self.has_lesion = bool(rng.random() < lesion_fraction)

        def vary(sigma: float, size: int | tuple[int, int]) -> np.ndarray:
            return rng.normal(0, sigma * difficulty, size)

        size = 1.04 if self.sex == "M" else 0.96
        self.body = np.array([46.0, 54.0, 50.0]) * size * np.exp(vary(0.04, 3))
        self.lobes = [
            (np.array([side * 20.0, 6, 6]) + vary(2.5, 3), np.array([9.0, 14, 10]) * np.exp(vary(0.12, 3)))
            for side in (-1, 1)
        ]
        # The known factor: tube radius 4 mm at 20 years, 8 mm at 80, with little noise.
        self.ventricle_mm = 4.0 + 4.0 * (self.age - 20) / 60 + float(rng.normal(0, 0.35))
        self.growth_mm_a_year = float(rng.uniform(0.2, 0.8))
        self.ventricle_place = np.array([0.0, 4, 14]) + vary(2.0, 3)
        center, radii = np.array([0.0, -28, -8]), np.array([15.0, 10, 10])
        self.gland = center + vary(3.0, 3), radii * np.exp(vary(0.12, 3))
        self.duct_bend = vary(4.0, 3)
        lobe, _ = self.lobes[int(rng.integers(2))]
        self.lesion = lobe + rng.normal(0, 2.5, 3), float(rng.uniform(3.5, 5.0))
        self.warp = (rng.normal(0, 1, (6, 3)) * 0.04, rng.uniform(0, 2 * np.pi, 6), vary(1.3, (6, 3)))
        self.distractors = self._distractors(rng)
        self.texture = _smooth_field(rng, 40, 0.8), _smooth_field(rng, 40, 2.2)

    def _distractors(self, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray, bool]]:
        """Ellipsoids with the grey values of structures, away from them: centre, radii, bright."""
        taken = [center for center, _ in self.lobes] + [self.gland[0], self.ventricle_place]
        found: list[tuple[np.ndarray, np.ndarray, bool]] = []
        while len(found) < 7:
            place = rng.uniform(-1, 1, 3) * self.body * 0.7
            radii = rng.uniform(4.5, 10.0, 3)
            free = all(np.linalg.norm(place - other) > 19 for other in taken)
            if np.linalg.norm(place / self.body) < 0.75 and (free or rng.random() < 0.02):
                found.append((place, radii, len(found) % 2 == 0))
                taken.append(place)
        return found

    @cached_property
    def duct(self) -> np.ndarray:
        """``Float[20, 3]`` points of the duct, from the gland to the right lobe."""
        t = np.linspace(0, 1, 20)[:, None]
        start, end = self.gland[0] + [0, 0, 9], self.lobes[1][0] - [0, 11, 4]
        middle = (start + end) / 2 + [9, 0, -9] + self.duct_bend
        return (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end

    def straightened(self, world: np.ndarray) -> np.ndarray:
        """Patient points ``[..., 3]`` (mm) before the patient's smooth warp."""
        waves, phases, amplitudes = (values.astype(np.float32) for values in self.warp)
        return world + np.sin(world @ waves.T + phases) @ amplitudes


def _smooth_field(rng: np.random.Generator, size: int, sigma: float) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.normal(size=(size, size, size)), sigma, mode="wrap")
    return (field / field.std()).astype(np.float32)


def _sample(field: np.ndarray, points: np.ndarray, spacing_mm: float) -> np.ndarray:
    from scipy.ndimage import map_coordinates

    return map_coordinates(field, np.moveaxis(points, -1, 0) / spacing_mm, order=1, mode="grid-wrap")


def _ellipsoid(powers: np.ndarray, center: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Approximate signed distance in mm, negative inside; `powers` ``[..., 6]`` are x squared and x."""
    curvature = 1 / np.square(radii)
    factors = np.concatenate([curvature, -2 * center * curvature]).astype(np.float32)
    form = powers @ factors + np.float32(center**2 @ curvature)
    return (np.sqrt(np.maximum(form, 0)) - 1) * float(radii.min())


def _tube(points: np.ndarray, course: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance to a tube around a line of points, clipped at 4 mm outside."""
    from scipy.spatial import cKDTree

    reach = radius + 4.0
    near = np.all((points > course.min(0) - reach) & (points < course.max(0) + reach), axis=-1)
    distance = np.full(points.shape[:-1], 4.0, dtype=np.float32)
    distance[near] = np.minimum(cKDTree(course).query(points[near])[0], reach) - radius
    return distance


def _fill_fraction(distance: np.ndarray, softness_mm: float) -> np.ndarray:
    """Fraction of a voxel filled by a structure, from its signed distance."""
    return np.clip(0.5 - distance / softness_mm, 0, 1)


def render(
    patient: Patient, points: np.ndarray, years: float, modality: str, softness_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Grey values and labels at points ``[X, Y, Z, 3]`` in patient mm, `years` after the first visit."""
    tissue, fat, bright, dark = _GREY[modality]
    x = patient.straightened(points)
    fine, coarse = (_sample(f, x, mm) for f, mm in zip(patient.texture, (2.5, 3.5), strict=True))
    powers = np.concatenate([np.square(x), x], axis=-1)
    body = _ellipsoid(powers, np.zeros(3), patient.body)
    grey = tissue * (1 + 0.05 * coarse)
    grey += _fill_fraction(-(body + 5), softness_mm) * (fat - tissue)

    def paint(distance: np.ndarray, value: float) -> None:
        nonlocal grey
        part = _fill_fraction(distance, softness_mm)
        grey = grey + part * (value * (1 + 0.05 * coarse) - grey)

    for center, radii, is_bright in patient.distractors:
        paint(_ellipsoid(powers, center, radii), bright if is_bright else dark)
    labels = np.zeros(points.shape[:3], dtype=np.uint8)
    gland = _ellipsoid(powers, *patient.gland)
    grey = grey + _fill_fraction(gland, softness_mm) * (tissue * (1 + 0.16 * fine) - grey)
    labels[gland < 0] = 4
    duct = _tube(x, patient.duct, 3.6)
    paint(duct, bright)
    labels[duct < 0] = 5
    for number, (center, radii) in enumerate(patient.lobes, start=1):
        lobe = _ellipsoid(powers, center, radii * (1 - 0.01 * years))
        paint(lobe, bright)
        labels[lobe < 0] = number
    angle = np.linspace(-2.4, 2.4, 40)
    course = 15 * np.sin(angle) * 0.6, 10 * np.cos(angle), 11 * np.cos(angle / 2) - 8
    arch = patient.ventricle_place + np.stack(course, axis=1)
    ventricle = _tube(x, arch, patient.ventricle_mm + patient.growth_mm_a_year * years)
    paint(ventricle, dark)
    labels[ventricle < 0] = 3
    if patient.has_lesion:
        paint(_ellipsoid(powers, patient.lesion[0], np.full(3, patient.lesion[1])), dark)
    labels[body > 0] = 0
    return grey * _fill_fraction(body, softness_mm), labels


def simulate_scan(
    patient: Patient, shape: tuple[int, int, int], visit: int, years: float, modality: str
) -> tuple[nibabel.Nifti1Image, nibabel.Nifti1Image]:
    """One scan (int16) and its labels (uint8), with the scanner's field of view, effects and orientation."""
    scanner = _SCANNERS[patient.site % len(_SCANNERS)]
    # One pose per visit: its scans share a frame.
    pose = np.random.default_rng([patient.seed, patient.number, 1, visit])
    rng = np.random.default_rng([patient.seed, patient.number, 2, visit, MODALITIES.index(modality)])
    strength = patient.difficulty
    spacing = FIELD_OF_VIEW_MM / np.array(shape) * scanner.coarser
    size = np.round(FIELD_OF_VIEW_MM / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = _rotation(np.radians([scanner.tilt_degrees, 0, 0])) * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((size - 1) / 2) + rng.normal(0, 4 * strength, 3)
    turn, shift = _rotation(np.radians(pose.normal(0, 4 * strength, 3))), pose.normal(0, 4 * strength, 3)
    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in size), indexing="ij"), axis=-1)
    to_patient = turn.T @ affine[:3, :3]
    points = grid @ to_patient.T.astype(np.float32) + (turn.T @ (affine[:3, 3] - shift)).astype(np.float32)
    grey, labels = render(patient, points, years, modality, float(spacing.mean()))
    place = (2 * grid / (size - 1) - 1).astype(np.float32)
    linear = place @ rng.normal(0, 0.7, 3).astype(np.float32)
    quadratic = (place**2) @ rng.normal(0, 0.5, 3).astype(np.float32)
    bias = np.exp(strength * scanner.bias * (linear + quadratic))
    grey = 100 * (np.maximum(grey, 0) / 100) ** scanner.gamma * bias
    noise = rng.normal(0, scanner.noise * strength, (2, *size)).astype(np.float32)
    grey = np.hypot(grey + noise[0], noise[1])  # the magnitude of a complex signal: Rician noise
    gain = scanner.gain * (1 + patient.site // len(_SCANNERS)) * np.exp(rng.normal(0, 0.2))
    values = np.clip(np.round(grey * gain), 0, 32767).astype(np.int16)
    turned = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(scanner.orientation))
    out = []
    for array in (values, labels):
        turned_affine = affine @ inv_ornt_aff(turned, array.shape)
        image = nibabel.Nifti1Image(nibabel.apply_orientation(array, turned), turned_affine)
        image.header.set_xyzt_units("mm")
        out.append(image)
    return out[0], out[1]


def _rotation(angles: np.ndarray) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        step = np.eye(3)
        step[i, i] = step[j, j] = np.cos(angle)
        step[i, j], step[j, i] = -np.sin(angle), np.sin(angle)
        matrix = step @ matrix
    return matrix
