"""The dry run of `medcl3d prepare`: report work and obstacles without writing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from medcl3d.core.errors import DataError, MachineError
from medcl3d.core.notes import without_names
from medcl3d.datasets.dicom.series import Series
from medcl3d.datasets.manifest import Manifest
from medcl3d.io.array_file import import_blosc2
from medcl3d.io.disk_space import format_size, free_bytes, require_writable
from medcl3d.io.nifti import read_header
from medcl3d.io.nifti_header import Header
from medcl3d.io.progress import titled_bar
from medcl3d.io.regular_file import why_absent
from medcl3d.io.walk import files_under
from medcl3d.preprocessing.finish import split_of
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.output_folder import refuse_foreign
from medcl3d.preprocessing.prepare import plan_preparation
from medcl3d.preprocessing.read_scan import num_channels
from medcl3d.preprocessing.scan_task import ScanTask

Say = Callable[[str], None]
BYTES_PER_VOXEL = 2  # of a stored image, and of a stored label map
MAX_FAULTS = 10  # reported
NO_SOURCE_FILE = "the source could not convert it to a file"


def dry_run(
    source: str, root: Path | None, out: Path, given: Mapping[str, Any], options: PrepareOptions, say: Say
) -> None:
    """Report what a preparation would do, from the manifest and the headers; voxels are not validated.

    DataError if more scans fail than `max_bad_fraction` allows, or if the split is invalid; MachineError if
    the disk is too small or cannot be written.
    """
    if options.store == "blosc2":
        import_blosc2("store=blosc2")
    refuse_foreign(out, root)
    manifest, tasks = plan_preparation(source, root, given, options)
    if options.hash_ids and "hash_ids" not in given:  # a source with this field redacts names itself
        notes = tuple(map(without_names, manifest.notes))
        manifest = replace(manifest, notes=notes, faults=dict.fromkeys(manifest.faults, NO_SOURCE_FILE))
    _report_collection(manifest, tasks, say)
    defaults = asdict(PrepareOptions())
    changed = [f"{name}={value}" for name, value in asdict(options).items() if value != defaults[name]]
    say(f"options: {', '.join(changed) or 'defaults'}")
    missing = [] if tasks is None else manifest.missing()
    faults, num_bytes = dict(manifest.faults), sum(map(_series_bytes, manifest.unwritten.values()))
    for task, size, fault in _headers([task for task in tasks or () if task.scan not in faults], options):
        num_bytes += size
        if fault:
            faults[task.scan] = fault
    if missing:
        count = f"{len(missing)} files of the manifest are missing"
        say(count if options.hash_ids else manifest.describe_missing(missing))
    for fault in [*faults.values()][:MAX_FAULTS]:
        say(fault)
    allowed = max(1, int(options.max_bad_fraction * len(manifest)))
    if len(faults) > allowed:
        first = next(iter(faults.values()))
        raise DataError(f"{len(faults)} of {len(manifest)} scans would be refused, {allowed} may be: {first}")
    split, moves = split_of(manifest.table[~manifest.table["scan"].isin(list(faults))], options, out)
    for line in moves:
        say(line)
    say("patients: " + ", ".join(f"{len(patients)} {side}" for side, patients in split.parts.items()))
    require_writable(out, "--out")
    num_bytes = _bytes_under(root) if tasks is None else num_bytes
    _check_disk_space(out, num_bytes, options, tasks is not None, say)
    prepared = f"{len(manifest) - len(faults)} scans would be prepared in {out}"
    say(f"{prepared}, {len(faults)} refused; nothing was written")


def _report_collection(manifest: Manifest, tasks: Sequence[ScanTask] | None, say: Say) -> None:
    table = manifest.table
    for note in manifest.notes:
        say(note)
    labelled = int((table["label"] != "").sum())
    say(f"{len(table)} scans of {table['patient'].nunique()} patients, {labelled} with a label map")
    kinds = {task.scan: f" as {task.kind}" for task in tasks or ()}
    modalities = zip(table["scan"], table["modality"], strict=True)
    counts = Counter(f"{modality}{kinds.get(scan, '')}" for scan, modality in modalities)
    say("modalities: " + ", ".join(f"{name}: {count}" for name, count in sorted(counts.items())))


def _headers(tasks: Sequence[ScanTask], options: PrepareOptions) -> Iterator[tuple[ScanTask, int, str]]:
    """For each scan, its bytes in a store without compression or cropping, and why it is refused, or ""."""
    with titled_bar("reading headers", len(tasks)) as advance:
        for task in tasks:
            files = [path for path in (task.image, task.label, task.atlas) if path is not None]
            try:
                missing = [path for path in files if not path.exists()]
                if missing:
                    raise DataError(missing[0], why_absent(missing[0]))
                yield task, _stored_bytes(task, read_header(task.image), options), ""
            except DataError as error:
                fault = str(error)
                for path in files if options.hash_ids else ():
                    fault = fault.replace(str(path), "a file")
                yield task, 0, fault
            advance("reading headers")


def _stored_bytes(task: ScanTask, header: Header, options: PrepareOptions) -> int:
    size = np.array(header.shape[:3], dtype=float)
    if task.spacing_mm is not None:
        # Along the axes of the file, not of the world; the product is the same.
        own_mm = header.spacing_mm if task.assume_spacing_mm is None else np.array(task.assume_spacing_mm)
        size = np.ceil(size * own_mm / np.array(task.spacing_mm))
    channels = num_channels(task.image, header.shape, options.channels, task.volume)
    return int(size.prod()) * BYTES_PER_VOXEL * (channels + (task.label is not None))


def _series_bytes(series: Series) -> int:
    """Bytes of a DICOM series as a NIfTI file without compression and in a store."""
    return 2 * BYTES_PER_VOXEL * len(series.slices) * math.prod(series.slices[0].shape)


def _bytes_under(root: Path | None) -> int:
    """Bytes of all files under `root`, an estimate of the voxels of a source that does not read NIfTI."""
    if root is None or not root.exists():
        return 0
    if not root.is_dir():
        return root.stat().st_size
    return sum((root / path).stat().st_size for path in files_under(root))


def _check_disk_space(out: Path, num_bytes: int, options: PrepareOptions, is_exact: bool, say: Say) -> None:
    """Compare the size of the store with the free disk space."""
    present = _bytes_under(out / "store") if (out / "store").is_dir() else 0
    if present:
        contained = f"{out}: already contains {format_size(present)} of scans"
        say(f"{contained}; unchanged scans are not prepared again")
    size, free = format_size(num_bytes), f"{format_size(free_bytes(out))} are free"
    if not is_exact:
        raw = f"files in {out / 'raw'} and the store take about as much each"
        say(f"the source has {size}; {raw}; {free}" if num_bytes else free)
        return
    smaller = options.crop != "none" or options.store != "npy"
    say(f"the store would take {'at most' if smaller else 'about'} {size}, {free}")
    if num_bytes - present > free_bytes(out) and not smaller:
        raise MachineError(out, f"{size} are needed, {free}", "free disk space, or choose another folder")
