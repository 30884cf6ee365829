"""Parse NIfTI headers: impossible values are errors, implausible values warnings."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError

from medcl3d.core.errors import DataError

_MAX_FORM_CODE = 5  # NIFTI_XFORM_TEMPLATE_OTHER
# How far 1 - b^2 - c^2 - d^2 may be below 0: rounding to float32 leaves 1e-7, text with six decimals 1e-6.
_ROUNDING = 1e-5
_UNIT_MM = {1: 1000.0, 3: 0.001}
# From micro-CT of a mouse to a whole-body survey; sizes beyond these are more often a wrong unit than a scan.
_PLAUSIBLE_MM = (0.01, 50.0)
_GIVE_SIZE = "if it is known, prepare with assume_spacing_mm"
_TRUE_GEOMETRY = "write the file again with its true geometry"


@dataclass(frozen=True)
class Header:
    """The validated content of a header.

    shape   voxels, trailing axes of length 1 dropped; three or four axes
    dtype   of the voxels on disk
    affine  ``Float64[4, 4]`` voxel index -> RAS+ mm
    bits    per voxel according to `bitpix`; 0 if it agrees with `dtype` or is not given
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    affine: np.ndarray
    slope: float
    inter: float
    offset: int
    warnings: tuple[str, ...] = field(default=())
    bits: int = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole file, uncompressed."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    @property
    def spacing_mm(self) -> np.ndarray:
        """``Float64[3]`` mm per voxel."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def size_of_header(head: bytes) -> tuple[int, str] | None:
    """Bytes of a header and its byte order, by its first four bytes, else by its magic; None if not NIfTI."""
    for order in "<>":
        size = struct.unpack(f"{order}i", head[:4])[0] if len(head) >= 4 else 0
        if size in (348, 540):
            return size, order
    if head[344:348] == b"n+1\0":
        for order in "<>":
            if 1 <= struct.unpack(f"{order}h", head[40:42])[0] <= 7:  # the number of axes
                return 348, order
    return None


def parse_header(path: Path, head: bytes) -> Header:
    """Parse a header. DataError if it is not NIfTI, or if its values are impossible."""
    found = size_of_header(head)
    if found is None:
        raise DataError(path, f"the content is not NIfTI: its first bytes are {head[:4]!r}")
    size, order = found
    kind = nibabel.Nifti1Header if size == 348 else nibabel.Nifti2Header
    if len(head) < size:
        raise DataError(path, f"truncated: {len(head)} bytes, and its header has {size}")
    header = kind(head[:size], endianness=order, check=False)
    magic = bytes(header["magic"].tobytes()).ljust(4, b"\0")[:4]
    if magic in (b"ni1\0", b"ni2\0"):
        raise DataError(path, "is half of a .hdr/.img pair", "convert it to one .nii.gz")
    if magic not in (b"n+1\0", b"n+2\0"):
        remedy = "ANALYZE has no orientation: convert it to NIfTI"
        raise DataError(path, f"is an ANALYZE file or a damaged NIfTI (magic {magic!r})", remedy)
    warnings: list[str] = []
    if int(header["sizeof_hdr"]) != size:
        warnings.append(f"sizeof_hdr is {int(header['sizeof_hdr'])}; {size} was used, from the magic")
    shape = _shape(path, header)
    if min(shape[:3]) == 1:
        plane = f"a single plane, {'x'.join(map(str, shape))} voxels: a volume has several"
        warnings.append(f"{plane}; stack the planes of one scan into one file")
    dtype = _dtype(path, header)
    bits = int(header["bitpix"]) if int(header["bitpix"]) != dtype.itemsize * 8 else 0
    if bits:
        contradiction = f"{dtype.name} voxels but {bits} bits per voxel"
        warnings.append(f"the header has {contradiction}; the data type was used")
    slope, inter = _scaling(path, header, warnings)
    offset = float(header["vox_offset"])
    if not math.isfinite(offset) or offset < (352 if size == 348 else 544):
        raise DataError(path, f"vox_offset is {offset}, which is inside the header")
    if offset != int(offset):
        warnings.append(f"vox_offset is {offset}; {int(offset)} was used")
    with np.errstate(all="ignore"):  # values of a damaged header overflow and are refused
        affine = _affine(path, header, warnings)
    return Header(shape, dtype, affine, slope, inter, int(offset), tuple(warnings), bits)


def _shape(path: Path, header: nibabel.Nifti1Header) -> tuple[int, ...]:
    dims = [int(n) for n in header["dim"]]
    if not 1 <= dims[0] <= 7:
        raise DataError(path, f"the header has {dims[0]} axes", "NIfTI has 1 to 7")
    shape = dims[1 : dims[0] + 1]
    if min(shape) < 1:
        raise DataError(path, f"the header has {shape} voxels", "every axis needs at least one")
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) == 5 and shape[3] == 1:
        shape.pop(3)
    if len(shape) < 3:
        raise DataError(path, f"has {len(shape)} axes", "a volume has three: stack the slices into one file")
    if len(shape) > 4:
        remedy = "write one 3-D file, or channels as the fourth axis"
        raise DataError(path, f"has {len(shape)} axes {tuple(shape)}", remedy)
    return tuple(shape)


def _dtype(path: Path, header: nibabel.Nifti1Header) -> np.dtype:
    code = int(header["datatype"])
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        raise DataError(path, f"the header's data type {code} does not exist") from None
    if dtype.fields is not None:
        remedy = "convert it to one grey value per voxel"
        raise DataError(path, "contains RGB colours, not intensities", remedy)
    if dtype.kind == "c":
        raise DataError(path, "contains complex numbers", "convert it to magnitude")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        remedy = "convert it to int16 or float32"
        raise DataError(path, f"data type {dtype} (code {code}) is not supported", remedy)
    return dtype


def _scaling(path: Path, header: nibabel.Nifti1Header, warnings: list[str]) -> tuple[float, float]:
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0:  # NIfTI-1: no scaling
        return 1.0, 0.0
    if math.isnan(slope) and math.isnan(inter):  # nibabel writes this pair if the scaling is not set
        warnings.append("scl_slope and scl_inter are NaN: not set; the values were used as stored")
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(inter)):
        problem = f"scl_slope is {slope}, scl_inter {inter}: the intensities are undefined"
        raise DataError(path, problem, "write the file again")
    return slope, inter


def _affine(path: Path, header: nibabel.Nifti1Header, warnings: list[str]) -> np.ndarray:
    """Voxel index -> mm: the sform, else the qform, as the standard defines."""
    sform, qform = _forms(path, header, warnings)
    unit = int(header["xyzt_units"]) & 7
    to_mm = _UNIT_MM.get(unit, 1.0)
    form = header.get_base_affine() if sform is None and qform is None else qform if sform is None else sform
    affine = np.array(form, dtype=np.float64)
    affine[:3] *= to_mm
    sizes_mm = np.abs(np.array(header["pixdim"][1:4], dtype=np.float64)) * to_mm
    if not np.isfinite(affine).all():
        raise DataError(path, "the affine contains NaN or infinity", _TRUE_GEOMETRY)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / np.where(spacing > 0, spacing, 1))) < 1e-3:
        problem = f"the affine is singular (spacing {spacing.round(4).tolist()} mm)"
        raise DataError(path, problem, _TRUE_GEOMETRY)
    if unit in _UNIT_MM:
        warnings.append(f"the header is in {'metres' if unit == 1 else 'micrometres'}; converted to mm")
    if sform is None and qform is None:
        lost = f", and so is the voxel size of 1 mm; {_GIVE_SIZE}" if np.all(sizes_mm == 1) else ""
        warnings.append(f"neither sform nor qform: the orientation is a guess{lost}")
    axes = affine[:3, :3] / spacing
    if np.abs(axes.T @ axes - np.eye(3)).max() > 0.01:
        warnings.append("the axes are not orthogonal (shear)")
    apart = 0.0
    if sform is not None and qform is not None:
        qform[:3] *= to_mm
        apart = corner_distance(qform, affine, header["dim"][1:4])
    if apart > 0.5 * spacing.min():
        corners = f"corners differ by up to {apart:.3g} mm"
        warnings.append(f"qform and sform differ; the sform was used ({corners})")
    elif sform is not None and not np.allclose(sizes_mm, spacing, rtol=0.05):
        voxels = f"voxels of {_mm(sizes_mm)}, the sform of {_mm(spacing)}"
        warnings.append(f"pixdim has {voxels}; the sform was used")
    warnings.extend(spacing_warnings(affine))
    return affine


def _forms(
    path: Path, header: nibabel.Nifti1Header, warnings: list[str]
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The sform and the qform, each None if the header has none. DataError if they are impossible."""
    sizes = [float(size) for size in header["pixdim"][1:4]]
    codes = {name: int(header[f"{name}_code"]) for name in ("sform", "qform")}
    has_sform, has_qform = (0 < code <= _MAX_FORM_CODE for code in codes.values())
    odd = [name for name, code in codes.items() if not 0 <= code <= _MAX_FORM_CODE]
    warnings += [
        f"{name}_code is {codes[name]}, which is not defined; the {name} was ignored" for name in odd
    ]
    if not has_sform and min(sizes) < 0:  # readers differ on the direction of such an axis
        raise DataError(path, f"a voxel size is negative, pixdim is {sizes}", _TRUE_GEOMETRY)
    sform, qform = header.get_sform() if has_sform else None, None
    try:
        qform = _qform(header, warnings) if has_qform else None
        if not has_sform and not has_qform:
            _refuse_needed_forms(header, {name: codes[name] for name in odd}, min(sizes))
    except ValueError as error:
        if not has_sform:
            problem = f"the orientation in the header is impossible ({error})"
            raise DataError(path, problem, "write the file again") from None
        warnings.append(f"the qform is impossible ({error}) and was ignored; the sform was used")
    return sform, qform


