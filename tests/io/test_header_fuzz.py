"""Ten thousand damaged headers: each file is read as nibabel reads it, or refused, without silent zeros.

Conversely, files that nibabel and SimpleITK read to the same voxels and affine are read, except `REFUSED`.
"""

from __future__ import annotations

import gzip
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medcl3d.core.errors import DataError
from medcl3d.io.nifti import read_header
from medcl3d.preprocessing.read_scan import read_image

sitk = pytest.importorskip("SimpleITK")

NUM_FILES = 10_000
RAMP = np.arange(1, 6 * 5 * 4 + 1, dtype=np.int16).reshape(6, 5, 4)
FIELDS = nibabel.Nifti1Header().template_dtype.fields
SPECIAL = (0, 1, -1, 2, 127, 128, 255, 32767, -32768, 2**31 - 1, -(2**31))
FLOATS = (0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e-40, 1e30, 352.5, 100.0, 352.0, 353.0)


def template(rng: np.random.Generator) -> bytes:
    """A valid file: of several types, with or without scaling, sform, qform."""
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
    """Change one to four bytes, fields or lengths."""
    damaged = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        way = rng.integers(4)
        if way == 0:
            damaged[int(rng.integers(min(352, len(damaged))))] = int(rng.integers(256))
        elif way == 1:
            position = int(rng.integers(min(352, len(damaged))))
            damaged[position] ^= 1 << int(rng.integers(8))
        elif way == 2 and len(damaged) >= 348:
            name = str(rng.choice(list(FIELDS)))
            dtype, offset = FIELDS[name][:2]
            base, count = dtype.base, int(np.prod(dtype.shape or (1,)))
            if base.kind in "iuf":
                at = offset + base.itemsize * int(rng.integers(count))
                value = rng.choice(FLOATS if base.kind == "f" else SPECIAL)
                with np.errstate(all="ignore"):
                    damaged[at : at + base.itemsize] = np.array([value]).astype(base).tobytes()
        elif rng.random() < 0.2:
            del damaged[int(rng.integers(len(damaged))) :]
    return bytes(damaged)


def trailing(rng: np.random.Generator) -> bytes:
    """Bytes after a gzip stream: mostly none, else padding or other bytes."""
    return b"" if rng.random() < 0.8 else bytes(int(rng.integers(1, 2000))) + rng.bytes(int(rng.integers(20)))


