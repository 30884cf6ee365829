"""Pictures of scans: proportions in mm, named planes, label maps."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from skimage.io import imread

from medcl3d.preprocessing.read_scan import Volume
from medcl3d.quality.thumbnail import PLANES, SIDE, thumbnail


def volume(voxels: np.ndarray, affine: np.ndarray) -> Volume:
    return Volume(voxels[None], affine, 0, "", ())


def picture_of(image: Volume, label: Volume | None = None) -> np.ndarray:
    picture: np.ndarray = imread(io.BytesIO(base64.b64decode(thumbnail(image, label))))
    return picture.astype(int)


def extent(plane: np.ndarray) -> tuple[int, int]:
    """Height and width of what is not black."""
    bright = plane.max(-1) > 100
    return int(bright.any(1).sum()), int(bright.any(0).sum())


@pytest.mark.parametrize("flip", [1, -1])
def test_a_thin_scan_keeps_its_proportions_in_all_planes(flip: int) -> None:
    """64 x 128 x 128 mm, whatever the voxels: planes have one scale."""
    voxels = (np.random.default_rng(0).random((64, 64, 16)) > 0.2).astype(np.float32)
    image = volume(voxels, np.diag([flip * 1.0, 2.0, 8.0, 1.0]))
    picture = picture_of(image)
    assert picture.shape == (SIDE, 3 * SIDE, 3)
    planes = dict(zip(PLANES, np.split(picture, 3, axis=1), strict=True))
    for name, (height, width) in {"sagittal": (1, 1), "coronal": (1, 0.5), "axial": (1, 0.5)}.items():
        found = extent(planes[name])
        assert np.allclose(found, (height * SIDE, width * SIDE), atol=3), (name, found)


def test_planes_are_oriented_and_show_the_label_map() -> None:
    """A label far from the middle: up is superior and anterior, and right is the patient's right."""
    rng = np.random.default_rng(0)
    voxels = rng.uniform(0, 1, (30, 30, 30)).astype(np.float32)
    label = np.zeros((30, 30, 30), np.int16)
    label[22:28, 20:26, 18:24] = 1
    affine = np.diag([-1.0, 1.0, 1.0, 1.0])  # stored from right to left
    picture = picture_of(volume(voxels, affine), volume(label, affine))
    blue = picture[..., 2] - picture[..., 0] > 40
    for name, plane in zip(PLANES, np.split(blue, 3, axis=1), strict=True):
        height, width = (float(np.mean(index)) / SIDE for index in np.nonzero(plane))
        across = {"sagittal": 22.5, "coronal": 4.5, "axial": 4.5}[name] / 30
        up = {"sagittal": 20.5, "coronal": 20.5, "axial": 22.5}[name] / 30
        assert abs(width - across) < 0.04 and abs(height - (1 - up)) < 0.04, name
    assert not (picture_of(volume(voxels, affine))[..., 2] - picture[..., 0] > 40).all()