def _refuse_needed_forms(header: nibabel.Nifti1Header, odd: Mapping[str, int], size: float) -> None:
    """ValueError if a form with an undefined code differs from the guess: readers differ on its use."""
    for name, code in odd.items():
        if code > 0:
            form = header.get_sform() if name == "sform" else _qform(header, [])
            if not corner_distance(form, header.get_base_affine(), header["dim"][1:4]) < 0.1 * size:
                first, value = next(iter(odd.items()))
                undefined = f"{first}_code is {value}, which is not defined"
                raise ValueError(f"{undefined}, and without it there is no orientation")


def _qform(header: nibabel.Nifti1Header, warnings: list[str]) -> np.ndarray:
    """Voxel index -> mm by quaternion, offset and pixdim. ValueError if they are not an affine."""
    bcd = np.array([float(header[f"quatern_{axis}"]) for axis in "bcd"])
    sizes, qfac = np.array(header["pixdim"][1:4], dtype=np.float64), float(header["pixdim"][0])
    left = 1.0 - float(bcd @ bcd)
    if not left >= -_ROUNDING:
        raise ValueError(f"the quaternion has the length {math.sqrt(float(bcd @ bcd)):.6g}, beyond 1")
    if sizes.min() < 0:
        raise ValueError(f"a voxel size is negative, pixdim is {sizes.tolist()}")
    if qfac not in (-1.0, 0.0, 1.0):  # in the standard, 0 means 1
        if qfac < 0:
            raise ValueError(f"pixdim[0] is {qfac:g}, neither 1 nor -1")
        warnings.append(f"pixdim[0] is {qfac:g}, neither 1 nor -1; 1 was used")
    a = 0.0 if left < abs(header.quaternion_threshold) else math.sqrt(left)
    affine = np.eye(4)
    affine[:3, :3] = nibabel.quaternions.quat2mat((a, *bcd)) * sizes
    affine[:3, 2] *= -1.0 if qfac == -1.0 else 1.0
    affine[:3, 3] = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    if not np.isfinite(affine).all():
        raise ValueError("it contains NaN or infinity")
    return affine