def as_nibabel_reads(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Scaled voxels and affine in mm, from an independent reader."""
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


def as_simpleitk_reads(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The same from a second independent reader, in RAS+. RuntimeError if it refuses the file."""
    quiet, before = os.open(os.devnull, os.O_WRONLY), os.dup(2)
    os.dup2(quiet, 2)  # its library writes there
    try:
        image = sitk.ReadImage(str(path))
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(quiet)
    voxels = sitk.GetArrayFromImage(image).astype(np.float64)
    if image.GetNumberOfComponentsPerPixel() > 1:
        voxels = np.moveaxis(voxels, -1, 0)
    voxels = voxels.T
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    size = image.GetDimension()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(size, size)[:3, :3] * image.GetSpacing()[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    affine[:2] *= -1  # LPS
    return voxels, affine


# Refused although both readers agree: message -> reason.
REFUSED = {
    r"scl_slope is .*the intensities are undefined": "both ignore such a slope, and so the unit",
    r"the affine is singular": "a voxel size of 0, which both replace by 1 mm",
    r"the affine contains NaN or infinity": "no position in mm: the geometry of all pairs would be NaN",
    r"voxels are NaN or infinite": "the option nonfinite decides",
    r"constant: every voxel": "it contains no image",
    r"do not fit float32|too far from 0 for float32": "it would become infinite or constant",
    r"bits per voxel, and \d+ bytes more than the data type needs": "data type, bitpix and length differ",
    r"contains RGB colours|complex numbers|data type .* is not supported": "not one grey value per voxel",
    r"has \d axes": "too few or too many axes: the spatial axes are unknown",
    r"truncated": "readers differ in how they fill the rest; one silently reads a part",
}


def refusal_without_reason(path: Path, error: DataError) -> str:
    """ "" if a refusal is justified, else the result on which both readers agree."""
    if any(re.search(message, str(error)) for message in REFUSED):
        return ""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            (voxels, affine), (theirs, their_affine) = as_nibabel_reads(path), as_simpleitk_reads(path)
    except Exception:  # any exception means that a reader refuses the file
        return ""
    same = voxels.shape == theirs.shape and np.allclose(voxels, theirs, equal_nan=True)
    is_valid = np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9
    if same and is_valid and np.allclose(affine, their_affine, rtol=1e-4, atol=1e-3, equal_nan=True):
        return f"nibabel and SimpleITK read {voxels.shape} voxels at {affine.tolist()}: {error}"
    return ""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("num_files", [200, pytest.param(NUM_FILES // 2, marks=pytest.mark.slow)])
def test_a_damaged_header_is_refused_or_read_correctly(
    tmp_path: Path, compressed: bool, num_files: int
) -> None:
    rng = np.random.default_rng(20 + compressed)
    refused, read = 0, 0
    path, plain = tmp_path / ("a.nii.gz" if compressed else "a.nii"), tmp_path / "plain.nii"
    for number in range(num_files):
        content = mutated(template(rng), rng)
        path.write_bytes(gzip.compress(content, 1, mtime=0) + trailing(rng) if compressed else content)
        # nibabel reads 1024 bytes to detect the format, and fails on bytes after a short stream.
        plain.write_bytes(content)
        try:
            found = read_image(path, channels="all")
        except DataError as error:
            assert str(path) in str(error) and "\n" not in str(error), number
            assert not refusal_without_reason(plain, error), number
            refused += 1
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                (voxels, affine), atol = as_nibabel_reads(plain), 0.0
            except ValueError:  # SimpleITK and medcl3d accept a quaternion slightly longer than 1 as rounding
                (voxels, affine), atol = as_simpleitk_reads(plain), 1e-4
        theirs = voxels if voxels.ndim == 4 else voxels[..., None]
        np.testing.assert_allclose(np.moveaxis(found.voxels, 0, -1), theirs, rtol=1e-6, err_msg=str(number))
        np.testing.assert_allclose(found.affine, affine, rtol=1e-6, atol=atol, err_msg=str(number))
        assert np.isfinite(found.voxels).all() and found.voxels.min() < found.voxels.max()
        read += 1
    assert refused + read == num_files and min(refused, read) > num_files // 10
    print(f"{refused} refused, {read} read as nibabel reads them")


AFFINE = np.array([[1.1, 0, 0, -10], [0, 1.2, 0, -12], [0, 0, 1.3, -9], [0, 0, 0, 1.0]])


def changed(path: Path, change: Callable[[nibabel.Nifti1Header], None]) -> Path:
    """A valid file with a changed header."""
    content = bytearray(nibabel.Nifti1Image(RAMP, AFFINE).to_bytes())
    header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    header["qform_code"] = header["sform_code"] = 1
    header["pixdim"][0] = 1
    header["quatern_b"] = header["quatern_c"] = header["quatern_d"] = 0
    header["qoffset_x"], header["qoffset_y"], header["qoffset_z"] = AFFINE[:3, 3]
    change(header)
    content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(content)) if path.name.endswith(".gz") else bytes(content))
    return path


def put(**fields: float) -> Callable[[nibabel.Nifti1Header], None]:
    """A change of fields; ``qfac`` is the first of pixdim."""

    def change(header: nibabel.Nifti1Header) -> None:
        for name, value in fields.items():
            if name == "qfac":
                header["pixdim"][0] = value
            else:
                header[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        (put(qfac=0), ""),
        (put(qfac=0, sform_code=0), ""),
        (put(qfac=5, sform_code=0), "pixdim[0] is 5, neither 1 nor -1; 1 was used"),
        (
            put(quatern_b=0.8, quatern_c=0.8),
            "the qform is impossible (the quaternion has the length 1.13137, beyond 1) and was ignored",
        ),
        (put(quatern_b=np.nan), "the qform is impossible"),
        (put(qform_code=77), "qform_code is 77, which is not defined"),
        (put(sform_code=77), "sform_code is 77, which is not defined"),
        (
            put(scl_slope=np.nan, scl_inter=np.nan),
            "scl_slope and scl_inter are NaN: not set; the values were used as stored",
        ),
        (put(bitpix=0), ""),
        (put(bitpix=8), "the header has int16 voxels but 8 bits per voxel; the data type was used"),
        (put(vox_offset=352.5), "vox_offset is 352.5; 352 was used"),
        (put(sizeof_hdr=0), "sizeof_hdr is 0; 348 was used, from the magic"),
    ],
)
def test_headers_that_other_readers_accept_are_read(tmp_path: Path, change: Callable, warning: str) -> None:
    path = changed(tmp_path / "a.nii", change)
    found = read_image(path)
    for voxels, affine in (as_nibabel_reads(path), as_simpleitk_reads(path)):
        np.testing.assert_array_equal(found.voxels[0], voxels)
        np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    assert any(warning in one for one in found.warnings) if warning else found.warnings == ()


@pytest.mark.parametrize("sform_code", [0, 1])
def test_a_quaternion_slightly_longer_than_one_is_accepted_as_rounding(
    tmp_path: Path, sform_code: int
) -> None:
    """nibabel reads such a file only with the sform, SimpleITK also with the quaternion."""
    flipped = np.diag([-1.0, 1.0, 1.0, 1.0]) @ AFFINE

    def change(header: nibabel.Nifti1Header) -> None:
        put(sform_code=sform_code, quatern_c=0.7071072, quatern_d=0.7071072)(header)
        header.set_sform(flipped, code=sform_code)

    path = changed(tmp_path / "a.nii", change)
    header = read_header(path)
    expected = flipped if sform_code else as_simpleitk_reads(path)[1]
    np.testing.assert_allclose(header.affine, expected, atol=1e-5)


@pytest.mark.parametrize(
    "trailing_bytes",
    [bytes(3), bytes(3 << 20), b"garbage", bytes(3 << 20) + b"garbage", b"\x1f", bytes(10) + b"\x1fx"],
)
def test_bytes_after_the_gzip_stream_are_ignored_with_a_warning(
    tmp_path: Path, trailing_bytes: bytes
) -> None:
    path = tmp_path / "a.nii.gz"
    nibabel.save(
        nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 999, (12, 11, 10)).astype(np.int16), AFFINE),
        path,
    )
    clean = read_image(path)
    path.write_bytes(path.read_bytes() + trailing_bytes)
    found = read_image(path)
    for voxels, affine in (as_nibabel_reads(path), as_simpleitk_reads(path)):
        np.testing.assert_array_equal(found.voxels[0], voxels)
        np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    rest = len(trailing_bytes.lstrip(b"\0"))
    assert found.warnings == ((f"{rest} bytes follow the gzip stream and were ignored",) if rest else ())
    assert found.sha256 == clean.sha256


