"""Which scans of a file or folder are to be segmented, and where their labels go."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nibabel
from nibabel.filebasedimages import ImageFileError

from medcl3d.data.nifti import content_sha256
from medcl3d.data.walk import VOLUMES, files_under, unread
from medcl3d.errors import ConfigError, DataError, MachineError

FIRST_TAGS = (b"\x02\x00\x00\x00", b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00")  # of DICOM without a preamble
OTHER_FORMATS = (".mha", ".mhd", ".nrrd", ".nhdr", ".hdr", ".img", ".mgz", ".mgh", ".dcm", ".npy", ".npz", ".gz", ".zip", ".png")


@dataclass(frozen=True)
class Asked:
    """One scan to be segmented: its name below the target, what it is called in messages, where it lies, where its labels go."""

    name: str
    shown: str
    path: Path
    output: Path

    def files(self, probabilities: bool) -> list[Path]:
        """What is written of it."""
        return [self.output, _probabilities_of(self.output)] if probabilities else [self.output]


@contextmanager
def scans_of(target: Path, out: Path, say: Callable[[str], None]) -> Iterator[tuple[list[Asked], list[str]]]:
    """What is to be segmented, and what was wrong with others; DICOM series are NIfTI files meanwhile. `say`: what was passed over.

    DataError: there is nothing to segment. ConfigError: `out` is no place for the labels.
    """

    def asked(name: str, path: Path) -> Asked:
        return Asked(name, _shown(name, path, target), path, _output(out, target, name))

    if not target.exists():
        raise DataError(f"{target}: there is no such file or folder")
    if not target.is_dir():
        yield [asked(target.name, target)], []
        return
    closed: list[OSError] = []
    paths = list(files_under(target, closed.append))
    for note in unread(target, (), closed):
        say(note)
    volumes = [(path.as_posix(), target / path) for path in paths if is_volume(path.name)]
    rest = [path for path in paths if not is_volume(path.name)]
    others = [path.as_posix() for path in rest if not _is_dicom(target / path)]
    if others:
        say(f"{len(others)} files are neither NIfTI nor DICOM and were passed over: {', '.join(others[:10])}")
    with tempfile.TemporaryDirectory(prefix="medcl3d-") as raw:
        wanted = len(others) < len(rest) or not volumes
        found, faults = _series(target, Path(raw), len(volumes), len(others), say) if wanted else ([], [])
        yield [asked(name, path) for name, path in (*volumes, *found)], faults


def _series(
    target: Path, raw: Path, num_volumes: int, num_others: int, say: Callable[[str], None]
) -> tuple[list[tuple[str, Path]], list[str]]:
    """The DICOM series of a folder as NIfTI files, and what was wrong with others."""
    from medcl3d.data.sources.dicom import dicom

    try:
        manifest = dicom(target, raw)
    except (DataError, MachineError) as error:
        if not num_volumes:
            raise
        say(f"{error}; the NIfTI files are taken alone")  # a scout or a report beside the volumes is no fault of theirs
        return [], []
    for note in manifest.notes:
        if not note.startswith(f"{num_volumes + num_others} files are not DICOM images"):  # those that were told already
            say(note)
    rows = manifest.table[~manifest.table["scan"].isin(list(manifest.faults))]
    return [(path, manifest.locate(path)) for path in rows["path"]], list(manifest.faults.values())


def _is_dicom(path: Path) -> bool:
    """By the mark behind the preamble; where an old archive wrote none, by its name, or by the first tag."""
    if not path.is_file():  # a pipe would block
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
    """By its name."""
    return name.lower().endswith(VOLUMES)


def _stem(name: str) -> str:
    """A name without .nii or .nii.gz."""
    return re.sub(r"\.nii(\.gz)?$", "", name, flags=re.IGNORECASE)


def _shown(name: str, path: Path, target: Path) -> str:
    """A file as it lies there, or a series, whose file is there only for a while."""
    return str(path) if path.is_relative_to(target) else f"{target}: series {_stem(name)}"


def _output(out: Path, target: Path, name: str) -> Path:
    if not is_volume(out.name):
        if out.suffix.lower() in OTHER_FORMATS and not out.is_dir():
            raise ConfigError(f"--out = {out}: labels are written as NIfTI; give a name that ends in .nii.gz, or a folder")
        return out / f"{_stem(name)}.nii.gz"
    if not out.name.endswith(VOLUMES):
        raise ConfigError(f"--out = {out}: write .nii.gz in small letters, as the files have that are read")
    if target.is_dir():
        raise ConfigError(f"--out = {out}: {target} is a folder of scans; give a folder for their labels")
    return out


def _probabilities_of(output: Path) -> Path:
    return output.with_name(f"{_stem(output.name)}_probabilities.nii.gz")


def stamp_of(one: Asked, identity: str) -> str:
    """What the header of a label map says of its origin: a hash of the run and of the scan's content. DataError of a scan that is none."""
    return f"medcl3d {hashlib.sha256(f'{identity} {content_sha256(one.path)}'.encode()).hexdigest()}"  # 72 of the 80 bytes of `descrip`


def missing(asked: Sequence[Asked], identity: str, probabilities: bool, force: bool) -> list[Asked]:
    """The scans that are still to be segmented: not those whose files an earlier call wrote; all of them with `force`.

    ConfigError where a file would take the place of a scan, of the labels of another one, or (without `force`) of a file that this
    run did not make of this scan.
    """
    of: dict[Path, Asked] = {}
    for one in asked:
        for file in one.files(probabilities):
            if file in of:
                raise ConfigError(f"--out: {of[file].name} and {one.name} would both become {file}; rename one, or segment them apart")
            of[file] = one
    own = {one.path.resolve() for one in asked} & {file.resolve() for file in of}
    if own:
        raise ConfigError(f"--out: {min(own)} is a scan itself; give another folder")
    if force:
        return list(asked)
    there = {file for file in of if file.exists()}
    foreign = [file for one in asked for file in _foreign([f for f in one.files(probabilities) if f in there], one, identity)]
    if foreign:
        what = f"{len(foreign)} files are there already, as {foreign[0]}, that this run did not make of these scans"
        raise ConfigError(f"--out: {what}; give another place, or --force to replace them")
    return [one for one in asked if not there.issuperset(one.files(probabilities))]


def _foreign(there: Sequence[Path], one: Asked, identity: str) -> list[Path]:
    """Those of a scan's files that this run did not write of it. The scan is read only where one is there."""
    if not there:
        return []
    try:
        stamp = stamp_of(one, identity)
    except DataError:  # a scan that cannot be read now
        return list(there)
    return [file for file in there if _stamp_in(file) != stamp]


def _stamp_in(file: Path) -> str:
    """What a file's header says of its origin; "" where it is no NIfTI file."""
    try:
        return cast(str, cast(Any, nibabel.load(file)).header["descrip"].item().decode()) if file.is_file() else ""
    except (ImageFileError, OSError, EOFError, KeyError, ValueError):  # of another program
        return ""
