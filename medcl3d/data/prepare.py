"""From a source to a store: every scan checked, brought to one form, written once, and reported."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np

from medcl3d.config import parse_choice
from medcl3d.data.array_file import import_blosc2
from medcl3d.data.finish import Prepared, clear_leftovers, finish, open_folder, refuse_foreign, write_report
from medcl3d.data.hidden_ids import hidden
from medcl3d.data.intensity import kind_of
from medcl3d.data.manifest import Manifest
from medcl3d.data.nifti import read_header
from medcl3d.data.options import PrepareOptions
from medcl3d.data.scan import Outcome, ScanTask
from medcl3d.data.sources import SOURCES
from medcl3d.data.volumes import VOLUME, one_scan_a_volume
from medcl3d.data.workers import run_tasks
from medcl3d.errors import ConfigError, DataError, MachineError
from medcl3d.registry import Choice


def prepare(
    source: str,
    root: Path | None,
    out: Path,
    *,
    fields: Mapping[str, Any] | None = None,
    options: PrepareOptions | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Prepared:
    """Prepare a collection: `out` gets manifest.csv, report.csv, split.json and store/.

    source  name of a source, its `fields` beside it
    root    where its files lie; None for `simulated`, which then writes them to ``out/raw``
    say     gets lines for a person

    The same command again does what is missing or changed. Raises ConfigError, MachineError, and
    DataError where more files are bad than `max_bad_fraction` allows (the report is written before).
    """
    from filelock import FileLock, Timeout

    options = options or PrepareOptions()
    choice = _choice(source, fields or {})
    if options.store == "blosc2":
        import_blosc2("store=blosc2")
    if root is None and source != "simulated":
        raise ConfigError(f"source {source}: ROOT is missing; only simulated makes its own files")
    try:
        refuse_foreign(out, root)
        (out / "store").mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock", timeout=0):
            clear_leftovers(out)
            manifest: Manifest = SOURCES.build(choice, *_folders(source, root, out / "raw"))
            read = manifest.root if root is None or manifest.root != out / "raw" else Path(root)
            origin: dict[str, Any] = {"name": choice.name, "fields": json.loads(json.dumps(choice.fields)), "root": str(read.resolve())}
            if options.hash_ids and "hash_ids" not in choice.fields:  # a source with such a field hides ids as it reads them
                manifest, origin["fields"]["hash_ids"] = hidden(manifest, out / "raw"), True
            return _prepare(manifest, origin, out, options, say)
    except Timeout:
        raise MachineError(f"{out}: another process is preparing this folder; wait for it, or choose another") from None
    except OSError as error:
        place, why = Path(str(error.filename or out)), error.strerror or error
        if not place.absolute().is_relative_to(out.absolute()):
            raise DataError(f"{place}: cannot be read: {why}") from None
        raise MachineError(f"{place}: {why}; choose a folder that can be written") from None


def look(source: str, root: Path | None, fields: Mapping[str, Any], options: PrepareOptions) -> tuple[Manifest, list[ScanTask] | None]:
    """What a preparation would start from, with nothing written: the manifest, and the tasks (None: their files are yet to be written)."""
    choice = _choice(source, fields)
    if root is None and source != "simulated":
        raise ConfigError(f"source {source}: ROOT is missing; only simulated makes its own files")
    writes = source == "simulated" or len(_folders(source, root, Path())) > 1
    places = (None if source == "simulated" else root, None)[: len(_folders(source, root, Path()))]
    try:
        manifest: Manifest = SOURCES.build(choice, *places)
        if writes:
            return manifest, None
        manifest = one_scan_a_volume(manifest) if options.channels == "split" else manifest
        return manifest, _tasks(manifest, options)
    except OSError as error:
        raise DataError(f"{error.filename or root}: cannot be read: {error.strerror or error}") from None


def _folders(source: str, root: Path | None, raw: Path) -> tuple[Path, ...]:
    """What a source is called with: the folder it reads, and for one that writes its scans the folder for them."""
    places = [p for p in signature(SOURCES.get(source)).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    return (raw if root is None else Path(root), raw)[: len(places)]


def _choice(source: str, fields: Mapping[str, Any]) -> Choice:
    if source not in SOURCES.names():
        raise ConfigError(f"source {source!r} is unknown; there are {', '.join(SOURCES.names())}")
    return parse_choice(SOURCES, source, fields, f"source {source}")


def _prepare(manifest: Manifest, origin: dict[str, Any], out: Path, options: PrepareOptions, say: Callable[[str], None]) -> Prepared:
    missing = manifest.missing()
    for note in manifest.notes:  # before what may end it: files that lie there under another name explain files that are missing
        say(note)
    if len(missing) > _allowed(manifest, options):
        correct = "" if len(manifest.links(missing)) == len(missing) else "; correct the paths"
        raise DataError(f"{manifest.say_missing(missing)}{correct}, or raise max_bad_fraction")
    if options.channels == "split":
        told = len(manifest.notes)
        manifest = one_scan_a_volume(manifest)
        for note in manifest.notes[told:]:
            say(note)
    allowed = _allowed(manifest, options)
    unmade = {scan: Outcome(scan, "refused", reason, ()) for scan, reason in manifest.faults.items()}
    tasks = [task for task in _tasks(manifest, options) if task.scan not in unmade]
    outcomes: dict[str, Outcome] = unmade
    open_folder(out, origin, {**tasks[0].options(), "store": options.store} if tasks else {}, say)
    if tasks:
        for note in _kinds(manifest, options):
            say(note)
        outcomes = {**unmade, **run_tasks(tasks, out / "store", options.workers, allowed - len(unmade))}
    write_report(out / "report.csv", manifest, outcomes)
    bad = [o for o in outcomes.values() if o.status == "refused"]
    if len(bad) > allowed:
        raise DataError(
            f"{len(bad)} of {len(manifest)} scans were refused, {allowed} may be: {bad[0].reason} "
            f"(all in {out / 'report.csv'}); repair them, or raise max_bad_fraction"
        )
    table = manifest.table[[outcomes[s].status == "ok" for s in manifest.table["scan"]]]
    if not len(table):
        reasons = [outcome.reason for outcome in outcomes.values()]
        raise DataError(f"{out}: no scan is left: {reasons[0]} ({len(reasons)} in {out / 'report.csv'})")
    return finish(out, manifest, table, origin, options, outcomes, say)


def _allowed(manifest: Manifest, options: PrepareOptions) -> int:
    """How many scans may be refused."""
    return max(1, int(options.max_bad_fraction * len(manifest)))


def _kinds(manifest: Manifest, options: PrepareOptions) -> list[str]:
    """As what the intensities of each modality are taken, where its name decides."""
    if options.intensity != "auto":
        return []
    told = []
    for kind, how in (("ct", "a window in HU"), ("mri", "by the values of the body"), ("none", "values as they are")):
        names = [name or "no modality" for name in manifest.table["modality"].unique() if kind_of(name) == kind]
        if names:
            told.append(f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''} as {kind} ({how})")
    return [f"intensity by the name of the modality: {'; '.join(told)}"]


def _tasks(manifest: Manifest, options: PrepareOptions) -> list[ScanTask]:
    table = manifest.table
    images = [manifest.locate(p) for p in table["path"]]
    atlases = table["atlas"] if "atlas" in table else [""] * len(table)
    volumes = map(int, table[VOLUME]) if options.channels == "split" and VOLUME in table else [None] * len(table)
    spacing = None if isinstance(options.spacing_mm, str) else options.spacing_mm
    if options.spacing_mm == "median" and options.assume_spacing_mm is None:  # assumed: all files have one
        spacing = _median_spacing(images)
    return [
        ScanTask(
            scan=scan,
            image=image,
            label=manifest.locate(label) if label else None,
            atlas=manifest.locate(atlas) if atlas else None,
            kind=kind_of(modality) if options.intensity == "auto" else options.intensity,
            classes=tuple(sorted(manifest.label_names)),
            assume_spacing_mm=options.assume_spacing_mm,
            spacing_mm=spacing,
            nonfinite=options.nonfinite,
            channels=options.channels,
            percentiles=options.percentiles,
            window_hu=options.window_hu,
            crop=options.crop,
            label_interpolation=options.label_interpolation,
            store_as=options.store_as,
            store=options.store,
            volume=volume,
        )
        for scan, image, label, atlas, modality, volume in zip(
            table["scan"], images, table["label"], atlases, table["modality"], volumes, strict=True
        )
    ]


def _median_spacing(images: Sequence[Path]) -> tuple[float, float, float]:
    """Per RAS axis, over the scans whose headers are good; the others are refused later."""
    from nibabel.orientations import io_orientation

    found = []
    for path in images:
        try:
            header = read_header(path)
        except DataError:
            continue
        axis = io_orientation(header.affine)[:, 0].astype(int)
        found.append(header.spacing_mm[np.argsort(axis)])
    if not found:
        raise DataError(f"{images[0].parent}: no file there has a readable header, so there is no median spacing")
    x, y, z = np.median(found, axis=0).round(4).tolist()
    return x, y, z
