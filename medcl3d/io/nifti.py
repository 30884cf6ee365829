"""Read NIfTI files from their bytes: file type, completeness, header and voxels.

The whole file is decompressed once, so that the gzip checksum is verified; memory is allocated only after
the size in the header has been compared with the size of the file.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np

from medcl3d.core.errors import DataError
from medcl3d.io.nifti_header import Header, parse_header, size_of_header
from medcl3d.io.regular_file import open_regular

_CHUNK = 1 << 20
_MAX_DEFLATE_RATIO = 1032  # Deflate compresses at most 1032:1 (zlib, technical details)
_FETCH = "fetch the file again"

_FOREIGN = (
    (b"version https://git-lfs", "a Git-LFS pointer, not the file itself; run `git lfs pull`"),
    (b"/annex/objects/", "a pointer of git-annex, not the file itself; run `datalad get .`"),
    (b"NRRD", "an NRRD file; convert it to NIfTI"),
    (b"ObjectType", "a MetaImage header; convert it to NIfTI"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"\x93NUMPY", "a NumPy array; NIfTI is needed, since an array has no geometry"),
    (b"\x89HDF", "an HDF5 file; convert it to NIfTI"),
    (b"BZh", "a bzip2 file; unpack it, or compress it with gzip"),
    (b"\xfd7zXZ", "an xz file; unpack it, or compress it with gzip"),
)


def read_header(path: Path) -> Header:
    """Read the header of a NIfTI file, without its voxels. Raises DataError."""
    return parse_header(path, _first(path, _chunks(path))[0])


def read_nifti(path: Path) -> tuple[Header, np.ndarray, str]:
    """Header, voxels as stored (before slope and intercept) and SHA-256 of the uncompressed file.

    Raises DataError.
    """
    notes: list[str] = []
    chunks = _chunks(path, notes)
    head, rest = _first(path, chunks)
    header = parse_header(path, head)
    _refuse_implausible(path, header)
    expected = header.num_bytes
    content, found, digest = bytearray(expected), 0, hashlib.sha256()

    def keep(block: bytes) -> None:
        nonlocal found
        wanted = block[: max(0, expected - found)]
        content[found : found + len(wanted)] = wanted
        found += len(block)
        digest.update(block)

    try:
        keep(rest)
        for block in chunks:
            keep(block)
    except EOFError:
        raise _truncated(path, found, expected) from None
    if found < expected:
        raise _truncated(path, found, expected)
    voxels = np.frombuffer(content, header.dtype, offset=header.offset).reshape(header.shape, order="F")
    if found > expected:
        if header.bits:
            more = f"{found - expected} bytes more than the data type needs"
            contradiction = f"{header.dtype.name} voxels, {header.bits} bits per voxel, and {more}"
            raise DataError(path, f"the header contradicts itself: {contradiction}", "write the file again")
        notes.append(f"{found - expected} bytes follow the voxels and were ignored")
    if notes:
        header = replace(header, warnings=(*header.warnings, *notes))
    return header, voxels, digest.hexdigest()


def nifti_bytes(image: nibabel.Nifti1Image) -> bytes:
    """The content of a .nii.gz file, the same every time."""
    return gzip.compress(image.to_bytes(), compresslevel=1, mtime=0)


def content_sha256(path: Path) -> str:
    """SHA-256 of the uncompressed file, as from `read_nifti`, without holding the file in memory.

    Raises DataError.
    """
    digest = hashlib.sha256()
    try:
        for block in _chunks(path):
            digest.update(block)
    except EOFError:
        raise DataError(path, "truncated", _FETCH) from None
    return digest.hexdigest()


def _truncated(path: Path, found: int, expected: int) -> DataError:
    what = f"the header requires {expected} bytes, the file has {found}"
    if found >= expected:
        what = "the gzip stream ends before its checksum"
    return DataError(path, f"truncated: {what} ({path.stat().st_size} bytes on disk)", _FETCH)


def _refuse_implausible(path: Path, header: Header) -> None:
    size = path.stat().st_size
    limit = size * _MAX_DEFLATE_RATIO if path.name.endswith(".gz") else size
    if header.num_bytes > limit:
        voxels = f"{'x'.join(map(str, header.shape))} {header.dtype.name} voxels"
        needed = f"{header.num_bytes} bytes ({voxels}), and a file of {size} bytes cannot hold them"
        raise DataError(path, f"truncated, or the header is wrong: it requires {needed}", _FETCH)


def _chunks(path: Path, notes: list[str] | None = None) -> Iterator[bytes]:
    """The uncompressed content, block by block.

    Raises DataError if not NIfTI, EOFError for a truncated gzip stream.

    notes  receives a warning of trailing bytes after the gzip stream, which are ignored, as gzip itself does
    """
    with os.fdopen(open_regular(path), "rb") as file:
        first = file.read(_CHUNK)
        _refuse_other_formats(path, first)
        blocks = iter(lambda: file.read(_CHUNK), b"")
        if path.name.endswith(".nii"):
            yield first
            yield from blocks
            return
        inflater = zlib.decompressobj(31)
        block = first
        while True:
            try:
                yield inflater.decompress(block, _CHUNK)
            except zlib.error as error:
                reason = f"near byte {file.tell() - len(block)} ({str(error).rpartition(': ')[2]})"
                raise DataError(path, f"damaged gzip {reason}", _FETCH) from None
            if inflater.eof:
                block = inflater.unused_data.lstrip(b"\0")  # tapes and some archives pad with zeros
                while len(block) < 2 and (more := next(blocks, b"")):
                    block = (block + more).lstrip(b"\0")
                if not block.startswith(b"\x1f\x8b"):
                    num = len(block) + sum(map(len, blocks))
                    if num and notes is not None:
                        notes.append(f"{num} bytes follow the gzip stream and were ignored")
                    return
                inflater = zlib.decompressobj(31)
                continue
            block = inflater.unconsumed_tail or next(blocks, b"")
            if not block:
                yield inflater.flush()
                raise EOFError


def _refuse_other_formats(path: Path, first: bytes) -> None:
    """DataError unless the name and the first bytes are those of a NIfTI file."""
    if not first:
        raise DataError(path, "the file is empty (0 bytes)", "fetch it again")
    if path.suffix == ".npz":
        remedy = "if it is from MedMNIST, prepare its folder with the source medmnist"
        raise DataError(path, "is a NumPy archive", remedy)
    for magic, what in _FOREIGN:
        if first.startswith(magic):
            raise DataError(path, f"is {what}")
    if first[128:132] == b"DICM":
        raise DataError(path, "is a DICOM file", "read its folder with the source dicom")
    if first.lstrip()[:1] == b"<":
        raise DataError(path, "is an HTML or XML page, perhaps of a failed download", _FETCH)
    is_gzip = first[:2] == b"\x1f\x8b"
    if path.name.endswith(".nii.gz") and not is_gzip:
        if size_of_header(first) is not None:
            raise DataError(path, "is named .nii.gz but is an uncompressed NIfTI file", "rename it to .nii")
        raise DataError(path, "is named .nii.gz but is not a gzip file", "fetch it again")
    if path.name.endswith(".nii") and is_gzip:
        raise DataError(path, "is named .nii but is gzip-compressed", "rename it to .nii.gz")
    if not path.name.endswith((".nii", ".nii.gz")):
        is_upper_case = path.name.lower().endswith((".nii", ".nii.gz"))
        remedy = "rename it with a lower-case suffix" if is_upper_case else "convert it to NIfTI"
        raise DataError(path, "is not named .nii or .nii.gz", remedy)


def _first(path: Path, chunks: Iterator[bytes]) -> tuple[bytes, bytes]:
    """Enough bytes for a header, and all bytes read so far."""
    read = b""
    try:
        for block in chunks:
            read += block
            if len(read) >= 544:
                break
    except EOFError:
        pass
    if read.startswith(b"\x1f\x8b"):  # a gzip file named .nii has already been refused
        remedy = "decompress it once, with gzip -dc FILE > NEW.nii.gz"
        raise DataError(path, "is compressed with gzip twice", remedy)
    if len(read) < 348:
        raise DataError(path, f"truncated: {len(read)} bytes, but a NIfTI header has 348", _FETCH)
    return read[:540], read
