"""Ten thousand spoilt headers: each file is refused by name, or read as nibabel reads it; nothing crashes, nothing is zeros in silence."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medcl3d.data.check import read_image
from medcl3d.errors import DataError

NUM_FILES = 10_000
RAMP = np.arange(1, 6 * 5 * 4 + 1, dtype=np.int16).reshape(6, 5, 4)
FIELDS = nibabel.Nifti1Header().template_dtype.fields
SPECIAL = (0, 1, -1, 2, 127, 128, 255, 32767, -32768, 2**31 - 1, -(2**31))
FLOATS = (0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e-40, 1e30, 352.5, 100.0, 352.0, 353.0)


def template(rng: np.random.Generator) -> bytes:
    """A good file: of several types, with or without scaling, sform, qform."""
    dtype = rng.choice([np.uint8, np.int16, np.int32, np.float32, np.float64])
    affine = np.diag([*rng.uniform(0.5, 4, 3) * rng.choice([-1, 1], 3), 1.0])
    affine[:3, 3] = rng.normal(0, 50, 3)
    image = nibabel.Nifti1Image(RAMP.astype(dtype), affine)
    image.set_qform(affine, int(rng.integers(0, 3)))
    image.set_sform(affine, int(rng.integers(0, 3)))
    if rng.random() < 0.3:
        image.header.set_slope_inter(2.0, -3.0)
    return image.to_bytes()


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """One to four bytes, fields or lengths spoilt."""
    spoilt = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        way = rng.integers(4)
        if way == 0:
            spoilt[int(rng.integers(min(352, len(spoilt))))] = int(rng.integers(256))
        elif way == 1:
            position = int(rng.integers(min(352, len(spoilt))))
            spoilt[position] ^= 1 << int(rng.integers(8))
        elif way == 2 and len(spoilt) >= 348:
            name = str(rng.choice(list(FIELDS)))
            dtype, offset = FIELDS[name][:2]
            base, count = dtype.base, int(np.prod(dtype.shape or (1,)))
            if base.kind in "iuf":
                at = offset + base.itemsize * int(rng.integers(count))
                value = rng.choice(FLOATS if base.kind == "f" else SPECIAL)
                with np.errstate(all="ignore"):
                    spoilt[at : at + base.itemsize] = np.array([value]).astype(base).tobytes()
        elif rng.random() < 0.2:
            del spoilt[int(rng.integers(len(spoilt))) :]
    return bytes(spoilt)


def as_nibabel_reads(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Scaled voxels and affine in mm, out of the independent reader."""
    image = nibabel.load(path)
    voxels = np.asarray(image.dataobj, dtype=np.float64)
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim == 5 and voxels.shape[3] == 1:
        voxels = voxels[..., 0, :]
    unit = {1: 1000.0, 3: 0.001}.get(int(image.header["xyzt_units"]) & 7, 1.0)
    affine = np.array(image.affine)
    affine[:3] *= unit
    return voxels, affine


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_spoilt_header_is_refused_or_read_right(tmp_path: Path, compressed: bool) -> None:
    rng = np.random.default_rng(20 + compressed)
    refused, read = 0, 0
    path = tmp_path / ("a.nii.gz" if compressed else "a.nii")
    for number in range(NUM_FILES // 2):
        content = mutated(template(rng), rng)
        path.write_bytes(gzip.compress(content, 1, mtime=0) if compressed else content)
        try:
            found = read_image(path, channels="all")
        except DataError as error:
            assert str(path) in str(error) and "\n" not in str(error), number
            refused += 1
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            voxels, affine = as_nibabel_reads(path)
        theirs = voxels if voxels.ndim == 4 else voxels[..., None]
        np.testing.assert_allclose(np.moveaxis(found.voxels, 0, -1), theirs, rtol=1e-6, err_msg=str(number))
        np.testing.assert_allclose(found.affine, affine, rtol=1e-6, err_msg=str(number))
        assert np.isfinite(found.voxels).all() and found.voxels.min() < found.voxels.max()
        read += 1
    assert refused + read == NUM_FILES // 2 and min(refused, read) > NUM_FILES // 20
    print(f"{refused} refused, {read} read as nibabel reads them")
