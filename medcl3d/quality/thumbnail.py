"""A small picture of a scan: three named planes in the proportions of the body, with the label map."""

from __future__ import annotations

import base64
import io

import numpy as np

from medcl3d.preprocessing.read_scan import Volume
from medcl3d.preprocessing.resample import to_ras

SIDE = 132  # pixels of a plane along the scan's longest axis
STRIDE = 7  # between the voxels that percentiles are computed from
OPACITY, QUALITY = 0.45, 82  # of a label map; of JPEG, a third of the size of PNG
PLANES = ("sagittal", "coronal", "axial")  # by normal axis in RAS


def thumbnail(image: Volume, label: Volume | None = None) -> str:
    """JPEG of the planes of the first channel side by side, as base64. Grey values: robust extremes.

    All planes have one scale in mm. They pass through the middle of the scan, or where the label map is
    largest. To the right is the patient's right, or anterior in the sagittal plane.
    """
    from matplotlib.image import imsave

    voxels, affine = to_ras(image)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    labels = np.zeros(voxels.shape[1:], np.int16) if label is None else to_ras(label)[0][0]
    low, high = np.percentile(voxels[0].ravel()[::STRIDE], (0.5, 99.5))
    pixels_per_mm = SIDE / float((labels.shape * spacing).max())
    planes = []
    for axis in range(3):
        area = (labels > 0).sum(axis=tuple(other for other in range(3) if other != axis))
        level = int(area.argmax()) if area.any() else labels.shape[axis] // 2
        grey = np.clip((voxels[0].take(level, axis) - low) / max(float(high - low), 1e-12), 0, 1)
        scale = np.delete(spacing, axis) * pixels_per_mm
        planes.append(_framed(_coloured(grey, labels.take(level, axis), scale)))
    buffer = io.BytesIO()
    imsave(buffer, np.concatenate(planes, axis=1), format="jpeg", pil_kwargs={"quality": QUALITY})
    return base64.b64encode(buffer.getvalue()).decode()


def _coloured(grey: np.ndarray, labels: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A plane ``[X, Y]`` as ``Float[height, width, 3]``; scale: pixels per voxel along X and Y."""
    from matplotlib import colormaps
    from skimage.transform import resize

    shape = [max(1, round(float(n))) for n in grey.shape * scale]
    wide = resize(grey, shape, order=1, anti_aliasing=True)[..., None].repeat(3, -1)
    classes = resize(labels, shape, order=0, anti_aliasing=False, preserve_range=True).astype(int)
    colours = colormaps["tab10"]((classes - 1) % 10)[..., :3]
    mixed = np.where((classes > 0)[..., None], (1 - OPACITY) * wide + OPACITY * colours, wide)
    return np.asarray(mixed.swapaxes(0, 1)[::-1])


def _framed(plane: np.ndarray) -> np.ndarray:
    """A plane in the middle of a black square of `SIDE` pixels."""
    spare = np.maximum(0, SIDE - np.array(plane.shape[:2]))
    before = spare // 2
    around = [*zip(before, spare - before, strict=True), (0, 0)]
    return np.pad(plane, around)[:SIDE, :SIDE]
