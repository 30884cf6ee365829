"""Scans of a file or folder to segment, and the paths of their label maps."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medcl3d.core.errors import ConfigError, DataError, MachineError
from medcl3d.core.notes import without_names
from medcl3d.io.nifti import content_sha256
from medcl3d.io.walk import VOLUMES, files_under, unread

# First tags of DICOM files without a preamble.
FIRST_TAGS = (b"\x02\x00\x00\x00", b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00")
OTHER_FORMATS = (".mha", ".mhd", ".nrrd", ".nhdr", ".hdr", ".img", ".mgz", ".mgh", ".dcm", ".npy", ".npz",
                 ".gz", ".zip", ".png")  # fmt: skip
FIXED_OPTIONS = ("nonfinite", "channels", "assume_spacing_mm", "spacing_mm", "intensity", "window_hu",
                 "value_range", "percentiles", "store_as")  # fmt: skip
"""Options of `prepare` that a trained network fixes."""


@dataclass(frozen=True)
class InputScan:
    """One scan to segment: relative name, name in messages, path of the scan, path of its label map."""

    name: str
    shown: str
    path: Path
    output: Path

    def files(self, probabilities: bool) -> list[Path]:
        """The files written for this scan."""
        return [self.output, _probabilities_of(self.output)] if probabilities else [self.output]


@contextmanager
def scans_of(
    target: Path, out: Path, say: Callable[[str], None]
) -> Iterator[tuple[list[InputScan], list[str]]]:
    """Find the scans to segment, and the faults of others. DICOM series become temporary NIfTI files.

    `say` receives notes on skipped files.
    DataError: no scan was found. ConfigError: `out` is not a valid path for label maps.
    """

    def input_scan(name: str, path: Path) -> InputScan:
        return InputScan(name, _shown(name, path, target), path, _output(out, target, name))

    if not target.exists():
        raise DataError(target, "file or folder does not exist")
    if not target.is_dir():
        yield [input_scan(target.name, target)], []
        return
    closed: list[OSError] = []
    paths = list(files_under(target, closed.append))
    for note in unread(target, (), closed):
        say(note)
    volumes = [(path.as_posix(), target / path) for path in paths if is_volume(path.name)]
    rest = [path for path in paths if not is_volume(path.name)]
    others = [path.as_posix() for path in rest if not is_dicom(target / path)]
    if others:
        say(f"{len(others)} files are neither NIfTI nor DICOM and were skipped: {', '.join(others[:10])}")
    with tempfile.TemporaryDirectory(prefix="medcl3d-") as raw:
        wanted = len(others) < len(rest) or not volumes
        found, faults = _series(target, Path(raw), len(volumes), len(others), say) if wanted else ([], [])
        yield [input_scan(name, path) for name, path in (*volumes, *found)], faults


def _series(
    target: Path, raw: Path, num_volumes: int, num_others: int, say: Callable[[str], None]
) -> tuple[list[tuple[str, Path]], list[str]]:
    """The DICOM series of a folder as NIfTI files, and the faults of others."""
    from medcl3d.datasets.dicom.files import NOT_DICOM
    from medcl3d.datasets.sources.dicom import dicom

    try:
        manifest = dicom(target, raw)
    except (DataError, MachineError) as error:
        if not num_volumes:
            raise
        # The DICOM files may be a scout or a report of these volumes.
        say(f"{error}; only the NIfTI files are used")
        return [], []
    for note in manifest.notes:
        if without_names(note) != f"{num_volumes + num_others} {NOT_DICOM}":  # reported already
            say(note)
    rows = manifest.table[~manifest.table["scan"].isin(list(manifest.faults))]
    return [(path, manifest.locate(path)) for path in rows["path"]], list(manifest.faults.values())


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM: by the prefix after the preamble, or without one by extension or first tag."""
    if not path.is_file():  # reading a pipe would block
        return False
    if path.suffix.lower() in (".dcm", ".ima"):
        return True
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError:
        return False
    return head[128:] == b"DICM" or head[:4] in FIRST_TAGS