def test_a_second_gzip_stream_after_padding_is_read(tmp_path: Path) -> None:
    path = changed(tmp_path / "a.nii.gz", put())
    content, clean = gzip.decompress(path.read_bytes()), read_image(path)
    path.write_bytes(gzip.compress(content[:400]) + bytes(2 << 20) + gzip.compress(content[400:]))
    assert read_image(path).sha256 == clean.sha256


def test_a_gzip_stream_without_its_checksum_is_refused(tmp_path: Path) -> None:
    path = changed(tmp_path / "a.nii.gz", put())
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match="the gzip stream ends before its checksum") as caught:
        read_image(path)
    assert "requires" not in str(caught.value)


def test_a_file_compressed_twice_is_refused(tmp_path: Path) -> None:
    path = changed(tmp_path / "a.nii.gz", put())
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match="is compressed with gzip twice; decompress it once"):
        read_image(path)
    with pytest.raises(DataError, match="twice"):
        read_header(path)


def test_a_data_type_that_contradicts_bitpix_and_the_file_size_is_refused(tmp_path: Path) -> None:
    # uint8 instead of int16: half of the bytes, and wrong voxels.
    path = changed(tmp_path / "a.nii", put(datatype=2))
    with pytest.raises(
        DataError, match="uint8 voxels, 16 bits per voxel, and 120 bytes more than the data type needs"
    ):
        read_image(path)
