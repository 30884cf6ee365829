"""Prepare a store from a source: validate, normalise, write and report every scan."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from medcl3d.config.choices import parse_choice
from medcl3d.config.field_types import Choice
from medcl3d.core.errors import ConfigError, DataError, MachineError
from medcl3d.datasets.manifest import Manifest
from medcl3d.datasets.pseudonymise import pseudonymised
from medcl3d.datasets.sources import SOURCES
from medcl3d.datasets.volumes import VOLUME, split_volumes
from medcl3d.io.array_file import import_blosc2
from medcl3d.io.atomic import remove_partial_files
from medcl3d.io.nifti import read_header
from medcl3d.preprocessing.finish import Prepared, finish, write_report
from medcl3d.preprocessing.intensity_kind import kind_of
from medcl3d.preprocessing.options import PrepareOptions
from medcl3d.preprocessing.output_folder import open_folder, refuse_foreign
from medcl3d.preprocessing.scan_task import Outcome, ScanTask
from medcl3d.preprocessing.workers import run_tasks


def prepare(
    source: str,
    root: Path | None,
    out: Path,
    *,
    fields: Mapping[str, Any] | None = None,
    options: PrepareOptions | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Prepared:
    """Prepare a collection: write manifest.csv, report.csv, split.json, prepared.json and store/ into `out`.

    source  name of a source; `fields` are its options
    root    folder of its files; None for `simulated`, which then writes them to ``out/raw``

    Messages for the user go to `say`. Running it again prepares what is missing or changed. Raises
    ConfigError, MachineError, and DataError if more scans fail than `max_bad_fraction` allows (after the
    report is written).
    """
    from filelock import FileLock, Timeout

    options = options or PrepareOptions()
    choice = _choice(source, root, fields or {})
    if options.store == "blosc2":
        import_blosc2("store=blosc2")
    try:
        refuse_foreign(out, root)
        (out / "store").mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock", timeout=0):
            remove_partial_files(out)
            manifest: Manifest = SOURCES.build(choice, *_folders(source, root, out / "raw"))
            read = manifest.root if root is None or manifest.root != out / "raw" else Path(root)
            source_fields = json.loads(json.dumps(choice.fields))
            origin = {"name": choice.name, "fields": source_fields, "root": str(read.resolve())}
            if options.hash_ids and "hash_ids" not in choice.fields:  # a source with this field hashes itself
                manifest, origin["fields"]["hash_ids"] = pseudonymised(manifest, out / "raw"), True
            return _prepare(manifest, origin, out, options, say)
    except Timeout:
        remedy = "wait for it, or choose another"
        raise MachineError(out, "another process is preparing this folder", remedy) from None
    except OSError as error:
        path, reason = Path(str(error.filename or out)), error.strerror or error
        if not path.absolute().is_relative_to(out.absolute()):
            raise DataError(path, f"cannot be read: {reason}") from None
        raise MachineError(path, reason, "choose a folder that can be written") from None


def plan_preparation(
    source: str, root: Path | None, fields: Mapping[str, Any], options: PrepareOptions
) -> tuple[Manifest, list[ScanTask] | None]:
    """The manifest and the tasks of a preparation; writes nothing.

    Tasks are None if no file exists yet, and leave out the DICOM series of a table.
    """
    choice = _choice(source, root, fields)
    num_folders = len(_folders(source, root, Path()))
    # A source that may also read files has an optional folder for those that it writes.
    raw = [*signature(SOURCES.get(source)).parameters.values()][num_folders - 1]
    writes_scans = source == "simulated" or (num_folders > 1 and raw.default is raw.empty)
    folders = (None if source == "simulated" else root, None)[:num_folders]
    try:
        manifest: Manifest = SOURCES.build(choice, *folders)
        if writes_scans:
            return manifest, None
        manifest = split_volumes(manifest) if options.channels == "split" else manifest
        exists = ~manifest.table["scan"].isin(list(manifest.unwritten))
        return manifest, _tasks(replace(manifest, table=manifest.table[exists]), options)
    except OSError as error:
        raise DataError(error.filename or root, f"cannot be read: {error.strerror or error}") from None


def _folders(source: str, root: Path | None, raw: Path) -> tuple[Path, ...]:
    """The positional arguments of a source: the folder to read, and a folder for scans that it writes."""
    arguments = signature(SOURCES.get(source)).parameters.values()
    num_folders = sum(argument.kind is argument.POSITIONAL_OR_KEYWORD for argument in arguments)
    return (raw if root is None else Path(root), raw)[:num_folders]


def _choice(source: str, root: Path | None, fields: Mapping[str, Any]) -> Choice:
    """ConfigError for an unknown source, a wrong field, or if its folder is missing."""
    choice = parse_choice(SOURCES, source, fields, f"source {source}")
    if root is None and source != "simulated":
        place, remedy = f"source {source}", "only simulated generates its own files"
        raise ConfigError(problem="ROOT is missing", remedy=remedy, place=place)
    return choice


def _prepare(
    manifest: Manifest, origin: dict[str, Any], out: Path, options: PrepareOptions, say: Callable[[str], None]
) -> Prepared:
    missing = manifest.missing()
    for note in manifest.notes:  # before a possible error, since they may explain missing files
        say(note)
    if len(missing) > _allowed(manifest, options):
        correct = "" if len(manifest.links(missing)) == len(missing) else "; correct the paths"
        raise DataError(f"{manifest.describe_missing(missing)}{correct}, or raise max_bad_fraction")
    if options.channels == "split":
        num_notes = len(manifest.notes)
        manifest = split_volumes(manifest)
        for note in manifest.notes[num_notes:]:
            say(note)
    allowed = _allowed(manifest, options)
    outcomes = {scan: Outcome(scan, "refused", reason, ()) for scan, reason in manifest.faults.items()}
    tasks = [task for task in _tasks(manifest, options) if task.scan not in outcomes]
    open_folder(out, origin, {**tasks[0].options(), "store": options.store} if tasks else {}, say)
    if tasks:
        for note in _kinds(manifest, options):
            say(note)
        outcomes |= run_tasks(tasks, out / "store", options.workers, allowed - len(outcomes))
    write_report(out / "report.csv", manifest, outcomes)
    bad = [o for o in outcomes.values() if o.status == "refused"]
    if len(bad) > allowed:
        count = f"{len(bad)} of {len(manifest)} scans were refused, {allowed} may be"
        problem = f"{count}: {bad[0].reason} (all in {out / 'report.csv'})"
        raise DataError("", problem, "repair them, or raise max_bad_fraction")
    table = manifest.table[[outcomes[s].status == "ok" for s in manifest.table["scan"]]]
    if not len(table):
        reasons = [outcome.reason for outcome in outcomes.values()]
        raise DataError(out, f"no scan is left: {reasons[0]} ({len(reasons)} in {out / 'report.csv'})")
    return finish(out, manifest, table, origin, options, outcomes, say)


def _allowed(manifest: Manifest, options: PrepareOptions) -> int:
    """The number of scans that may be refused."""
    return max(1, int(options.max_bad_fraction * len(manifest)))


_NORMALISATIONS = {"ct": "a window in HU", "mri": "by the values of the body", "none": "values unchanged"}


def _kinds(manifest: Manifest, options: PrepareOptions) -> list[str]:
    """A note on the normalisation of each modality, if it follows from the modality's name."""
    if options.intensity != "auto":
        return []
    parts = []
    modalities = manifest.table["modality"].unique()
    for kind, how in _NORMALISATIONS.items():
        names = [name or "no modality" for name in modalities if kind_of(name) == kind]
        if names:
            parts.append(f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''} as {kind} ({how})")
    return [f"intensity by the name of the modality: {'; '.join(parts)}"]


