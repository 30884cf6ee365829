"""All files below a folder, in an order that does not depend on the disk, each folder once; and what among them is not read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path

from medcl3d.data.notes import Counted
from medcl3d.errors import DataError

VOLUMES = (".nii.gz", ".nii")
# Scans all the same. A pair of .hdr and .img, or of .mhd and .raw, is one of them.
CONVERTIBLE = (
    ".mha", ".mhd", ".nrrd", ".nhdr", ".img", ".img.gz", ".mgz", ".mgh", ".mnc", ".gipl", ".npy",
    ".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip",
)  # fmt: skip
DICOM = (".dcm", ".dicom", ".ima")


def files_under(root: Path, closed: Callable[[OSError], object] | None = None) -> Iterator[Path]:
    """Paths relative to `root`, sorted. Links to folders are followed once, so that a loop of them ends; hidden files are passed over.

    closed  is told of folders that cannot be read, as `os.walk` does

    Raises DataError where `root` is no folder.
    """
    for folder, names in folders_under(root, closed):
        inside = Path(folder)
        yield from (inside / name for name in names)


def folders_under(root: Path, closed: Callable[[OSError], object] | None = None) -> Iterator[tuple[str, list[str]]]:
    """The folders below `root` as ``a/b`` ("" for itself) with the names of their files, as `files_under` has them and cheaper.

    What `medcl3d prepare` wrote below it is passed over: files and links there were made of those that lie around it.
    """
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder")
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
    """The NIfTI files below a folder, as `files_under` gives them, and notes on what looks like a scan and is not among them."""
    closed: list[OSError] = []
    files = list(files_under(root, closed.append))
    volumes = [path for path in files if path.name.endswith(VOLUMES)]
    return volumes, unread(root, files, closed)


def unread(root: Path, files: Iterable[Path], closed: Iterable[OSError] = ()) -> list[str]:
    """Notes on files below `root` that look like scans and are no NIfTI by their names, and on folders that could not be read."""
    return not_taken(root, (path for path in files if not path.name.endswith(VOLUMES)), closed)


def not_taken(
    root: Path,
    files: Iterable[Path],
    closed: Iterable[OSError] = (),
    *,
    taken: Container[str] = (),
    why: Callable[[str], str] = lambda _: "NIfTI files are not taken",
) -> list[str]:
    """Notes on what a source found below `root` and did not take: NIfTI files, scans in other formats, folders that cannot be read.

    files   relative to `root`
    taken   paths of images, label maps and affines that are in the manifest
    why     a path of a NIfTI file that is not taken -> the reason, which follows the count
    """
    volumes, others, folders = Counted(), Counted(), Counted()
    for path in files:
        if path.as_posix() in taken:
            continue
        if path.name.endswith(VOLUMES):
            volumes.add(why(path.as_posix()), str(path))
        elif what := _looks_like(root / path):
            others.add(what, str(path))
    for error in closed:
        folders.add(f"folders cannot be read: {error.strerror or error}", os.path.relpath(error.filename or root, root))
    return [*volumes.notes(), *others.notes(), *folders.notes()]


def _looks_like(path: Path) -> str:
    """What a file seems to be, and what would do; "" for what seems to be no scan."""
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
    """By the mark after its preamble: slices often have no ending, or a UID in its place."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