def is_volume(name: str) -> bool:
    """Whether a file name is that of a NIfTI file."""
    return name.lower().endswith(VOLUMES)


def stem(name: str) -> str:
    """A name without .nii or .nii.gz."""
    return re.sub(r"\.nii(\.gz)?$", "", name, flags=re.IGNORECASE)


def _shown(name: str, path: Path, target: Path) -> str:
    """Name of a scan in messages: its path, or the DICOM series, whose NIfTI file is temporary."""
    return str(path) if path.is_relative_to(target) else f"{target}: series {stem(name)}"


def _output(out: Path, target: Path, name: str) -> Path:
    if not is_volume(out.name):
        if out.suffix.lower() in OTHER_FORMATS and not out.is_dir():
            raise ConfigError(
                "--out", out, "labels are written as NIfTI", "use a name that ends in .nii.gz, or a folder"
            )
        return out / f"{stem(name)}.nii.gz"
    if not out.name.endswith(VOLUMES):
        raise ConfigError("--out", out, "extension not in lower case", "use .nii.gz")
    if target.is_dir():
        raise ConfigError("--out", out, f"{target} is a folder of scans", "use a folder for their labels")
    return out


def _probabilities_of(output: Path) -> Path:
    return output.with_name(f"{stem(output.name)}_probabilities.nii.gz")


def origin_of(one: InputScan, identity: str) -> str:
    """A hash of the run and the scan's content. DataError if the scan is unreadable."""
    return hashlib.sha256(f"{identity} {content_sha256(one.path)}".encode()).hexdigest()


def origin_or_none(one: InputScan, identity: str) -> str | None:
    """As `origin_of`; None if the scan is unreadable."""
    with suppress(DataError):
        return origin_of(one, identity)
    return None


def missing(
    scans: Sequence[InputScan],
    identity: str,
    files_of: Callable[[InputScan], list[Path]],
    origin_in: Callable[[Path], str],
    force: bool,
) -> list[InputScan]:
    """The scans without files from an earlier call; all of them with `force`.

    files_of   the files of a scan; origin_in: the origin in a file, "" if there is none

    ConfigError if a file would overwrite a scan, a file of another scan, or (without `force`) a file that
    this run did not write for this scan.
    """
    of: dict[Path, InputScan] = {}
    for scan in scans:
        for file in files_of(scan):
            if file in of:
                problem = f"{of[file].name} and {scan.name} would both be written to {file}"
                remedy = "rename one, or process them separately"
                raise ConfigError(problem=problem, remedy=remedy, place="--out")
            of[file] = scan
    own = {scan.path.resolve() for scan in scans} & {file.resolve() for file in of}
    if own:
        raise ConfigError(problem=f"{min(own)} is an input scan", remedy="use another folder", place="--out")
    if force:
        return list(scans)
    existing = {file for file in of if file.exists()}
    foreign = []
    for scan in scans:
        files = [file for file in files_of(scan) if file in existing]
        origin = origin_or_none(scan, identity) if files else None  # reads the scan
        foreign += [file for file in files if origin is None or origin_in(file) != origin]
    if foreign:
        raise ConfigError(
            problem=f"{len(foreign)} files exist already that this run did not write for these scans, for "
            f"example {foreign[0]}",
            remedy="use another folder, or --force to replace them",
            place="--out",
        )
    return [scan for scan in scans if not existing.issuperset(files_of(scan))]


def reason_of(
    error: DataError, options: Mapping[str, Any], trained: str, one: InputScan | None = None
) -> str:
    """The fault of a scan. A remedy that is an option of `prepare`, which training has fixed, is replaced.

    options: those that the network was trained with; trained: what was trained, "run" or "encoder";
    one: the scan, to show its name instead of its path.
    """
    fixed = next((name for name in FIXED_OPTIONS if re.search(rf"\b{name}\b", error.remedy)), None)
    if fixed is not None:
        value = options.get("kind" if fixed == "intensity" else fixed)
        prepared = f"the {trained} was trained on scans prepared with {fixed} = {value}"
        error.remedy = f"{prepared}, so repair or leave out this scan"
    return str(error) if one is None else str(error).replace(str(one.path), one.shown)