def is_identity(affine: np.ndarray) -> bool:
    """Whether an affine ``Float64[4, 4]`` is the identity, up to mirrored axes, as of a lost header."""
    return np.allclose(np.abs(affine), np.eye(4), atol=1e-6)


def spacing_warnings(affine: np.ndarray) -> list[str]:
    """Warnings on an affine ``Float64[4, 4]`` that is the identity, or has an unusual spacing."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    warnings = []
    if is_identity(affine):
        identity = "the affine is the identity (1 mm voxels, origin 0)"
        warnings.append(f"{identity}: the voxel size may be lost; {_GIVE_SIZE}")
    low, high = _PLAUSIBLE_MM
    if spacing.min() < low or spacing.max() > high:
        remedy = "if the size is known, prepare with assume_spacing_mm"
        warnings.append(f"implausible voxels of {_mm(spacing)}: is the unit wrong? {remedy}")
    elif spacing.max() > 3 * spacing.min():
        to = _mm(np.maximum(spacing, spacing.max() / 3)).removesuffix(" mm")
        warnings.append(f"strongly anisotropic: {_mm(spacing)}; a spacing to use: {to}")
    return warnings


def corner_distance(a: np.ndarray, b: np.ndarray, shape: Sequence[int]) -> float:
    """The largest distance in mm between the corners of a grid under two affines."""
    x, y, z = (int(n) - 1 for n in shape)
    corners = np.array([[i, j, k, 1] for i in (0, x) for j in (0, y) for k in (0, z)], dtype=np.float64)
    return float(np.linalg.norm(corners @ (a - b).T, axis=1).max())


def _mm(spacing: np.ndarray) -> str:
    return f"{', '.join(f'{size:.3g}' for size in spacing)} mm"
