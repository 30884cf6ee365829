"""`medcl3d prepare --check` and `medcl3d check --check`: what would be done and what stands in the way, with nothing written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from medcl3d.data.array_file import import_blosc2
from medcl3d.data.check import num_channels
from medcl3d.data.finish import refuse_foreign, refuse_report_over, split_of
from medcl3d.data.known_sets import as_size
from medcl3d.data.manifest import Manifest
from medcl3d.data.nifti import read_header
from medcl3d.data.nifti_header import Header
from medcl3d.data.notes import without_names
from medcl3d.data.options import PrepareOptions
from medcl3d.data.place import manifest_at, shared_out
from medcl3d.data.prepare import look
from medcl3d.data.regular_file import why_absent
from medcl3d.data.room import free_bytes, refuse_unwritable
from medcl3d.data.scan import ScanTask
from medcl3d.data.store import Store
from medcl3d.data.walk import files_under
from medcl3d.data.workers import bar
from medcl3d.errors import DataError, MachineError

Say = Callable[[str], None]
BYTES_A_VOXEL = 2  # of a stored image, and of a stored label map
SHOWN = 10  # faults
NO_FILE = "its source could not make a file of it"


def forecast(source: str, root: Path | None, out: Path, given: Mapping[str, Any], options: PrepareOptions, say: Say) -> None:
    """Say what a preparation would do, by the manifest and the headers; what is wrong with voxels, `medcl3d check` finds.

    DataError where more scans are bad than may be, or the split does not hold; MachineError where the disk is too small or
    cannot be written.
    """
    if options.store == "blosc2":
        import_blosc2("store=blosc2")
    refuse_foreign(out, root)
    manifest, tasks = look(source, root, given, options)
    if options.hash_ids and "hash_ids" not in given:  # a source with such a field hides names itself
        manifest = replace(manifest, notes=tuple(map(without_names, manifest.notes)), faults=dict.fromkeys(manifest.faults, NO_FILE))
    _say_collection(manifest, tasks, say)
    _say_options(options, say)
    missing = [] if tasks is None else manifest.missing()
    faults, num_bytes = dict(manifest.faults), 0
    for task, size, fault in _headers([task for task in tasks or () if task.scan not in faults], options):
        num_bytes += size
        if fault:
            faults[task.scan] = fault
    if missing:
        say(f"{len(missing)} files of the manifest are missing" if options.hash_ids else manifest.say_missing(missing))
    for fault in [*faults.values()][:SHOWN]:
        say(fault)
    allowed = max(1, int(options.max_bad_fraction * len(manifest)))
    if len(faults) > allowed:
        raise DataError(f"{len(faults)} of {len(manifest)} scans would be refused, {allowed} may be: {next(iter(faults.values()))}")
    split, moves = split_of(manifest.table[~manifest.table["scan"].isin(list(faults))], options, out)
    for line in moves:
        say(line)
    say("patients: " + ", ".join(f"{len(patients)} {side}" for side, patients in split.parts.items()))
    refuse_unwritable(out, "--out")
    _check_room(out, _bytes_under(root) if tasks is None else num_bytes, options, is_exact=tasks is not None, say=say)
    say(f"{len(manifest) - len(faults)} scans would be prepared in {out}, {len(faults)} refused; nothing was written")


def forecast_check(target: Path, report: Path | None, given: Mapping[str, Any], say: Say) -> None:
    """Say what `medcl3d check` would read. ConfigError, DataError as there; MachineError where the report cannot be written."""
    if not target.exists():
        raise DataError(f"{target}: there is no such file or folder")
    choice, _ = shared_out(target, dict(given))
    if report is not None:
        refuse_report_over(report)
        refuse_unwritable(report, "--report", is_file=report.suffix == ".csv")
    if choice is None:
        store = Store.open(target)
        say(f"{len(store.scans)} scans of the store {target} would be held against their hashes and their sources; nothing was read")
        return
    manifest = manifest_at(target, choice)
    _say_collection(manifest, None, say)
    missing = manifest.missing()
    if missing:
        say(manifest.say_missing(missing))
    say(f"{len(manifest)} scans would be read; nothing was")


def _say_collection(manifest: Manifest, tasks: Sequence[ScanTask] | None, say: Say) -> None:
    table = manifest.table
    for note in manifest.notes:
        say(note)
    labelled = int((table["label"] != "").sum())
    say(f"{len(table)} scans of {table['patient'].nunique()} patients, {labelled} with a label map")
    kinds = {task.scan: f" as {task.kind}" for task in tasks or ()}
    counts = Counter(f"{modality}{kinds.get(scan, '')}" for scan, modality in zip(table["scan"], table["modality"], strict=True))
    say("modalities: " + ", ".join(f"{name}: {count}" for name, count in sorted(counts.items())))


def _say_options(options: PrepareOptions, say: Say) -> None:
    plain = asdict(PrepareOptions())
    changed = [f"{name}={value}" for name, value in asdict(options).items() if value != plain[name]]
    say(f"options: {', '.join(changed) or 'all as they are by default'}")


def _headers(tasks: Sequence[ScanTask], options: PrepareOptions) -> Iterator[tuple[ScanTask, int, str]]:
    """Of each scan: the bytes that it takes in a store which is neither compressed nor cropped, and why it would be refused, or ""."""
    with bar("reading headers", len(tasks)) as advance:
        for task in tasks:
            files = [path for path in (task.image, task.label, task.atlas) if path is not None]
            try:
                gone = [path for path in files if not path.exists()]
                if gone:
                    raise DataError(f"{gone[0]}: {why_absent(gone[0])}")
                yield task, _bytes_of(task, read_header(task.image), options), ""
            except DataError as error:
                yield task, 0, _nameless(str(error), files) if options.hash_ids else str(error)
            advance("reading headers")


def _nameless(text: str, files: Sequence[Path]) -> str:
    for path in files:
        text = text.replace(str(path), "a file")
    return text


def _bytes_of(task: ScanTask, header: Header, options: PrepareOptions) -> int:
    size = np.array(header.shape[:3], dtype=float)
    if task.spacing_mm is not None:
        # Per axis of the file and not of the world: their product is the same.
        size = np.ceil(size * np.array(task.assume_spacing_mm or header.spacing_mm) / np.array(task.spacing_mm))
    channels = num_channels(task.image, header.shape, options.channels, task.volume)
    return int(size.prod()) * BYTES_A_VOXEL * (channels + (task.label is not None))


def _bytes_under(root: Path | None) -> int:
    """Of all files that a source would read, for one whose scans are no files yet: their voxels take about as much."""
    if root is None or not root.exists():
        return 0
    return sum((root / path).stat().st_size for path in files_under(root)) if root.is_dir() else root.stat().st_size


def _check_room(out: Path, num_bytes: int, options: PrepareOptions, *, is_exact: bool, say: Say) -> None:
    """Hold what a store takes against the room on the disk."""
    there = _bytes_under(out / "store") if (out / "store").is_dir() else 0
    if there:
        say(f"{out}: holds {as_size(there)} of scans already; those that are unchanged are not prepared again")
    free = free_bytes(out)
    if not is_exact:
        size = f"the source holds {as_size(num_bytes)}, of which files in {out / 'raw'} and the store each take about as much; "
        say(f"{size if num_bytes else ''}{as_size(free)} are free")
        return
    smaller = options.crop != "none" or options.store != "npy"
    say(f"the store would take {'at most' if smaller else 'about'} {as_size(num_bytes)}, {as_size(free)} are free")
    if num_bytes - there > free and not smaller:
        raise MachineError(f"{out}: {as_size(num_bytes)} are needed, {as_size(free)} are free; free some, or choose another place")