# Options that are the same for every scan.
_SHARED = (
    "assume_spacing_mm", "nonfinite", "channels", "percentiles", "window_hu", "value_range", "crop",
    "label_interpolation", "store_as", "store",
)  # fmt: skip


def _tasks(manifest: Manifest, options: PrepareOptions) -> list[ScanTask]:
    table = manifest.table
    images = [manifest.locate(p) for p in table["path"]]
    atlases = table["atlas"] if "atlas" in table else [""] * len(table)
    has_volumes = options.channels == "split" and VOLUME in table
    volumes = map(int, table[VOLUME]) if has_volumes else [None] * len(table)
    spacing = None if isinstance(options.spacing_mm, str) else options.spacing_mm
    if options.spacing_mm == "median" and images:
        spacing = _median_spacing(images, options.assume_spacing_mm)
    shared: dict[str, Any] = {name: getattr(options, name) for name in _SHARED}
    return [
        ScanTask(
            scan=scan,
            image=image,
            label=manifest.locate(label) if label else None,
            atlas=manifest.locate(atlas) if atlas else None,
            kind=kind_of(modality) if options.intensity == "auto" else options.intensity,
            classes=tuple(sorted(manifest.label_names)),
            spacing_mm=spacing,
            volume=volume,
            **shared,
        )
        for scan, image, label, atlas, modality, volume in zip(
            table["scan"], images, table["label"], atlases, table["modality"], volumes, strict=True
        )
    ]


def _median_spacing(images: Sequence[Path], assumed: Sequence[float] | None) -> tuple[float, float, float]:
    """The median spacing per RAS axis of the scans with valid headers; the others are refused later.

    assumed: along the files' own axes, in place of that of the headers
    """
    from nibabel.orientations import io_orientation

    found = []
    for path in images:
        try:
            header = read_header(path)
        except DataError:
            continue
        axis = io_orientation(header.affine)[:, 0].astype(int)
        of_file = header.spacing_mm if assumed is None else np.asarray(assumed, dtype=np.float64)
        found.append(of_file[np.argsort(axis)])
    if not found:
        raise DataError(images[0].parent, "no file has a readable header, so that there is no median spacing")
    x, y, z = np.median(found, axis=0).round(4).tolist()
    return x, y, z
