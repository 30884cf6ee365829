"""List files under a folder in a reproducible order, each folder once, and report scans that are not read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path

from medcl3d.core.errors import DataError
from medcl3d.core.notes import Counted

VOLUMES = (".nii.gz", ".nii")
# Other formats of scans. A pair of .hdr and .img, or of .mhd and .raw, counts once.
CONVERTIBLE = (
    ".mha", ".mhd", ".nrrd", ".nhdr", ".img", ".img.gz", ".mgz", ".mgh", ".mnc", ".gipl", ".npy",
    ".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip",
)  # fmt: skip
DICOM = (".dcm", ".dicom", ".ima")


def files_under(root: Path, closed: Callable[[OSError], object] | None = None) -> Iterator[Path]:
    """Paths relative to `root`, sorted.

    Each folder is visited once, so that loops of links end; hidden files are skipped.

    closed  called with the error of each unreadable folder, like `onerror` of `os.walk`

    Raises DataError if `root` is not a folder.
    """
    for folder, names in folders_under(root, closed):
        yield from (Path(folder, name) for name in names)


def folders_under(
    root: Path, closed: Callable[[OSError], object] | None = None
) -> Iterator[tuple[str, list[str]]]:
    """The folders under `root` as ``a/b`` ("" for itself) with their file names: `files_under`, but faster.

    Output folders of `medcl3d prepare` are skipped, since their files and links were made from the others.
    """
    if not root.is_dir():
        raise DataError(root, "there is no such folder")
    seen: set[tuple[int, int]] = set()
    top = str(root)
    for folder, inner, names in os.walk(top, followlinks=True, onerror=closed):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen or (folder != top and "preparing.json" in names):
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        yield folder[len(top) :].strip(os.sep), sorted(name for name in names if not name.startswith("."))


def volumes_under(root: Path) -> tuple[list[Path], list[str]]:
    """The NIfTI files under a folder, from `files_under`, and notes on scans in other formats."""
    closed: list[OSError] = []
    files = list(files_under(root, closed.append))
    volumes = [path for path in files if path.name.endswith(VOLUMES)]
    return volumes, unread(root, files, closed)


def unread(root: Path, files: Iterable[Path], closed: Iterable[OSError] = ()) -> list[str]:
    """Notes on files under `root` that look like scans but are not named NIfTI, and on unreadable folders."""
    return skipped_notes(root, (path for path in files if not path.name.endswith(VOLUMES)), closed)


def skipped_notes(
    root: Path,
    files: Iterable[Path],
    closed: Iterable[OSError] = (),
    *,
    taken: Container[str] = (),
    why: Callable[[str], str] = lambda _: "NIfTI files are not used",
) -> list[str]:
    """Notes on files under `root` that a source does not use: NIfTI files, other formats, unreadable folders.

    files   relative to `root`
    taken   paths of images, label maps and affines in the manifest
    why     path of an unused NIfTI file -> the reason, which follows the count
    """
    volumes, others, folders = Counted(), Counted(), Counted()
    for path in files:
        if path.as_posix() in taken:
            continue
        if path.name.endswith(VOLUMES):
            volumes.add(why(path.as_posix()), str(path))
        elif problem := _other_format(root / path):
            others.add(problem, str(path))
    for error in closed:
        name = os.path.relpath(error.filename or root, root)
        folders.add(f"folders cannot be read: {error.strerror or error}", name)
    return [*volumes.notes(), *others.notes(), *folders.notes()]


def _other_format(path: Path) -> str:
    """The format of a scan that is not read, and the remedy; "" if the file does not look like a scan."""
    name = path.name.lower()
    for ending in VOLUMES:
        if name.endswith(ending):
            return f"files *{path.name[-len(ending) :]} are not read; rename them to *{ending}"
    if name.endswith(".npz"):
        return "NumPy archives are not read; prepare those of MedMNIST with the source medmnist"
    for ending in CONVERTIBLE:
        if name.endswith(ending):
            return f"files *{ending} are not read; convert them to .nii.gz"
    if name.endswith(DICOM) or (re.search(r"\.\d*$|^[^.]*$", name) and _is_dicom(path)):
        return "DICOM files are not read; prepare them with the source dicom"
    return ""


def _is_dicom(path: Path) -> bool:
    """Whether a file has the DICOM prefix; slices often have no suffix, or part of a UID in its place."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
